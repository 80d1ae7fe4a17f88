#include "replay/tiered.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

namespace terrace::replay {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(VirtualLink, DemandWaitsForOnePieceAtTheMost) {
  VirtualLink link({.bytes_per_s = 1e6, .latency_us = 5}, /*piece_bytes=*/100);
  const auto background = [] { return LinkPiece{7, 0, 100, Traffic::kPrefetch}; };
  auto begun = link.Begin(0, background);
  ASSERT_TRUE(begun.has_value());
  EXPECT_EQ(begun->piece.traffic, Traffic::kPrefetch);
  EXPECT_EQ(begun->free_at, 100u);
  EXPECT_EQ(begun->lands_at, 105u);
  link.Demand(1, 0, 250);
  EXPECT_FALSE(link.Begin(50, background).has_value());  // the piece is not interrupted
  std::vector<uint64_t> bytes;
  for (uint64_t now = 100; link.queued_bytes() > 0;) {
    link.End();
    begun = link.Begin(now, background);
    ASSERT_TRUE(begun.has_value());
    EXPECT_EQ(begun->piece.traffic, Traffic::kDemand);
    bytes.push_back(begun->piece.bytes);
    now = begun->free_at;
  }
  EXPECT_EQ(bytes, (std::vector<uint64_t>{100, 100, 50}));
  link.Write(30);
  link.End();
  EXPECT_EQ(link.Begin(350, background)->piece.traffic, Traffic::kPrefetch);
  link.End();
  const auto nothing = []() -> std::optional<LinkPiece> { return std::nullopt; };
  EXPECT_EQ(link.Begin(450, nothing)->piece.traffic, Traffic::kWrite);
  link.End();
  EXPECT_FALSE(link.Begin(480, nothing).has_value());
  EXPECT_EQ(link.counts().demand_bytes, 250u);
  EXPECT_EQ(link.counts().prefetch_bytes, 200u);
  EXPECT_EQ(link.counts().write_bytes, 30u);
  EXPECT_EQ(link.counts().busy_us, 480u);
}

TEST(VirtualLink, IsAsUsedAsDemandUsesIt) {
  VirtualLink link({.bytes_per_s = 1e6, .latency_us = 0}, 1000);
  const auto prefetch = [] { return LinkPiece{7, 0, 1000, Traffic::kPrefetch}; };
  uint64_t now = 0;
  for (int i = 0; i < 1000; ++i, link.End()) now = link.Begin(now, prefetch)->free_at;
  EXPECT_EQ(link.Utilisation(now), 0);
  link.Demand(1, 0, 5'000'000);
  for (int i = 0; i < 5000; ++i, link.End()) now = link.Begin(now, prefetch)->free_at;
  EXPECT_GT(link.Utilisation(now), 0.95);
  EXPECT_LT(link.Utilisation(now + 10'000'000), 0.01);
}

// Objects of 2 MiB over a bus of 1 MiB a millisecond and a disk of a tenth of that; room for four
// in HBM and for two in the host.
class TieredStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TieredStoreOptions options;
    options.hbm_bytes = 8 * kMiB;
    options.host_bytes = 4 * kMiB;
    options.unit_bytes = kMiB;
    options.pcie = {1000.0 * kMiB, 10};
    options.nvme = {100.0 * kMiB, 100};
    auto store = TieredStore::Create(options);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    for (uint64_t key = 1; key <= 9; ++key) EXPECT_EQ(Use({key}), 0u);  // 1 to 3 are on NVMe
    store_->RunUntil(1'000'000);                                        // all are written
  }
  void TearDown() override {
    const absl::Status status = store_->CheckBytes();
    EXPECT_TRUE(status.ok()) << status;
  }
  // Microseconds of stall.
  uint64_t Use(const std::vector<uint64_t>& keys) {
    std::vector<Access> accesses;
    for (const uint64_t key : keys) accesses.push_back({.key = key, .size = 2});
    const uint64_t before = store_->counts().stall_us;
    const auto found = store_->Demand(accesses);
    EXPECT_TRUE(found.ok()) << found.status();
    store_->Finish(accesses);
    return store_->counts().stall_us - before;
  }
  void Announce(uint64_t request, std::vector<uint64_t> keys, uint64_t due) {
    hints_.clear();
    for (const uint64_t key : keys) hints_.push_back({key, 1});
    ASSERT_TRUE(store_->Announce({HintSource::kQueue, request, 1, request, due, hints_}).ok());
  }

  std::unique_ptr<TieredStore> store_;
  std::vector<AnnouncedKey> hints_;
};

