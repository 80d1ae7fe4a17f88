// The tier under load while the device does everything a device may do wrong, at random; now and
// then it is stopped and started again meanwhile. No byte may be wrong, nothing durable may be lost
// that a fault did not destroy, and when the faults end the tier serves as before.
//
//   TERRACE_FAULT_SECONDS=600  of faults; the default keeps the suite short
//   TERRACE_FAULT_SEED=7       what happens follows from it, up to the timing of threads
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>

#include "spdlog/spdlog.h"
#include "tests/support/faulty_system.h"
#include "tests/tiers/nvme/nvme_fixture.h"

namespace terrace {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr size_t kWrites = 8, kReads = 4;  // in flight
constexpr size_t kMaxPinned = 6;
constexpr double kServiceAfterS = 5;  // as before the faults, this long after the last
constexpr double kMinRatio = 0.9;
constexpr double kLongRunS = 60;  // shorter ones say nothing about throughput

double FromEnvironment(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::stod(text) : otherwise;
}

// 8 to 400 KiB that follow from the number.
TestObject ObjectOf(uint32_t number) {
  std::mt19937_64 random(number * uint64_t{0x9e3779b97f4a7c15});
  const uint32_t parts = 1 + random() % 4;
  TestObject object = MakeObject(number, parts, (8 * kKiB + random() % (392 * kKiB)) / parts);
  object.meta.lifetime = static_cast<Lifetime>(random() % kLifetimes);
  return object;
}

class FaultSoakTest : public testing::Test {
 protected:
  struct Stored {
    RecordId id = kNoRecord;
    ObjectKey key;
    bool pinned = false;
  };
  struct Tally {
    uint64_t operations = 0, bytes = 0, read_back = 0, failed = 0, restarts = 0, failed_starts = 0;
    uint64_t unavailable = 0, damaged = 0, wrong = 0, lost = 0, half_visible = 0;
  };

  FaultSoakTest() {
    options_.directory = scratch_.path() + "/nvme";
    options_.segment_bytes = 4 * kMiB;
    options_.capacity_bytes = 24 * options_.segment_bytes;
    options_.piece_bytes = 128 * kKiB;
    options_.system = &system_;
    spdlog::set_level(spdlog::level::off);  // of faults there is much to say
    system_.ModelDisk();                    // to know which objects a fault destroyed
    ticker_ = std::jthread([post = loop_.post()](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        post([] {});
      }
    });
  }

  absl::Status Start();
  void Restart();
  void SetFaults();
  void RunFor(double seconds);
  double Throughput(double seconds);
  void SubmitSome();
  void Write();
  void Read(uint32_t number, const Stored& stored);
  void Finish(uint32_t number, const Stored& stored, const absl::StatusOr<RecordMeta>& read,
              const TestObject& object, const uint8_t* payload);
  void EraseOrPin();
  void Settle();
  void ExpectCapacityKept();
  void ExpectAllReadable();
  void Report(double before, double after) const;
  std::map<uint32_t, Stored>::iterator AnyLive() {
    return std::next(live_.begin(), static_cast<long>(random_() % live_.size()));
  }
  bool Chance(double share) { return static_cast<double>(random_() >> 11) * 0x1p-53 < share; }

  const double seconds_ = FromEnvironment("TERRACE_FAULT_SECONDS", 8);
  const uint64_t seed_ = static_cast<uint64_t>(FromEnvironment("TERRACE_FAULT_SEED", 1));
  std::mt19937_64 random_{seed_};
  TemporaryDirectory scratch_;
  FaultySystem system_{seed_ + 1};
  NvmeOptions options_;
  TestLoop loop_;
  std::unique_ptr<NvmeTier> tier_;
  std::map<uint32_t, Stored> live_;
  std::map<uint32_t, Stored> hidden_;  // in segments that could not be read at the last start
  size_t writing_ = 0, reading_ = 0;
  uint32_t next_ = 1;
  bool faults_ = false;  // now
  Clock::time_point no_writes_before_;
  Tally tally_;
  std::jthread ticker_;
};

