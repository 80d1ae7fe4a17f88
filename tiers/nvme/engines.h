// The two engines behind MakeIoEngine().
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tiers/nvme/io_engine.h"

namespace terrace::nvme {

// FailedPrecondition, saying why, where the kernel grants no io_uring.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeUringEngine(uint32_t depth);
// min(depth, 16) threads. `note` is added to the name: why not io_uring.
std::unique_ptr<IoEngine> MakeThreadEngine(uint32_t depth, const std::string& note);

}  // namespace terrace::nvme
