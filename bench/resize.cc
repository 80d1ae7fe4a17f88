// resize: what reading costs while the host tier shrinks from 4 GiB to 1 GiB and grows back,
// against the same load before; and what a tenant that floods the tiers costs another one.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "bench/private_daemon.h"
#include "kernels/checksum.h"
#include "kernels/shared_memory.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20, kGiB = uint64_t{1} << 30;
constexpr uint32_t kTokens = 256;
constexpr uint64_t kObjectBytes = kMiB;
constexpr uint32_t kHot = 384;             // objects that are read all the time
constexpr uint32_t kFirstOther = 1 << 16;  // numbers of those that are only stored
constexpr int kPairs = 5;
constexpr double kPhaseSeconds = 2.5;
constexpr double kStoresPerSecond = 150;
constexpr double kShrinkTimeoutSeconds = 60;

// A connection that stores and reads objects of 1 MiB by number, and knows what they must hold.
class Peer {
 public:
  static absl::StatusOr<std::unique_ptr<Peer>> Open(const PrivateDaemon& daemon,
                                                    const std::string& tenant) {
    ConnectionOptions options;
    options.socket_path = daemon.socket_path();
    options.hello.client_name = "terrace-bench";
    options.hello.tenant = tenant;
    auto connection = Connection::Open(std::move(options));
    if (!connection.ok()) return connection.status();
    std::unique_ptr<Peer> peer(new Peer);
    peer->connection_ = *std::move(connection);
    const Welcome welcome = peer->connection_->TakeWelcome();
    for (int fd : {welcome.board_fd, welcome.ready_event_fd}) close(fd);
    auto segment =
        kernels::SharedMemory::Attach(welcome.segment_fd, welcome.host_capacity_bytes, true);
    if (!segment.ok()) return segment.status();
    peer->segment_ = *std::move(segment);
    ObjectLayout& layout = peer->layout_;
    layout.fingerprint.fill(0x42);
    layout.part_bytes_per_token = {kObjectBytes / kTokens};
    const auto layout_id = peer->connection_->RegisterLayout(layout);
    if (!layout_id.ok()) return layout_id.status();
    peer->layout_id_ = *layout_id;
    return peer;
  }

  Connection& connection() { return *connection_; }