// Everything that was durable must come back, unless a fault destroyed it; with faults at the
// start, at the next one without.
absl::Status FaultSoakTest::Start() {
  auto tier = NvmeTier::Open(options_, loop_.post());
  if (!tier.ok()) return tier.status();
  std::map<uint32_t, Stored> expected = hidden_;
  expected.merge(live_);
  live_.clear();
  tier_ = *std::move(tier);
  tier_->OnDropped([this](RecordId id, const ObjectKey&) {
    auto dropped = std::find_if(live_.begin(), live_.end(),
                                [id](const auto& entry) { return entry.second.id == id; });
    if (dropped == live_.end()) return;
    EXPECT_FALSE(dropped->second.pinned)
        << "pinned object " << dropped->first << " was dropped, seed " << seed_ << ": "
        << (system_.IsDamaged(dropped->second.key) ? "destroyed by a fault" : "whole");
    live_.erase(dropped);
  });
  std::vector<RecordId> duplicates;
  const absl::Status status = tier_->Recover([](uint64_t) {},
                                             [&](RecordId id, RecordMeta& meta) {
                                               const bool pinned =
                                                   (meta.flags & kRecordPinned) != 0;
                                               const Stored stored{id, meta.key, pinned};
                                               if (!live_.try_emplace(meta.cost_us, stored).second)
                                                 duplicates.push_back(id);
                                             });
  if (!status.ok()) {
    tier_.reset();
    live_ = std::move(expected);
    hidden_.clear();
    return status;
  }
  for (RecordId id : duplicates) tier_->Erase(id);
  hidden_.clear();
  for (const auto& [number, stored] : expected) {
    if (live_.contains(number)) continue;
    if (system_.IsDamaged(stored.key)) {
      ++tally_.damaged;
    } else if (faults_) {
      hidden_[number] = stored;
    } else {
      ++tally_.lost;
      ADD_FAILURE() << "lost: durable object " << number << ", seed " << seed_;
    }
  }
  return absl::OkStatus();
}

void FaultSoakTest::Restart() {
  Settle();
  tier_.reset();
  ++tally_.restarts;
  if (Start().ok()) return;
  ASSERT_TRUE(faults_) << "the tier does not start, seed " << seed_;
  ++tally_.failed_starts;
  system_.ClearFaults();
  faults_ = false;
  const absl::Status status = Start();
  ASSERT_TRUE(status.ok()) << status << ", seed " << seed_;
}

// Some kinds of faults, at some rates, or none.
void FaultSoakTest::SetFaults() {
  system_.ClearFaults();
  faults_ = !Chance(0.2);
  if (!faults_) return;
  if (Chance(0.15)) {
    system_.SetStorm(true);
    return;
  }
  constexpr std::array<std::pair<Fault, double>, kFaults> kHighest = {{
      {Fault::kReadError, 0.02},
      {Fault::kWriteError, 0.02},
      {Fault::kSyncError, 0.02},
      {Fault::kTransient, 0.2},
      {Fault::kNoSpace, 0.1},
      {Fault::kShort, 0.3},
      {Fault::kDelay, 0.1},
      {Fault::kTornWrite, 0.01},
      {Fault::kMisdirectedWrite, 0.01},
      {Fault::kLostSync, 0.1},
      {Fault::kIndexError, 0.2},
  }};
  for (const auto& [fault, highest] : kHighest) {
    if (Chance(0.3)) system_.SetRate(fault, highest * static_cast<double>(random_() % 100) / 100);
  }
}

void FaultSoakTest::SubmitSome() {
  while (writing_ < kWrites && Clock::now() >= no_writes_before_) Write();
  while (reading_ < kReads && !live_.empty()) {
    auto [number, stored] = *AnyLive();
    tier_->Touch(stored.id);
    Read(number, stored);
  }
  if (Chance(0.05) && !live_.empty()) EraseOrPin();
  tier_->Tick();
}

