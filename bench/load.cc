// load: reading cached state where it lies, against reading one's own memory.
#include <sys/mman.h>

#include <cstring>

#include "bench/bench.h"
#include "bench/large_chunk.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr uint32_t kObjects = 6;
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

// Acquire, read every byte of every part in place as it becomes ready, release.
absl::StatusOr<uint64_t> LoadObject(Client& client, const Model& model, const PrefixMatch& match) {
  auto lease = client.Acquire(model, match);
  if (!lease.ok()) return lease.status();
  uint64_t sum = 0;
  for (uint32_t part = 1; part < model.layout.PartCount(); ++part) {
    const absl::Status ready = lease->WaitPart(0, part);
    if (!ready.ok()) return ready;
    const auto bytes = lease->RawPart(0, part);
    if (!bytes.ok()) return bytes.status();
    sum += Sum(bytes->data(), bytes->size());
  }
  const absl::Status released = lease->Release();
  if (!released.ok()) return released;
  return sum;
}

// The same loop over private memory: part by part.
uint64_t SumPrivate(const uint8_t* object, uint32_t parts) {
  uint64_t sum = 0;
  for (uint32_t part = 0; part < parts; ++part) {
    sum += Sum(object + part * (kLargeBytes / parts), kLargeBytes / parts);
  }
  return sum;
}

// Stores kObjects and finds them again.
absl::StatusOr<std::vector<PrefixMatch>> StoreAll(Client& client, const Model& model,
                                                  const std::vector<uint8_t>& payload) {
  std::vector<PrefixMatch> matches;
  for (uint32_t i = 0; i < kObjects; ++i) {
    const std::vector<uint32_t> prompt = LargePrompt(i);
    const absl::Status stored = StoreLarge(client, model, prompt, payload);
    if (!stored.ok()) return stored;
    auto match = client.MatchPrefix(model, prompt);
    if (!match.ok()) return match.status();
    if (match->chunks.size() != 1) return absl::InternalError("the stored chunk is not found");
    matches.push_back(*std::move(match));
  }
  return matches;
}

absl::StatusOr<Row> Measure(const Context& context, const std::string& name,
                            const std::string& verify) {
  DaemonConfig config;
  config.host_bytes = kHostBytes;
  config.headroom_bytes = kHostBytes;
  config.verify = verify;
  const auto daemon = PrivateDaemon::Start(context, name, config);
  if (!daemon.ok()) return daemon.status();
  const absl::Status populated = (*daemon)->WaitPopulated(kHostBytes);
  if (!populated.ok()) return populated;
  const auto client = (*daemon)->ConnectClient();
  if (!client.ok()) return client.status();
  const auto model = (*client)->RegisterKv(LargeGeometry());
  if (!model.ok()) return model.status();
  const std::vector<uint8_t> payload = LargePayload();
  const auto matches = StoreAll(**client, *model, payload);
  if (!matches.ok()) return matches.status();

  const PrivateMemory memory(kLargeBytes * kObjects);
  if (memory.data() == nullptr) return absl::ResourceExhaustedError("no memory for the reference");
  for (uint64_t i = 0; i < kObjects; ++i) {
    std::memcpy(memory.data() + i * kLargeBytes, payload.data(), kLargeBytes);
  }
  std::vector<Pair> pairs;
  for (int i = -static_cast<int>(kObjects); i < kPairs; ++i) {  // the first round warms up
    const auto at = static_cast<size_t>(i + static_cast<int>(kObjects)) % kObjects;
    double start = NowSeconds();
    const auto sum = LoadObject(**client, *model, (*matches)[at]);
    const double ours = NowSeconds() - start;
    if (!sum.ok()) return sum.status();
    start = NowSeconds();
    const uint64_t expected =
        SumPrivate(memory.data() + at * kLargeBytes, model->layout.PartCount() - 1);
    const double reference = NowSeconds() - start;
    if (*sum != expected) return absl::DataLossError(name + ": the bytes read differ");
    if (i >= 0) pairs.push_back({kLargeBytes / ours / 1e9, kLargeBytes / reference / 1e9});
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
