// store: what it costs to hand 64 MiB over with a checksum, against copying it and nothing else.
#include <cstring>

#include "bench/bench.h"
#include "bench/large_chunk.h"
#include "bench/private_daemon.h"
#include "kernels/shared_memory.h"

namespace terrace::bench {
namespace {

constexpr int kPairs = 15;
constexpr uint64_t kHostBytes = uint64_t{256} << 20;

}  // namespace

absl::StatusOr<std::vector<Row>> RunStore(const Context& context) {
  DaemonConfig config;
  config.host_bytes = kHostBytes;
  config.headroom_bytes = kHostBytes;
  const auto daemon = PrivateDaemon::Start(context, "store", config);
  if (!daemon.ok()) return daemon.status();
  absl::Status status = (*daemon)->WaitPopulated(kHostBytes);
  if (!status.ok()) return status;
  const auto client = (*daemon)->ConnectClient();
  if (!client.ok()) return client.status();
  const auto model = (*client)->RegisterKv(LargeGeometry());
  if (!model.ok()) return model.status();

  const std::vector<uint8_t> payload = LargePayload();
  auto reference = kernels::SharedMemory::Create("terrace-bench", kLargeBytes);
  if (!reference.ok()) return reference.status();
  status = reference->Populate(0, kLargeBytes);
  if (!status.ok()) return status;

  std::vector<Pair> pairs;
  for (int i = -1; i < kPairs; ++i) {  // the first pair warms up
    const std::vector<uint32_t> prompt = LargePrompt(static_cast<uint32_t>(i + 1));
    double start = NowSeconds();
    status = StoreLarge(**client, *model, prompt, payload);
    const double ours = NowSeconds() - start;
    if (!status.ok()) return status;
    start = NowSeconds();
    std::memcpy(reference->data(), payload.data(), kLargeBytes);
    const double copied = NowSeconds() - start;
    // Gone again, so that the next one reuses the memory.
    const auto match = (*client)->MatchPrefix(*model, prompt);
    if (!match.ok()) return match.status();
    if (match->chunks.size() != 1) return absl::InternalError("the stored chunk is not found");
    status = (*client)->Remove(match->chunks.front().key);
    if (!status.ok()) return status;
    if (i >= 0) pairs.push_back({kLargeBytes / ours / 1e9, kLargeBytes / copied / 1e9});
  }
  return std::vector<Row>{
      MakeRow("store_64MiB", "GB/s", "memcpy into populated shared memory", pairs)};
}

}  // namespace terrace::bench
