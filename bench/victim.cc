// victim: what requests wait for objects in HBM that is a tenth of what they use, with the tiers
// managed by the default policy and told the queue, against the same bytes managed by LRU and told
// nothing; and with hints off, and with hints that are random.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "bench/private_daemon.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kObjectBytes = kMiB - 4096;
constexpr uint32_t kObjects = 480;
// The working set is 480 MiB: a tenth in HBM, a fifth in host memory beside what is being moved,
// the rest on NVMe.
constexpr uint64_t kHbmBytes = 48 * kMiB, kHostBytes = 96 * kMiB;
constexpr uint64_t kLinkBytesPerS = 2'000 * kMiB, kNvmeBytesPerS = 400 * kMiB;
constexpr uint32_t kObjectsPerRequest = 4;
// Of the first hints it is not known yet whether they come true.
constexpr uint32_t kWarmUpRequests = 400, kRequests = 500;
constexpr uint32_t kQueue = 64;  // requests that wait, and are announced
constexpr auto kCompute = std::chrono::microseconds(6000);
constexpr double kSkew = 0.8;  // of popularity, as in Zipf's law
constexpr int kPairs = 5;

enum class Hints { kNone, kQueue, kRandom };

struct Variant {
  const char* name;
  const char* policy;
  Hints hints;
};
constexpr Variant kLru = {"lru", "lru", Hints::kNone};
constexpr Variant kVariants[] = {{"queue known", "default", Hints::kQueue},
                                 {"hints off", "default", Hints::kNone},
                                 {"random hints", "default", Hints::kRandom}};

class Workload {
 public:
  explicit Workload(uint64_t seed) : random_(seed) {
    double sum = 0;
    for (uint32_t i = 0; i < kObjects; ++i) {
      sum += 1 / std::pow(i + 1, kSkew);
      cumulative_.push_back(sum);
    }
  }
  std::vector<uint32_t> Next() {
    std::vector<uint32_t> objects;
    while (objects.size() < kObjectsPerRequest) {
      const double at = std::uniform_real_distribution<double>(0, cumulative_.back())(random_);
      const auto found = std::lower_bound(cumulative_.begin(), cumulative_.end(), at);
      const auto object = static_cast<uint32_t>(found - cumulative_.begin());
      if (std::find(objects.begin(), objects.end(), object) == objects.end()) {
        objects.push_back(object);
      }
    }
    return objects;
  }
  std::vector<uint32_t> Random() {
    std::vector<uint32_t> objects(kObjectsPerRequest);
    for (uint32_t& object : objects) object = static_cast<uint32_t>(random_() % kObjects);
    return objects;
  }

 private:
  std::mt19937_64 random_;
  std::vector<double> cumulative_;
};

