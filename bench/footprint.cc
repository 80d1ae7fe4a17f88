// footprint: what the daemon's own memory costs, an object at a time.
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/chunk_writer.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kObjects = 1'000'000;
constexpr uint32_t kBatch = 256;
constexpr uint32_t kPrefixChunks = 64;  // chunks a prompt: how often a chain starts anew
constexpr uint64_t kPageBytes = 4096;
constexpr double kFixedBytes = 48.0 * 1024 * 1024;
constexpr double kBarBytesPerObject = 256;
constexpr double kMaxSeconds = 300;
constexpr double kMemoryShare = 0.7;  // of what is available, for the tier

uint64_t AvailableBytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t kib = 0;
    words >> name >> kib;
    if (name == "MemAvailable:") return kib * 1024;
  }
  return 0;
}

// Stores up to `objects`, and says how many were stored in time.
absl::StatusOr<uint64_t> Fill(ChunkWriter& writer, uint64_t objects) {
  const double deadline = NowSeconds() + kMaxSeconds;
  uint64_t stored = 0;
  while (stored < objects && NowSeconds() < deadline) {
    const auto batch = static_cast<uint32_t>(std::min<uint64_t>(kBatch, objects - stored));
    std::vector<ChunkKeys> chunks;
    while (chunks.size() < batch) {
      const auto left = batch - static_cast<uint32_t>(chunks.size());
      for (ChunkKeys& chunk : writer.RandomChain({}, std::min(kPrefixChunks, left))) {
        chunks.push_back(std::move(chunk));
      }
    }
    const absl::Status status = writer.Store(chunks);
    if (!status.ok()) return status;
    stored += batch;
  }
  return stored;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunFootprint(const Context& context) {
  const auto affordable = static_cast<uint64_t>(
      kMemoryShare * static_cast<double>(AvailableBytes()) / static_cast<double>(kPageBytes));
  const uint64_t objects = std::min(kObjects, affordable);
  DaemonConfig config;
  // Some room to spare, so that nothing is evicted while the arena grows.
  config.host_bytes = AlignUp(objects * kPageBytes + objects * kPageBytes / 16, 64 << 20);
  config.headroom_bytes = uint64_t{256} << 20;
  const auto daemon = PrivateDaemon::Start(context, "footprint", config);
  if (!daemon.ok()) return daemon.status();
  const auto connection = (*daemon)->Connect();
  if (!connection.ok()) return connection.status();
  auto writer = ChunkWriter::Create(**connection, TinyGeometry());
  if (!writer.ok()) return writer.status();
  const auto empty_bytes = (*daemon)->PrivateResidentBytes();
  if (!empty_bytes.ok()) return empty_bytes.status();

  const double start = NowSeconds();
  const auto stored = Fill(**writer, objects);
  if (!stored.ok()) return stored.status();
  const double seconds = NowSeconds() - start;
  const auto status = (*connection)->Status();
  if (!status.ok()) return status.status();
  const auto full_bytes = (*daemon)->PrivateResidentBytes();
  if (!full_bytes.ok()) return full_bytes.status();
  if (status->objects < *stored * 99 / 100) {
    return absl::InternalError(absl::StrCat("stored ", *stored, " objects, the daemon has ",
                                            status->objects, ": not the measurement intended"));
  }
  const auto count = static_cast<double>(status->objects);
  const auto resident = static_cast<double>(*full_bytes);
  Row each = MakeRow("bytes_per_object", "B", "the bar, after 48 MiB fixed",
                     {{std::max(0.0, resident - kFixedBytes) / count, kBarBytesPerObject}});
  each.note = absl::StrFormat("%d objects in %.1f s, %.1f MiB resident beyond the tiers",
                              status->objects, seconds, resident / (1 << 20));
  if (status->objects < kObjects) {
    absl::StrAppend(&each.note, "; fewer than 1,000,000 for want of memory or time");
  }
  Row fixed = MakeRow("fixed_mib", "MiB", "the bar",
                      {{static_cast<double>(*empty_bytes) / (1 << 20), 48.0}});
  return std::vector<Row>{each, fixed};
}

}  // namespace terrace::bench