void FaultSoakTest::RunFor(double seconds) {
  const auto end = Clock::now() + Seconds(seconds);
  loop_.RunUntil(
      [&] {
        SubmitSome();
        return Clock::now() >= end;
      },
      std::chrono::seconds(static_cast<int>(seconds) + 30));
}

// Bytes a second, written and read.
double FaultSoakTest::Throughput(double seconds) {
  const uint64_t before = tally_.bytes;
  const auto start = Clock::now();
  RunFor(seconds);
  return static_cast<double>(tally_.bytes - before) / Seconds(Clock::now() - start).count();
}

void FaultSoakTest::Write() {
  const uint32_t number = next_++;
  auto object = std::make_shared<TestObject>(ObjectOf(number));
  ++writing_;
  tier_->Write(
      {object->meta, object->payload.data(), IoPriority::kBackground,
       [this, number, object](const absl::StatusOr<RecordId>& id) {
         --writing_;
         ++tally_.operations;
         if (id.ok()) {
           tally_.bytes += object->meta.payload_bytes;
           live_[number] = {*id, object->meta.key, false};
           return;
         }
         ++tally_.failed;
         EXPECT_TRUE(absl::IsResourceExhausted(id.status()) || absl::IsUnavailable(id.status()))
             << id.status();
         no_writes_before_ = Clock::now() + std::chrono::milliseconds(2);
       }});
}

void FaultSoakTest::Read(uint32_t number, const Stored& stored) {
  auto object = std::make_shared<TestObject>(ObjectOf(number));
  auto payload = std::make_shared<kernels::AlignedBuffer>(object->meta.payload_bytes);
  ReadRequest request;
  request.record = stored.id;
  request.key = stored.key;
  request.fingerprint = object->meta.fingerprint;
  request.destination = payload->data();
  request.done = [this, number, stored, object, payload](const absl::StatusOr<RecordMeta>& read) {
    --reading_;
    ++tally_.operations;
    Finish(number, stored, read, *object, payload->data());
  };
  ++reading_;
  tier_->Read(std::move(request));
}

void FaultSoakTest::Finish(uint32_t number, const Stored& stored,
                           const absl::StatusOr<RecordMeta>& read, const TestObject& object,
                           const uint8_t* payload) {
  if (read.ok()) {
    ++tally_.read_back;
    tally_.bytes += read->payload_bytes;
    if (read->part_crcs == object.meta.part_crcs &&
        std::memcmp(payload, object.payload.data(), read->payload_bytes) == 0) {
      return;
    }
    ++tally_.wrong;
    ADD_FAILURE() << "wrong bytes of object " << number << ", seed " << seed_;
    return;
  }
  ++tally_.failed;
  auto live = live_.find(number);
  if (live == live_.end() || live->second.id != stored.id) return;  // erased or dropped meanwhile
  if (absl::IsDataLoss(read.status())) {
    live_.erase(live);
    if (system_.IsDamaged(stored.key)) {
      ++tally_.damaged;
      return;
    }
    ++tally_.lost;
    ADD_FAILURE() << "lost: object " << number << ", seed " << seed_ << ": " << read.status();
    return;
  }
  ++tally_.unavailable;  // the device did not give it now
}

void FaultSoakTest::EraseOrPin() {
  auto live = AnyLive();
  const auto pinned = std::count_if(live_.begin(), live_.end(),
                                    [](const auto& entry) { return entry.second.pinned; });
  if (live->second.pinned || (Chance(0.5) && pinned < static_cast<long>(kMaxPinned))) {
    live->second.pinned = !live->second.pinned;
    tier_->SetPinned(live->second.id, live->second.pinned);
  } else {
    tier_->Erase(live->second.id);
    live_.erase(live);
  }
}

