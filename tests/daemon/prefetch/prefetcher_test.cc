#include "daemon/prefetch/prefetcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace terrace {
namespace {

using ::testing::ElementsAre;
using Outcome = Prefetcher::Demanded::Outcome;

constexpr uint64_t kPiece = 1 << 20;
constexpr HintSource kQueue = HintSource::kQueue;

// A link of one piece a millisecond; objects of three pieces.
class PrefetcherTest : public ::testing::Test {
 protected:
  void Announce(uint64_t request, std::vector<uint64_t> keys, uint64_t due, float confidence = 1,
                HintSource source = kQueue) {
    std::vector<AnnouncedKey> announced;
    for (uint64_t key : keys) announced.push_back({key, confidence});
    ASSERT_TRUE(lookahead_.Announce({source, request, 0, 0, due, announced}).ok());
  }
  std::optional<PrefetchPiece> Next() {
    return prefetcher_.Next(link_, window_end_, [this](uint64_t key) {
      return PrefetchTarget{above_.contains(key) ? 0 : 3 * kPiece, 0, victim_loss_us_};
    });
  }
  // Moves whatever is worth it; the keys that are complete then.
  std::vector<uint64_t> MoveAll() {
    std::vector<uint64_t> complete;
    while (const auto piece = Next()) {
      if (prefetcher_.Arrived(piece->key_head, piece->bytes)) {
        above_.insert(piece->key_head);
        complete.push_back(piece->key_head);
      }
    }
    return complete;
  }
  Outcome Demand(uint64_t key) {
    lookahead_.Used(key);
    return prefetcher_.Demand(key).outcome;
  }
  void Leave(uint64_t key) {
    above_.erase(key);
    prefetcher_.Left(key);
  }
  const PrefetchCounters& count(HintSource source = kQueue) { return prefetcher_.counters(source); }

