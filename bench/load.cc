// load: reading cached state where it lies, against reading one's own memory.
#include <sys/mman.h>

#include <cstring>
#include <memory>

#include "bench/bench.h"
#include "bench/large_chunk.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kChunks = 4;
constexpr uint64_t kBytes = kChunks * kLargeBytes;
constexpr uint64_t kHostBytes = kBytes + kLargeBytes;
// How fast memory reads depends on how contiguous its pages happen to lie, so both sides get theirs
// anew in every round, in turns the one first and then the other.
constexpr int kRounds = 6;
constexpr int kPairsPerRound = 3;

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

uint64_t Word(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

// Four sums at a time, so that memory and not the addition is the limit. `bytes` is a multiple
// of 32.
uint64_t Sum(const uint8_t* data, uint64_t bytes) {
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (const uint8_t* end = data + bytes; data != end; data += 32) {
    a += Word(data);
    b += Word(data + 8);
    c += Word(data + 16);
    d += Word(data + 24);
  }
  return a + b + c + d;
}

// Acquire the prefix, read every byte of every part in place as it becomes ready, release.
absl::StatusOr<uint64_t> LoadPrefix(Client& client, const Model& model, const PrefixMatch& match) {
  auto lease = client.Acquire(model, match);
  if (!lease.ok()) return lease.status();
  uint64_t sum = 0;
  for (size_t chunk = 0; chunk < lease->chunks().size(); ++chunk) {
    for (uint32_t part = 1; part < model.layout.PartCount(); ++part) {
      const absl::Status ready = lease->WaitPart(chunk, part);
      if (!ready.ok()) return ready;
      const auto bytes = lease->RawPart(chunk, part);
      if (!bytes.ok()) return bytes.status();
      sum += Sum(bytes->data(), bytes->size());
    }
  }
  const absl::Status released = lease->Release();
  if (!released.ok()) return released;
  return sum;
}

// The same loop over private memory: part by part.
uint64_t SumPrivate(const uint8_t* memory, uint64_t part_bytes) {
  uint64_t sum = 0;
  for (uint64_t at = 0; at < kBytes; at += part_bytes) sum += Sum(memory + at, part_bytes);
  return sum;
}

// The prefix in a daemon of its own.
struct Stored {
  std::unique_ptr<PrivateDaemon> daemon;
  std::unique_ptr<Client> client;
  Model model;
  PrefixMatch match;
};

absl::StatusOr<Stored> Store(const Context& context, const std::string& name,
                             const DaemonConfig& config, const std::vector<uint8_t>& payload) {
  Stored stored;
  auto daemon = PrivateDaemon::Start(context, name, config);
  if (!daemon.ok()) return daemon.status();
  stored.daemon = *std::move(daemon);
  const absl::Status populated = stored.daemon->WaitPopulated(kHostBytes);
  if (!populated.ok()) return populated;
  auto client = stored.daemon->ConnectClient();
  if (!client.ok()) return client.status();
  stored.client = *std::move(client);
  auto model = stored.client->RegisterKv(LargeGeometry());
  if (!model.ok()) return model.status();
  stored.model = *std::move(model);
  const std::vector<uint32_t> prompt = LargePrompt(0, kChunks);
  const absl::Status written = StoreLarge(*stored.client, stored.model, prompt, payload);
  if (!written.ok()) return written;
  auto match = stored.client->MatchPrefix(stored.model, prompt);
  if (!match.ok()) return match.status();
  if (match->chunks.size() != kChunks) return absl::InternalError("the prefix is not found");
  stored.match = *std::move(match);
  return stored;
}

std::unique_ptr<PrivateMemory> CopyPrivately(const std::vector<uint8_t>& payload) {
  auto memory = std::make_unique<PrivateMemory>(kBytes);
  if (memory->data() == nullptr) return nullptr;
  for (uint64_t i = 0; i < kChunks; ++i) {
    std::memcpy(memory->data() + i * kLargeBytes, payload.data(), kLargeBytes);
  }
  return memory;
}

absl::Status MeasureRound(const Stored& stored, const uint8_t* memory, std::vector<Pair>& pairs) {
  const uint64_t part_bytes = kLargeBytes / (stored.model.layout.PartCount() - 1);
  for (int i = -1; i < kPairsPerRound; ++i) {  // the first warms up
    double start = NowSeconds();
    const auto sum = LoadPrefix(*stored.client, stored.model, stored.match);
    const double ours = NowSeconds() - start;
    if (!sum.ok()) return sum.status();
    start = NowSeconds();
    const uint64_t expected = SumPrivate(memory, part_bytes);
    const double reference = NowSeconds() - start;
    if (*sum != expected) return absl::DataLossError("the bytes read differ");
    if (i >= 0) pairs.push_back({kBytes / ours / 1e9, kBytes / reference / 1e9});
  }
  return absl::OkStatus();
}

absl::StatusOr<Row> Measure(const Context& context, const std::string& name,
                            const std::string& verify) {
  DaemonConfig config;
  config.host_bytes = kHostBytes;
  config.headroom_bytes = kHostBytes;
  config.verify = verify;
  const std::vector<uint8_t> payload = LargePayload();
  std::vector<Pair> pairs;
  for (int round = 0; round < kRounds; ++round) {
    std::unique_ptr<PrivateMemory> memory;
    if (round % 2 == 0) memory = CopyPrivately(payload);
    const auto stored = Store(context, name, config, payload);
    if (!stored.ok()) return stored.status();
    if (round % 2 == 1) memory = CopyPrivately(payload);
    if (memory == nullptr) return absl::ResourceExhaustedError("no memory for the reference");
    const absl::Status measured = MeasureRound(*stored, memory->data(), pairs);
    if (!measured.ok()) return measured;
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