  // Waits for room. Ok also when it is there.
  absl::Status Store(uint32_t number) {
    const ReserveItem item{KeyOf(number), {}, kTokens, 0, 1000};
    while (true) {
      auto reserved = connection_->Reserve(layout_id_, {&item, 1});
      if (!reserved.ok()) return reserved.status();
      const ReserveResult& result = reserved->front();
      if (absl::IsAlreadyExists(result.status)) return absl::OkStatus();
      if (absl::IsResourceExhausted(result.status)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(result.retry_after_ms + 1));
        continue;
      }
      if (!result.status.ok()) return result.status;
      uint8_t* payload = segment_.data() + result.offset;
      Fill(number, payload);
      CommitItem commit;
      commit.reservation_id = result.reservation_id;
      for (const PartSpan& part : layout_.Parts(kTokens, 0)) {
        commit.part_crcs.push_back(kernels::Crc32c(payload + part.offset, part.bytes));
      }
      const auto committed = connection_->Commit({&commit, 1});
      return committed.ok() ? committed->front() : committed.status();
    }
  }

  // Acquires and reads, waiting for room as libterrace does; NotFound when it is not there,
  // DataLoss for a wrong byte. An object that is only on NVMe counts as there and is not read.
  absl::Status Load(uint32_t number) {
    absl::Status status = LoadOnce(number);
    while (absl::IsResourceExhausted(status)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      status = LoadOnce(number);
    }
    return status;
  }

 private:
  absl::Status LoadOnce(uint32_t number) {
    const ObjectKey key = KeyOf(number);
    const auto reply = connection_->Acquire(layout_id_, {&key, 1}, AcquireOptions{});
    if (!reply.ok()) return reply.status();
    const AcquireResult& result = reply->results.front();
    absl::Status status = result.status;
    if (status.ok() && result.source == TierId::kHost &&
        !IsWhole(number, segment_.data() + result.offset)) {
      status = absl::DataLossError(absl::StrCat("object ", number, " is not what was stored"));
    }
    if (reply->lease_id != 0) {
      const absl::Status released = connection_->Release({&reply->lease_id, 1});
      if (!released.ok()) return released;
    }
    return status;
  }

  Peer() {
    std::mt19937_64 random(20261126);
    for (uint64_t& word : words_) word = random();
  }

  static ObjectKey KeyOf(uint32_t number) {
    ObjectKey key;
    std::mt19937_64 random(number);
    for (size_t at = 0; at < key.bytes.size(); at += 8) {
      const uint64_t word = random();
      std::memcpy(key.bytes.data() + at, &word, sizeof word);
    }
    return key;
  }
  void Fill(uint32_t number, uint8_t* payload) const {
    std::memcpy(payload, words_.data(), kObjectBytes);
    for (uint64_t at = 0; at < kObjectBytes; at += 4096) {
      std::memcpy(payload + at, &number, sizeof number);
    }
  }
  bool IsWhole(uint32_t number, const uint8_t* payload) const {
    for (uint64_t at = 0; at < kObjectBytes; at += 4096) {
      if (std::memcmp(payload + at, &number, sizeof number) != 0 ||
          std::memcmp(payload + at + 4, reinterpret_cast<const uint8_t*>(words_.data()) + at + 4,
                      4092) != 0) {
        return false;
      }
    }
    return true;
  }

  std::unique_ptr<Connection> connection_;
  kernels::SharedMemory segment_;
  ObjectLayout layout_;
  uint32_t layout_id_ = 0;
  std::vector<uint64_t> words_ = std::vector<uint64_t>(kObjectBytes / 8);
};

// Stores new objects until it goes: at a rate, or as fast as it can (0).
class Flood {
 public:
  Flood(std::unique_ptr<Peer> peer, uint32_t first, double per_second)
      : peer_(std::move(peer)), thread_([this, first, per_second] {
          const double start = NowSeconds();
          for (uint32_t i = 0; !stop_ && status_.ok(); ++i) {
            while (per_second > 0 && !stop_ && NowSeconds() < start + i / per_second) {
              std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            status_ = peer_->Store(first + i);
            stored_ = i;
          }
        }) {}
  ~Flood() { Stop().IgnoreError(); }
  absl::Status Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  uint32_t stored() const { return stored_; }

 private:
  std::unique_ptr<Peer> peer_;
  std::atomic<bool> stop_{false};
  std::atomic<uint32_t> stored_{0};
  absl::Status status_;  // read once the thread has ended
  std::thread thread_;
};

// Seconds of reads of hot objects, at random, until `done`; what was evicted is stored again.
absl::StatusOr<std::vector<double>> ReadUntil(Peer& peer, std::mt19937& random,
                                              absl::FunctionRef<bool()> done) {
  std::vector<double> times;
  while (!done()) {
    const uint32_t number = random() % kHot;
    const double start = NowSeconds();
    absl::Status status = peer.Load(number);
    if (status.ok()) times.push_back(NowSeconds() - start);
    if (absl::IsNotFound(status)) status = peer.Store(number);
    if (!status.ok()) return status;
  }
  if (times.empty()) return absl::InternalError("nothing was read");
  return times;
}

// One daemon, one reader, and a resize at a time.
class ResizeLoad {
 public:
  static absl::StatusOr<std::unique_ptr<ResizeLoad>> Start(const PrivateDaemon& daemon) {
    std::unique_ptr<ResizeLoad> load(new ResizeLoad(daemon));
    auto reader = Peer::Open(daemon, "");
    if (!reader.ok()) return reader.status();
    load->reader_ = *std::move(reader);
    auto admin = daemon.Connect();
    if (!admin.ok()) return admin.status();
    load->admin_ = *std::move(admin);
    for (uint32_t number = 0; number < kHot; ++number) {
      absl::Status status = load->reader_->Store(number);
      if (!status.ok()) return status;
    }
    return load;
  }

