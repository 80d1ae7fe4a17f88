// store: what it costs to hand 64 MiB over with a checksum, against copying it and nothing else.
#include <cstring>

#include "bench/bench.h"
#include "bench/chunk_writer.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr int kPairs = 15;
constexpr uint64_t kHostBytes = uint64_t{256} << 20;

double GigabytesPerSecond(uint64_t bytes, double seconds) {
  return static_cast<double>(bytes) / seconds / 1e9;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunStore(const Context& context) {
  DaemonConfig config;
  config.host_bytes = kHostBytes;
  config.growth_step_bytes = kHostBytes;
  const auto daemon = PrivateDaemon::Start(context, "store", config);
  if (!daemon.ok()) return daemon.status();
  absl::Status status = (*daemon)->WaitPopulated(kHostBytes);
  if (!status.ok()) return status;
  const auto connection = (*daemon)->Connect();
  if (!connection.ok()) return connection.status();
  auto writer = ChunkWriter::Create(**connection, LargeGeometry());
  if (!writer.ok()) return writer.status();
  status = (*writer)->MapPopulated(kHostBytes);
  if (!status.ok()) return status;

  const std::vector<uint8_t>& payload = (*writer)->payload();
  const uint64_t bytes = AlignUp(payload.size(), kExtentAlignment);
  auto reference = kernels::SharedMemory::Create("terrace-bench", bytes);
  if (!reference.ok()) return reference.status();
  status = reference->Populate(0, bytes);
  if (!status.ok()) return status;

  std::vector<Pair> pairs;
  for (int i = -1; i < kPairs; ++i) {  // the first pair warms up
    const std::vector<ChunkKeys> chunk = (*writer)->RandomChain({}, 1);
    double start = NowSeconds();
    status = (*writer)->Store(chunk);
    const double ours = NowSeconds() - start;
    if (!status.ok()) return status;
    start = NowSeconds();
    std::memcpy(reference->data(), payload.data(), payload.size());
    const double copied = NowSeconds() - start;
    // Gone again, so that the next one reuses the memory.
    status = (*connection)->Remove(chunk.front().grains.back());
    if (!status.ok()) return status;
    if (i < 0) continue;
    pairs.push_back(
        {GigabytesPerSecond(payload.size(), ours), GigabytesPerSecond(payload.size(), copied)});
  }
  return std::vector<Row>{
      MakeRow("store_64MiB", "GB/s", "memcpy into populated shared memory", pairs)};
}

}  // namespace terrace::bench