// An engine with a queue, on a daemon of its own.
class Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Start(const Context& context,
                                                       const Variant& variant) {
    auto engine = std::unique_ptr<Engine>(new Engine(variant));
    DaemonConfig config;
    config.host_bytes = kHostBytes;
    config.headroom_bytes = kHostBytes;
    config.host_keys = absl::StrCat("policy = \"", variant.policy, "\"\n");
    config.nvme_bytes = 2048 * kMiB;
    config.nvme_keys =
        absl::StrCat("admission = \"always\"\nread_limit = ", kNvmeBytesPerS,
                     "\n[hbm]\ncapacity = ", kHbmBytes, "\nbandwidth = ", kLinkBytesPerS, "\n");
    auto daemon = PrivateDaemon::Start(context, "victim", config);
    if (!daemon.ok()) return daemon.status();
    engine->daemon_ = *std::move(daemon);
    if (auto s = engine->daemon_->WaitPopulated(kHostBytes * 9 / 10); !s.ok()) return s;
    auto client = engine->daemon_->ConnectClient();
    if (!client.ok()) return client.status();
    engine->client_ = *std::move(client);
    if (absl::Status s = engine->Fill(); !s.ok()) return s;
    return engine;
  }

  // Seconds that the requests waited for their objects; every byte is compared.
  absl::StatusOr<double> Serve(uint64_t seed) {
    Workload workload(seed), others(seed + 1);
    std::deque<std::vector<uint32_t>> queue;
    double waited = 0;
    for (uint32_t request = 0; request < kWarmUpRequests + kRequests; ++request) {
      while (queue.size() < kQueue) {
        queue.push_back(workload.Next());
        const uint64_t number = request + queue.size();
        const auto told = variant_.hints == Hints::kRandom ? others.Random() : queue.back();
        if (variant_.hints == Hints::kNone) continue;
        if (absl::Status s = Announce(number, told); !s.ok()) return s;
      }
      const auto wanted = queue.front();
      queue.pop_front();
      if (variant_.hints == Hints::kRandom) {
        const uint64_t number = request + 1;
        if (auto withdrawn = client_->Withdraw({&number, 1}); !withdrawn.ok()) {
          return withdrawn.status();
        }
      }
      const double start = NowSeconds();
      const AcquireOptions options{0, 0, LeaseMemory::kDevice};
      auto lease = client_->AcquireBlocks(model_, Keys(wanted), options);
      if (!lease.ok()) return lease.status();
      if (absl::Status s = lease->WaitAll(); !s.ok()) return s;
      if (request >= kWarmUpRequests) waited += NowSeconds() - start;
      if (const uint32_t there = lease->usable_chunks(); there != wanted.size()) {
        const auto rest = client_->AcquireBlocks(model_, Keys({wanted[there]}), options);
        return absl::InternalError(absl::StrCat("only ", there, " objects of request ", request,
                                                " were there: ", rest.status().ToString()));
      }
      for (size_t i = 0; i < wanted.size(); ++i) {
        if (absl::Status s = Check(*lease, i, wanted[i]); !s.ok()) return s;
      }
      std::this_thread::sleep_for(kCompute);
    }
    return waited;
  }

  absl::StatusOr<uint64_t> Counted(std::string_view name) {
    const auto status = client_->Status();
    if (!status.ok()) return status.status();
    for (const auto& [counter, value] : status->counters) {
      if (counter == name) return value;
    }
    return absl::InternalError(absl::StrCat("no counter ", std::string(name)));
  }

 private:
  explicit Engine(const Variant& variant) : variant_(variant) {}

  std::vector<ObjectKey> Keys(const std::vector<uint32_t>& objects) const {
    std::vector<ObjectKey> keys;
    for (const uint32_t object : objects) {
      keys.push_back(client_->BlockKey(model_, "", absl::StrCat(object)));
    }
    return keys;
  }

  static void FillBytes(uint32_t object, std::vector<uint8_t>& bytes) {
    uint64_t word = object;
    for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
      word = word * 6364136223846793005u + 1442695040888963407u;
      std::memcpy(bytes.data() + at, &word, 8);
    }
  }

  absl::Status Fill() {
    auto model = client_->RegisterBlocks({"terrace-bench victim", {kObjectBytes}});
    if (!model.ok()) return model.status();
    model_ = *std::move(model);
    std::vector<uint8_t> bytes(kObjectBytes);
    for (uint32_t object = 0; object < kObjects; ++object) {
      FillBytes(object, bytes);
      auto store = client_->BeginBlocks(model_, Keys({object}));
      if (!store.ok()) return store.status();
      absl::Status written = store->Write(0, 1, bytes.data(), bytes.size());
      if (written.ok()) written = store->Commit();
      if (!written.ok()) return written;
      // Before it has to leave host memory.
      if (object % 32 != 31) continue;
      if (absl::Status s = client_->Flush(); !s.ok()) return s;
    }
    return client_->Flush();
  }

  absl::Status Announce(uint64_t number, const std::vector<uint32_t>& objects) {
    const std::vector<ObjectKey> keys = Keys(objects);
    ExpectedRead read;
    read.request_id = number;
    read.order = static_cast<uint32_t>(number);
    read.keys = keys;
    const auto report = client_->Hint({&read, 1});
    return report.ok() ? report->why : report.status();
  }

  absl::Status Check(Lease& lease, size_t block, uint32_t object) {
    const auto bytes = lease.RawPart(block, 1);
    if (!bytes.ok()) return bytes.status();
    expected_.resize(kObjectBytes);
    FillBytes(object, expected_);
    if (*bytes == absl::MakeConstSpan(expected_)) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("object ", object, " has a wrong byte"));
  }

  const Variant variant_;
  Model model_;
  std::unique_ptr<PrivateDaemon> daemon_;
  std::unique_ptr<Client> client_;
  std::vector<uint8_t> expected_;
};

absl::StatusOr<double> Run(const Context& context, const Variant& variant, uint64_t seed,
                           std::string* note) {
  auto engine = Engine::Start(context, variant);
  if (!engine.ok()) return engine.status();
  const auto waited = (*engine)->Serve(seed);
  if (!waited.ok()) return waited.status();
  std::string counts;
  for (const char* name : {"acquired_hbm", "acquired_host", "acquired_nvme", "raised_ahead",
                           "raised_timely", "raised_late", "lowered_objects"}) {
    const auto count = (*engine)->Counted(name);
    if (!count.ok()) return count.status();
    absl::StrAppend(&counts, counts.empty() ? "" : ", ", name, " ", *count);
  }
  Progress(absl::StrFormat("victim: %s, seed %d: %.3f s; %s", variant.name, seed, *waited, counts));
  if (note != nullptr) *note = counts;
  return *waited * 1e3 / kRequests;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunVictim(const Context& context) {
  constexpr size_t kCount = std::size(kVariants);
  std::vector<Pair> pairs[kCount];
  std::string notes[kCount];
  for (int i = 0; i < kPairs; ++i) {
    const uint64_t seed = 100 + static_cast<uint64_t>(i);
    // LRU comes first and last by turns.
    double lru = 0;
    for (size_t step = 0; step <= kCount; ++step) {
      const bool reference = step == (i % 2 == 0 ? 0 : kCount);
      const size_t variant = i % 2 == 0 ? step - 1 : step;
      const auto wait = Run(context, reference ? kLru : kVariants[variant], seed,
                            reference ? nullptr : &notes[variant]);
      if (!wait.ok()) return wait.status();
      if (reference) {
        lru = *wait;
      } else {
        pairs[variant].push_back({*wait, 0});
      }
    }
    for (auto& of_variant : pairs) of_variant.back().reference = lru;
  }
  std::vector<Row> rows;
  for (size_t variant = 0; variant < kCount; ++variant) {
    rows.push_back(MakeRow(absl::StrCat("victim/wait of a request, ", kVariants[variant].name),
                           "ms", "LRU, hints off", pairs[variant]));
    rows.back().note = absl::StrCat("the last: ", notes[variant]);
  }
  return rows;
}

}  // namespace terrace::bench