TEST_F(TieredStoreTest, DemandTakesWhatItsLinksTake) {
  EXPECT_EQ(Use({9}), 0u);
  EXPECT_EQ(Use({5}), 2'010u);  // from the host
  // From NVMe, the last of its two pieces up when it has landed.
  EXPECT_EQ(Use({1}), 20'000u + 100 + 1'000 + 10);
  EXPECT_EQ(store_->counts().hbm, 1u);
  EXPECT_EQ(store_->counts().host, 1u);
  EXPECT_EQ(store_->counts().nvme, 1u);
  EXPECT_EQ(store_->counts().created, 9u);
}

TEST_F(TieredStoreTest, WhatIsAnnouncedInTimeIsThere) {
  Announce(1, {1, 2}, store_->now() + 100'000);
  store_->RunUntil(store_->now() + 100'000);
  store_->Started(1, hints_);
  EXPECT_EQ(Use({1, 2}), 0u);
  EXPECT_EQ(store_->to_host().counters(HintSource::kQueue).timely, 2u);
  EXPECT_EQ(store_->to_hbm().counters(HintSource::kQueue).timely, 2u);
  EXPECT_EQ(store_->nvme().counts().demand_bytes, 0u);
  EXPECT_EQ(store_->nvme().counts().prefetch_bytes, 4 * kMiB);
}

TEST_F(TieredStoreTest, DemandJoinsWhatIsOnItsWay) {
  Announce(1, {1}, store_->now() + 30'000);
  store_->RunUntil(store_->now() + 15'000);  // one piece has landed, the other is half read
  store_->Started(1, hints_);
  const uint64_t stall = Use({1});
  EXPECT_GE(stall, 5'000u);
  EXPECT_LE(stall, 7'000u);
  EXPECT_EQ(store_->to_host().counters(HintSource::kQueue).late, 1u);
  const LinkCounts& nvme = store_->nvme().counts();
  EXPECT_EQ(nvme.demand_bytes + nvme.prefetch_bytes, 2 * kMiB);  // nothing is read twice
}

TEST_F(TieredStoreTest, TooLateIsLeftToDemand) {
  Announce(1, {1}, store_->now() + 10'000);
  store_->RunUntil(store_->now() + 10'000);
  EXPECT_EQ(store_->nvme().counts().prefetch_bytes, 0u);
}

TEST_F(TieredStoreTest, ADemandIsDelayedByOnePieceAtTheMost) {
  Announce(1, {1, 2}, store_->now() + 500'000);
  store_->RunUntil(store_->now() + 1'000);  // 9 ms of a piece are left
  EXPECT_EQ(Use({3}), 9'000u + 20'000 + 100 + 1'000 + 10);
}

TEST_F(TieredStoreTest, WhatHbmEvictsAndTheFutureWantsComesBackInItsBucket) {
  for (uint64_t request = 100; request < 140; ++request) {  // the queue is known to be right
    Announce(request, {9}, store_->now() + 1'000);
    store_->RunUntil(store_->now() + 1'000);
    store_->Started(request, hints_);
    Use({9});
  }
  store_->RunUntil(store_->now() + 1'000'000);
  // 6 leaves HBM first and is wanted in half a second: it waits in the victim buffer.
  Announce(1, {6}, store_->now() + 500'000);
  Use({21, 22, 23});
  EXPECT_EQ(store_->counts().victims, 1u);
  store_->RunUntil(store_->now() + 470'000);
  EXPECT_EQ(store_->counts().bucket_objects, 0u);
  store_->RunUntil(store_->now() + 30'000);
  EXPECT_EQ(store_->counts().bucket_objects, 1u);
  store_->Started(1, hints_);
  EXPECT_EQ(Use({6}), 0u);
  EXPECT_EQ(store_->counts().bucket_timely, 1u);
}

TieredJob Fixture(const char* name) {
  TieredJob job;
  job.trace = std::string(TERRACE_TRACES) + "/" + name;
  job.hbm_share = 0.1;
  job.host_share = 0.2;
  if (std::string(name).starts_with("tiny")) {
    job.store.unit_bytes = kMiB;
    job.window = 4;
  }
  return job;
}

TieredReport Replayed(const TieredJob& job) {
  const auto report = ReplayTiers(job);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.ok() ? *report : TieredReport{};
}

class TieredTraces : public ::testing::TestWithParam<const char*> {};

TEST_P(TieredTraces, TheSameJobGivesTheSameResult) {
  TieredJob job = Fixture(GetParam());
  job.hints = HintMode::kQueue;
  job.wrong = 0.3;
  const TieredReport first = Replayed(job), second = Replayed(job);
  EXPECT_EQ(first.counts.stall_us, second.counts.stall_us);
  EXPECT_EQ(first.virtual_us, second.virtual_us);
  EXPECT_EQ(first.pcie.prefetch_bytes, second.pcie.prefetch_bytes);
  EXPECT_EQ(first.counts.victims, second.counts.victims);
  EXPECT_EQ(first.ttft_p99_us, second.ttft_p99_us);
}

TEST_P(TieredTraces, BytesOfDemandAreThoseOfWhatWasFoundBelow) {
  TieredJob job = Fixture(GetParam());
  const TieredReport off = Replayed(job);
  const TieredCounts& counts = off.counts;
  EXPECT_EQ(counts.hbm + counts.host + counts.nvme + counts.created, counts.accesses);
  const auto object =
      static_cast<uint64_t>(job.store.unit_bytes * (off.trace.unit == SizeUnit::kTokens ? 512 : 1));
  EXPECT_EQ(off.nvme.demand_bytes, counts.nvme * object);
  EXPECT_EQ(off.pcie.demand_bytes, (counts.nvme + counts.host) * object);
  EXPECT_EQ(off.pcie.prefetch_bytes + off.nvme.prefetch_bytes, 0u);
}

TEST_P(TieredTraces, WrongHintsCostNextToNothing) {
  TieredJob job = Fixture(GetParam());
  const auto lru = static_cast<double>(Replayed(job).counts.stall_us);
  job.hints = HintMode::kRandom;
  for (job.store.seed = 1; job.store.seed <= 5; ++job.store.seed) {
    for (const bool backlog : {false, true}) {
      job.backlog = backlog;
      EXPECT_LE(static_cast<double>(Replayed(job).counts.stall_us), 1.02 * lru)
          << "seed " << job.store.seed << (backlog ? ", backlog" : "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, TieredTraces,
                         ::testing::Values("mooncake_400.jsonl", "tiny_olmoe_60.jsonl"));

TEST(Tiered, AQueueThatIsKnownHidesItsLoads) {
  TieredJob job = Fixture("mooncake_400.jsonl");
  for (const bool backlog : {false, true}) {
    job.backlog = backlog;
    job.hints = HintMode::kOff;
    const auto lru = static_cast<double>(Replayed(job).counts.stall_us);
    job.hints = HintMode::kQueue;
    const TieredReport known = Replayed(job);
    EXPECT_LE(static_cast<double>(known.counts.stall_us), 0.6 * lru);
    EXPECT_GT(known.to_hbm[0].timely, 0u);
  }
}

}  // namespace
}  // namespace terrace::replay