  // Stores beside what is read from now on; what stored before ends.
  absl::Status StoreBeside(double per_second) {
    if (flood_ != nullptr) {
      next_ += flood_->stored() + 1;
      absl::Status stopped = flood_->Stop();
      if (!stopped.ok()) return stopped;
    }
    auto peer = Peer::Open(daemon_, "");
    if (!peer.ok()) return peer.status();
    flood_ = std::make_unique<Flood>(*std::move(peer), next_, per_second);
    return absl::OkStatus();
  }

  // As fast as it goes, until the tier has been filled.
  absl::Status FillUp() {
    absl::Status status = StoreBeside(0);
    if (!status.ok()) return status;
    status = ReadUntil(*reader_, random_, [&] { return flood_->stored() > 4096; }).status();
    return status.ok() ? StoreBeside(kStoresPerSecond) : status;
  }

  // p99 of reads while nothing changes, us.
  absl::StatusOr<double> Steady() {
    const double end = NowSeconds() + kPhaseSeconds;
    return P99(ReadUntil(*reader_, random_, [&] { return NowSeconds() > end; }));
  }

  // p99 while the tier is on its way to so many bytes, and for a second at least, us.
  absl::StatusOr<double> Resizing(uint64_t bytes) {
    absl::Status failed = admin_->Resize({"host", "", bytes}).status();
    const double start = NowSeconds();
    double asked = start;
    bool resized = false;
    auto times = ReadUntil(*reader_, random_, [&] {
      const double now = NowSeconds();
      if (!resized && now > asked + 0.02) {
        asked = now;
        const auto reply = admin_->Resize({"host", "", 0});
        if (!reply.ok()) failed = reply.status();
        resized = reply.ok() && reply->done;
        if (resized) seconds_ = now - start;
        if (now > start + kShrinkTimeoutSeconds) {
          failed = absl::DeadlineExceededError("the tier did not get to its size");
        }
      }
      return !failed.ok() || (resized && now > start + 1);
    });
    return failed.ok() ? P99(std::move(times)) : failed;
  }
  double seconds() const { return seconds_; }  // that the last resize took

 private:
  explicit ResizeLoad(const PrivateDaemon& daemon) : daemon_(daemon) {}
  static absl::StatusOr<double> P99(absl::StatusOr<std::vector<double>> times) {
    if (!times.ok()) return times.status();
    return Percentile(*times, 99) * 1e6;
  }