// Waits for all answers.
void FaultSoakTest::Settle() {
  ASSERT_TRUE(loop_.RunUntil([this] { return writing_ == 0 && reading_ == 0; }))
      << writing_ << " writes and " << reading_ << " reads are never answered, seed " << seed_;
}

void FaultSoakTest::ExpectCapacityKept() {
  uint64_t bytes = 0;
  for (const auto& file : std::filesystem::directory_iterator(options_.directory + "/segments")) {
    std::error_code gone;  // meanwhile
    const uint64_t size = file.file_size(gone);
    bytes += gone ? 0 : size;
  }
  EXPECT_LE(bytes, options_.capacity_bytes) << "seed " << seed_;
}

// Without faults: whole, or destroyed by one before.
void FaultSoakTest::ExpectAllReadable() {
  const std::map<uint32_t, Stored> visible = live_;
  const uint64_t unavailable = tally_.unavailable;
  for (const auto& [number, stored] : visible) {
    Read(number, stored);
    ASSERT_TRUE(loop_.RunUntil([this] { return reading_ < kReads; }));
  }
  Settle();
  tally_.half_visible = tally_.unavailable - unavailable;
  EXPECT_EQ(tally_.half_visible, 0u) << "neither whole nor destroyed, seed " << seed_;
}

void FaultSoakTest::Report(double before, double after) const {
  std::printf(
      "seed %llu: %.0f s of faults, %llu operations (%llu failed), %.1f GB moved, %llu restarts "
      "(%llu of them first refused)\n",
      static_cast<unsigned long long>(seed_), seconds_,
      static_cast<unsigned long long>(tally_.operations),
      static_cast<unsigned long long>(tally_.failed), static_cast<double>(tally_.bytes) / 1e9,
      static_cast<unsigned long long>(tally_.restarts),
      static_cast<unsigned long long>(tally_.failed_starts));
  for (int fault = 0; fault < kFaults; ++fault) {
    const auto which = static_cast<Fault>(fault);
    std::printf("%s%s %llu", fault == 0 ? "injected: " : ", ", FaultName(which),
                static_cast<unsigned long long>(system_.injected(which)));
  }
  std::printf(
      "\n%llu objects read back whole, %llu destroyed by faults; %llu wrong, %llu lost, %llu half "
      "visible\nthroughput %.0f MB/s before the first fault, %.0f MB/s after the last: %.2f\n",
      static_cast<unsigned long long>(tally_.read_back),
      static_cast<unsigned long long>(tally_.damaged),
      static_cast<unsigned long long>(tally_.wrong), static_cast<unsigned long long>(tally_.lost),
      static_cast<unsigned long long>(tally_.half_visible), before / 1e6, after / 1e6,
      after / before);
}

TEST_F(FaultSoakTest, NothingIsWrongOrLostAndServiceReturns) {
  const bool long_run = seconds_ >= kLongRunS;
  const double window = long_run ? 2 : 0.3;
  ASSERT_TRUE(Start().ok());
  RunFor(long_run ? 5 : 0.5);  // the store is full, and segments give way
  const double before = Throughput(window);
  const auto end = Clock::now() + Seconds(seconds_);
  while (Clock::now() < end && !HasFatalFailure()) {
    SetFaults();
    RunFor(0.1 + static_cast<double>(random_() % 500) / 1000);
    ExpectCapacityKept();
    if (Chance(0.35)) Restart();
  }
  ASSERT_FALSE(HasFatalFailure());
  system_.ClearFaults();
  faults_ = false;
  RunFor(kServiceAfterS - window);
  EXPECT_TRUE(tier_->in_service()) << tier_->Stats().health;
  const double after = Throughput(window);
  Settle();
  Restart();
  EXPECT_TRUE(hidden_.empty());
  ExpectAllReadable();
  ExpectCapacityKept();
  Report(before, after);
  EXPECT_GT(after, 0);
  if (long_run) {
    EXPECT_GE(after / before, kMinRatio);
  }
}

}  // namespace
}  // namespace terrace