  uint64_t now_ = 1'000'000;
  uint64_t window_end_ = kNeverUsed, victim_loss_us_ = 0;
  std::set<uint64_t> above_;
  PrefetchLink link_{.bytes_per_s = kPiece * 1e3, .latency_us = 100};
  Lookahead lookahead_{LookaheadOptions{.trial_hints = 0}, [this] { return now_; }};
  Prefetcher prefetcher_{PrefetchOptions{}, &lookahead_, [this] { return now_; }};
};

TEST_F(PrefetcherTest, PieceByPieceTheEarliestFirst) {
  Announce(1, {1}, now_ + 900'000);
  Announce(2, {2}, now_ + 500'000);
  std::vector<uint64_t> keys, offsets;
  while (const auto piece = Next()) {
    keys.push_back(piece->key_head);
    offsets.push_back(piece->offset);
    EXPECT_EQ(piece->bytes, kPiece);
    EXPECT_EQ(piece->object_bytes, 3 * kPiece);
    if (prefetcher_.Arrived(piece->key_head, piece->bytes)) above_.insert(piece->key_head);
  }
  EXPECT_THAT(keys, ElementsAre(2, 2, 2, 1, 1, 1));
  EXPECT_THAT(offsets, ElementsAre(0, kPiece, 2 * kPiece, 0, kPiece, 2 * kPiece));
  EXPECT_EQ(Demand(2), Outcome::kTimely);
  EXPECT_EQ(Demand(2), Outcome::kNotPrefetched);
  Leave(1);
  EXPECT_EQ(count().issued, 2u);
  EXPECT_EQ(count().timely, 1u);
  EXPECT_EQ(count().unused, 1u);
  EXPECT_EQ(count().unused_bytes, 3 * kPiece);
  EXPECT_THAT(MoveAll(), ElementsAre(1));  // it left and is wanted still
}

TEST_F(PrefetcherTest, ExpertsBeforeTheQueueBeforeSessions) {
  Announce(1, {1}, now_ + 200'000, 1, HintSource::kSession);
  Announce(2, {2}, now_ + 300'000);
  Announce(3, {3}, now_ + 400'000, 1, HintSource::kExperts);
  EXPECT_THAT(MoveAll(), ElementsAre(3, 2, 1));
}

TEST_F(PrefetcherTest, NeitherTooLateNorTooEarly) {
  Announce(1, {1}, now_ + 2'000);    // takes 3.1 ms
  Announce(2, {2}, now_ + 500'000);  // beyond the window
  Announce(3, {3}, now_ + 400'000);
  window_end_ = now_ + 450'000;
  EXPECT_THAT(MoveAll(), ElementsAre(3));
  window_end_ = now_ + 600'000;
  EXPECT_THAT(MoveAll(), ElementsAre(2));
  // What queues before it counts.
  Announce(4, {4}, now_ + 6'000);
  link_.queued_bytes = 4 * kPiece;
  EXPECT_FALSE(Next().has_value());
}

TEST_F(PrefetcherTest, OnlyAtPositiveExpectedValue) {
  victim_loss_us_ = 10'000;  // against 3,100 us saved
  Announce(1, {1}, now_ + 500'000, 0.5f);
  Announce(2, {2}, now_ + 500'000, 0.9f);
  EXPECT_THAT(MoveAll(), ElementsAre(2));
  victim_loss_us_ = 0;
  now_ += PrefetchOptions{}.review_us;
  EXPECT_THAT(MoveAll(), ElementsAre(1));
  link_.utilisation = 1;  // 3,000 us of a link that others wait for
  Announce(3, {3}, now_ + 500'000, 0.3f);
  EXPECT_FALSE(Next().has_value());
  link_.utilisation = 0.1;
  now_ += PrefetchOptions{}.review_us;
  EXPECT_THAT(MoveAll(), ElementsAre(3));
}

TEST_F(PrefetcherTest, CancelledWhenItsReasonGoes) {
  Announce(1, {1}, now_ + 500'000);
  Announce(2, {1}, now_ + 900'000);
  auto piece = Next();
  ASSERT_TRUE(piece.has_value());
  EXPECT_FALSE(prefetcher_.Arrived(1, piece->bytes));
  lookahead_.Withdraw(1);
  EXPECT_THAT(prefetcher_.TakeCancelled(), ElementsAre());  // the second request wants it still
  ASSERT_TRUE(Next().has_value());
  lookahead_.Withdraw(2);
  EXPECT_FALSE(Next().has_value());
  EXPECT_THAT(prefetcher_.TakeCancelled(), ElementsAre(1));
  EXPECT_FALSE(prefetcher_.Arrived(1, kPiece));  // the piece that was on its way
  EXPECT_EQ(count().cancelled, 1u);
  EXPECT_EQ(count().unused_bytes, 2 * kPiece);
  EXPECT_EQ(prefetcher_.objects_on_their_way(), 0u);
}

TEST_F(PrefetcherTest, DemandJoinsWhatIsOnItsWay) {
  Announce(1, {1}, now_ + 500'000);
  ASSERT_TRUE(Next().has_value());
  lookahead_.Started(1);
  EXPECT_FALSE(Next().has_value());  // the rest is for the demand to move
  EXPECT_THAT(prefetcher_.TakeCancelled(), ElementsAre());
  const auto joined = prefetcher_.Demand(1);
  EXPECT_EQ(joined.outcome, Outcome::kJoined);
  EXPECT_EQ(joined.issued_bytes, kPiece);
  EXPECT_FALSE(prefetcher_.Arrived(1, kPiece));
  EXPECT_EQ(count().late, 1u);
  EXPECT_EQ(count().timely, 0u);
}

TEST_F(PrefetcherTest, NoRoomIsTriedAgainLater) {
  Announce(1, {1}, now_ + 500'000);
  ASSERT_TRUE(Next().has_value());
  prefetcher_.Refused(1);
  EXPECT_FALSE(Next().has_value());
  EXPECT_EQ(count().refused, 1u);
  EXPECT_EQ(count().issued, 0u);
  EXPECT_EQ(count().issued_bytes, 0u);
  now_ += PrefetchOptions{}.review_us;
  EXPECT_THAT(MoveAll(), ElementsAre(1));
}

TEST_F(PrefetcherTest, ASourceOnTrialMayRiskOnlySoMuch) {
  std::vector<uint64_t> keys(200);
  for (uint64_t i = 0; i < keys.size(); ++i) keys[i] = i + 1;
  Announce(1, keys, now_ + 900'000);
  const size_t at_risk = PrefetchOptions{}.trial_bytes / (3 * kPiece);
  for (const size_t expected : {at_risk, at_risk, keys.size() - 2 * at_risk}) {
    const std::vector<uint64_t> moved = MoveAll();
    EXPECT_EQ(moved.size(), expected);
    for (uint64_t key : moved) Demand(key);
    now_ += PrefetchOptions{}.review_us;
  }
}

// Every hint comes true by the calibration, but what is prefetched always leaves before.
TEST_F(PrefetcherTest, ASourceThatStopsPayingGoesIntoShadowAndComesBack) {
  uint64_t request = 0;
  const auto round = [&](bool pays) {
    ++request;
    Announce(request, {request}, now_ + 300'000);
    for (uint64_t key : MoveAll()) {
      if (!pays) Leave(key);
    }
    if (!pays) Demand(request);  // all the same: p stays high
    if (!pays) above_.insert(request);
    now_ += 300'000;
    lookahead_.Started(request);
    Demand(request);
  };
  for (int i = 0; i < 100; ++i) round(true);
  EXPECT_TRUE(prefetcher_.on(kQueue));
  EXPECT_EQ(count().timely, 100u);
  for (int i = 0; i < 2000 && prefetcher_.on(kQueue); ++i) round(false);
  EXPECT_FALSE(prefetcher_.on(kQueue));
  const uint64_t issued = count().issued;
  for (int i = 0; i < 10; ++i) round(true);
  EXPECT_EQ(count().issued, issued);  // nothing moves,
  EXPECT_EQ(count().shadow, 10u);     // but it is watched
  for (int i = 0; i < 100; ++i) round(true);
  EXPECT_TRUE(prefetcher_.on(kQueue));
  EXPECT_GT(count().issued, issued);
  EXPECT_EQ(prefetcher_.account(kQueue).switches(), 2u);
}

TEST_F(PrefetcherTest, WrongHintsSilenceThemselves) {
  for (uint64_t request = 1; request <= 200; ++request) {
    victim_loss_us_ = 1'000;
    Announce(request, {2 * request, 2 * request + 1}, now_ + 100'000);
    for (uint64_t key : MoveAll()) Leave(key);
    now_ += 100'000;
    lookahead_.Started(request);
  }
  EXPECT_LT(count().issued, 60u);  // of 400
}

TEST_F(PrefetcherTest, WhatLeftForAPrefetchAndIsMissedIsPollution) {
  for (uint64_t request = 1; request <= 60; ++request) {
    Announce(request, {request}, now_ + 300'000);
    while (const auto piece = Next()) {
      if (piece->offset == 0) prefetcher_.Displaced(piece->key_head, 1000 + request, 10'000);
      if (prefetcher_.Arrived(piece->key_head, piece->bytes)) above_.insert(piece->key_head);
    }
    Demand(1000 + request);  // costs more than
    Demand(request);         // this saves
  }
  EXPECT_GT(count().pollution, 5u);
  EXPECT_FALSE(prefetcher_.on(kQueue));
  EXPECT_EQ(count().issued, count().timely);
}

}  // namespace
}  // namespace terrace