  const PrivateDaemon& daemon_;
  std::unique_ptr<Peer> reader_;
  std::unique_ptr<Connection> admin_;
  std::unique_ptr<Flood> flood_;
  std::mt19937 random_{1};
  uint32_t next_ = kFirstOther;
  double seconds_ = 0;
};

struct ResizePairs {
  std::vector<Pair> shrink, growth;
  std::vector<double> shrink_seconds;
};

absl::Status MeasureResize(const PrivateDaemon& daemon, ResizePairs& pairs) {
  auto started = ResizeLoad::Start(daemon);
  if (!started.ok()) return started.status();
  ResizeLoad& load = **started;
  for (int pair = 0; pair < kPairs; ++pair) {
    absl::Status filled = load.FillUp();
    if (!filled.ok()) return filled;
    const auto before = load.Steady();
    const auto shrinking = load.Resizing(kGiB);
    pairs.shrink_seconds.push_back(load.seconds());
    const auto before_growth = load.Steady();
    const auto growing = load.Resizing(4 * kGiB);
    for (const auto* figure : {&before, &shrinking, &before_growth, &growing}) {
      if (!figure->ok()) return figure->status();
    }
    pairs.shrink.push_back({*shrinking, *before});
    pairs.growth.push_back({*growing, *before_growth});
    Progress(absl::StrCat("pair ", pair + 1, ": p99 before ", *before, " us, shrinking ",
                          *shrinking, " us in ", pairs.shrink_seconds.back(), " s; before growth ",
                          *before_growth, " us, growing ", *growing, " us"));
  }
  return absl::OkStatus();
}

// How many of 8,000 accesses of a skewed choice among `objects` find what they want.
absl::StatusOr<double> HitPercent(Peer& peer, uint32_t objects, uint32_t seed) {
  constexpr int kAccesses = 8000;
  std::mt19937 random(seed);
  int hits = 0;
  for (int i = 0; i < kAccesses; ++i) {
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    const auto number = static_cast<uint32_t>(objects * u * u * u);
    absl::Status status = peer.Load(number);
    hits += status.ok() ? 1 : 0;
    if (absl::IsNotFound(status)) status = peer.Store(number);
    if (!status.ok()) return status;
  }
  return 100.0 * hits / kAccesses;
}

// The tenant with 30% of both tiers, alone and beside one with 70% that stores as fast as it can.
absl::StatusOr<Row> MeasureFlood(const Context& context) {
  DaemonConfig config;
  config.host_bytes = 512 * kMiB;
  config.nvme_bytes = 2 * kGiB;
  config.nvme_keys = "segment_size = \"16MiB\"\nadmission = \"always\"\n";
  config.codec_keys =
      "[[tenants]]\nname = \"quiet\"\nuids = [4000001]\nhost_capacity = \"30%\"\n"
      "nvme_capacity = \"30%\"\n[[tenants]]\nname = \"flooding\"\nuids = [4000002]\n"
      "host_capacity = \"70%\"\nnvme_capacity = \"70%\"\n";
  auto daemon = PrivateDaemon::Start(context, "flood", config);
  if (!daemon.ok()) return daemon.status();
  auto quiet = Peer::Open(**daemon, "quiet");
  if (!quiet.ok()) return quiet.status();
  constexpr uint32_t kObjects = 800;  // more than its 30% of both tiers hold
  std::vector<Pair> pairs;
  uint32_t next = kFirstOther;
  if (auto warm = HitPercent(**quiet, kObjects, 99); !warm.ok()) return warm.status();
  for (uint32_t pair = 0; pair < kPairs; ++pair) {
    const auto alone = HitPercent(**quiet, kObjects, 2 * pair);
    if (!alone.ok()) return alone.status();
    auto peer = Peer::Open(**daemon, "flooding");
    if (!peer.ok()) return peer.status();
    Flood flood(*std::move(peer), next, 0);
    const auto beside = HitPercent(**quiet, kObjects, 2 * pair + 1);
    next += flood.stored() + 1;
    absl::Status stopped = flood.Stop();
    if (!stopped.ok()) return stopped;
    if (!beside.ok()) return beside.status();
    pairs.push_back({*beside, *alone});
    Progress(absl::StrCat("quiet tenant: ", *alone, "% of accesses hit alone, ", *beside,
                          "% beside a flood of ", flood.stored(), " MiB"));
  }
  Row row = MakeRow("hit_rate_beside_a_flooding_tenant", "%", "the same tenant alone", pairs);
  row.note = "30% of both tiers against 70%; the bar is a point of hit rate";
  return row;
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunResize(const Context& context) {
  DaemonConfig config;
  config.host_bytes = 4 * kGiB;
  auto daemon = PrivateDaemon::Start(context, "resize", config);
  if (!daemon.ok()) return daemon.status();
  ResizePairs pairs;
  absl::Status measured = MeasureResize(**daemon, pairs);
  if (!measured.ok()) return measured;
  daemon->reset();
  Row shrink = MakeRow("read_p99_while_shrinking", "us", "before", pairs.shrink);
  shrink.note = absl::StrCat("acquire, read and compare 1 MiB; 4 GiB to 1 GiB in ",
                             Percentile(pairs.shrink_seconds, 50), " s (median)");
  std::vector<Row> rows = {std::move(shrink),
                           MakeRow("read_p99_while_growing", "us", "before", pairs.growth)};
  auto flood = MeasureFlood(context);
  if (!flood.ok()) return flood.status();
  rows.push_back(*std::move(flood));
  return rows;
}

}  // namespace terrace::bench
