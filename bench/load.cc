// load: reading cached state where it lies, against reading one's own memory.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "bench/chunk_writer.h"
#include "bench/private_daemon.h"
#include "kernels/checksum.h"

namespace terrace::bench {
namespace {

constexpr int kObjects = 6;
constexpr int kPairs = 15;
constexpr uint64_t kHostBytes = uint64_t{512} << 20;

// Private memory, faulted in, freed with the object.
class PrivateMemory {
 public:
  explicit PrivateMemory(uint64_t bytes) : bytes_(bytes) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    data_ = mapped == MAP_FAILED ? nullptr : static_cast<uint8_t*>(mapped);
  }
  ~PrivateMemory() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  PrivateMemory(const PrivateMemory&) = delete;
  PrivateMemory& operator=(const PrivateMemory&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint64_t bytes_;
  uint8_t* data_ = nullptr;
};

uint64_t Sum(const uint8_t* data, uint64_t bytes) {
  uint64_t sum = 0;
  for (uint64_t at = 0; at + 8 <= bytes; at += 8) {
    uint64_t word;
    std::memcpy(&word, data + at, sizeof word);
    sum += word;
  }
  return sum;
}

uint64_t SumParts(const uint8_t* payload, const std::vector<PartSpan>& parts) {
  uint64_t sum = 0;
  for (const PartSpan& part : parts) sum += Sum(payload + part.offset, part.bytes);
  return sum;
}

// Acquire, read every byte in place (checksums first when the daemon sent them), release.
absl::StatusOr<uint64_t> LoadObject(Connection& connection, const ChunkWriter& writer,
                                    const ObjectKey& key, const std::vector<PartSpan>& parts) {
  const auto acquired = connection.Acquire(writer.layout_id(), {&key, 1}, {});
  if (!acquired.ok()) return acquired.status();
  const AcquireResult& object = acquired->results.front();
  if (!object.status.ok()) return object.status;
  const uint8_t* payload = writer.segment().data() + object.offset;
  uint64_t sum = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const uint8_t* part = payload + parts[i].offset;
    if (!object.part_crcs.empty() && kernels::Crc32c(part, parts[i].bytes) != object.part_crcs[i]) {
      return absl::DataLossError(absl::StrCat(key.ToHex(), " part ", i));
    }
    sum += Sum(part, parts[i].bytes);
  }
  const absl::Status released = connection.Release({&acquired->lease_id, 1});
  if (!released.ok()) return released;
  return sum;
}

absl::StatusOr<Row> Measure(const Context& context, const std::string& name,
                            const std::string& verify) {
  DaemonConfig config;
  config.host_bytes = kHostBytes;
  config.growth_step_bytes = kHostBytes;
  config.verify = verify;
  const auto daemon = PrivateDaemon::Start(context, name, config);
  if (!daemon.ok()) return daemon.status();
  absl::Status status = (*daemon)->WaitPopulated(kHostBytes);
  if (!status.ok()) return status;
  const auto connection = (*daemon)->Connect();
  if (!connection.ok()) return connection.status();
  auto writer = ChunkWriter::Create(**connection, LargeGeometry());
  if (!writer.ok()) return writer.status();
  status = (*writer)->MapPopulated(kHostBytes);
  if (!status.ok()) return status;
  const std::vector<ChunkKeys> chunks = (*writer)->RandomChain({}, kObjects);
  status = (*writer)->Store(chunks);
  if (!status.ok()) return status;

  const std::vector<PartSpan> parts = (*writer)->layout().Parts(kChunkTokens, kChunkGrains);
  const uint64_t payload_bytes = (*writer)->payload().size();
  const PrivateMemory memory(payload_bytes * kObjects);
  if (memory.data() == nullptr) return absl::ResourceExhaustedError("no memory for the reference");
  for (int i = 0; i < kObjects; ++i) {
    uint8_t* copy = memory.data() + static_cast<uint64_t>(i) * payload_bytes;
    std::memcpy(copy, (*writer)->payload().data(), payload_bytes);
    std::memcpy(copy, chunks[static_cast<size_t>(i)].grains.data(), parts.front().bytes);
  }
  std::vector<Pair> pairs;
  for (int i = -kObjects; i < kPairs; ++i) {  // the first round warms up
    const auto at = static_cast<size_t>((i + kObjects) % kObjects);
    double start = NowSeconds();
    const auto sum = LoadObject(**connection, **writer, chunks[at].grains.back(), parts);
    const double ours = NowSeconds() - start;
    if (!sum.ok()) return sum.status();
    start = NowSeconds();
    const uint64_t expected = SumParts(memory.data() + at * payload_bytes, parts);
    const double reference = NowSeconds() - start;
    if (*sum != expected) return absl::DataLossError(name + ": the bytes read differ");
    if (i < 0) continue;
    const auto bytes = static_cast<double>(payload_bytes);
    pairs.push_back({bytes / ours / 1e9, bytes / reference / 1e9});
  }
  return MakeRow(name, "GB/s", "the same loop over private memory", pairs);
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunLoad(const Context& context) {
  const auto crossing = Measure(context, "load_host_crossing", "crossing");
  if (!crossing.ok()) return crossing.status();
  const auto always = Measure(context, "load_host_always", "always");
  if (!always.ok()) return always.status();
  return std::vector<Row>{*crossing, *always};
}

}  // namespace terrace::bench
