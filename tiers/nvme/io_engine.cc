#include "tiers/nvme/io_engine.h"

#include <utility>

#include "tiers/nvme/engines.h"

namespace terrace::nvme {

absl::StatusOr<std::unique_ptr<IoEngine>> MakeIoEngine(EngineChoice choice, uint32_t depth) {
  if (choice == EngineChoice::kThreads) return MakeThreadEngine(depth, "");
  absl::StatusOr<std::unique_ptr<IoEngine>> uring = MakeUringEngine(depth);
  if (uring.ok() || choice == EngineChoice::kIoUring) return uring;
  return MakeThreadEngine(depth, std::string(uring.status().message()));
}

}  // namespace terrace::nvme
