#include "daemon/prefetch/lookahead.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class LookaheadTest : public ::testing::Test {
 protected:
  absl::Status Queue(uint64_t request, uint64_t order, std::vector<uint64_t> keys,
                     uint64_t eta = kUnknownUse, uint64_t queue = 1) {
    return Say(HintSource::kQueue, request, queue, order, keys, eta);
  }
  absl::Status Say(HintSource source, uint64_t request, uint64_t queue, uint64_t order,
                   const std::vector<uint64_t>& keys, uint64_t eta = kUnknownUse,
                   float confidence = 1) {
    std::vector<AnnouncedKey> announced;
    for (uint64_t key : keys) announced.push_back({key, confidence});
    return lookahead_.Announce({source, request, queue, order, eta, announced});
  }
  uint64_t DueOf(uint64_t key) const {
    const auto use = lookahead_.NextUse(key);
    return use ? use->due : 0;
  }
  std::vector<uint64_t> Walked(int urgency = 1) const {
    Lookahead::Position position;
    std::vector<uint64_t> keys;
    while (const auto use = lookahead_.Walk(urgency, &position)) keys.push_back(use->key_head);
    return keys;
  }

  uint64_t now_ = 1000;
  LookaheadOptions options_{.max_requests = 8,
                            .max_uses = 20,
                            .default_wait = 100,
                            .settle = 50,
                            .trial_hints = 0,
                            .expire = 10'000};
  Lookahead lookahead_{options_, [this] { return now_; }};
};

TEST_F(LookaheadTest, TheNextUseIsTheEarliestRequestThatNeedsIt) {
  ASSERT_TRUE(Queue(1, 10, {7, 8}, 5000).ok());
  ASSERT_TRUE(Queue(2, 11, {8, 9}, 3000).ok());
  EXPECT_EQ(DueOf(7), 5000u);
  EXPECT_EQ(DueOf(8), 3000u);
  EXPECT_EQ(lookahead_.NextUse(8)->request, 2u);
  EXPECT_FALSE(lookahead_.NextUse(6).has_value());
  EXPECT_THAT(Walked(), ElementsAre(8, 9, 7, 8));
  lookahead_.Started(2);
  EXPECT_EQ(DueOf(8), 5000u);
  lookahead_.Withdraw(1);
  EXPECT_EQ(DueOf(8), 0u);
  EXPECT_THAT(Walked(), ElementsAre());
}

TEST_F(LookaheadTest, AQueueWithoutTimesFollowsItsPace) {
  for (uint64_t i = 0; i < 6; ++i) ASSERT_TRUE(Queue(i + 1, i, {i + 100}).ok());
  EXPECT_EQ(DueOf(100), 1100u);  // nothing is known: default_wait apart
  EXPECT_EQ(DueOf(105), 1600u);
  // Between its neighbours, whenever it was announced.
  lookahead_.Withdraw(3);
  ASSERT_TRUE(Queue(3, 2, {102}).ok());
  EXPECT_EQ(DueOf(102), 1300u);
  // The first is late: all behind it are.
  now_ = 1700;
  EXPECT_EQ(DueOf(101), 1700u);  // never before now
  lookahead_.Started(1);
  EXPECT_EQ(DueOf(101), 1800u);
  EXPECT_EQ(DueOf(105), 2200u);
  now_ = 1710;
  lookahead_.Started(2);  // ten after the one before: the pace of those announced from now on
  EXPECT_EQ(DueOf(105), 2110u);
  ASSERT_TRUE(Queue(7, 9, {109}).ok());
  EXPECT_EQ(DueOf(109), 2120u);
}

TEST_F(LookaheadTest, SourcesThatSpeakOfOneRequestStartTogether) {
  ASSERT_TRUE(Queue(1, 0, {7}, 4000).ok());
  ASSERT_TRUE(Say(HintSource::kDocuments, 1, 0, 0, {50}, kUnknownUse, 0.9f).ok());
  EXPECT_EQ(DueOf(50), 4000u);
  lookahead_.Withdraw(HintSource::kDocuments, 1);
  EXPECT_EQ(DueOf(50), 0u);
  ASSERT_TRUE(Say(HintSource::kDocuments, 1, 0, 0, {50}).ok());
  EXPECT_EQ(lookahead_.StandingOf(50), Lookahead::Standing::kAnnounced);
  lookahead_.Started(1);
  EXPECT_EQ(lookahead_.StandingOf(50), Lookahead::Standing::kStarted);
  EXPECT_EQ(DueOf(7), 0u);
  now_ += options_.settle;
  lookahead_.Withdraw(99);
  EXPECT_EQ(lookahead_.StandingOf(50), Lookahead::Standing::kGone);
  EXPECT_EQ(lookahead_.uses(), 0u);
}

TEST_F(LookaheadTest, ASessionThatSleepsForGoodWantsNothing) {
  ASSERT_TRUE(Say(HintSource::kSession, 5, 0, 0, {60}, kNeverUsed).ok());
  EXPECT_EQ(lookahead_.NextUse(60)->due, kNeverUsed);
  EXPECT_EQ(lookahead_.StandingOf(60), Lookahead::Standing::kGone);
  EXPECT_THAT(Walked(2), ElementsAre());
  ASSERT_TRUE(Say(HintSource::kSession, 5, 0, 0, {60}, 9000).ok());  // it will return after all
  EXPECT_EQ(DueOf(60), 9000u);
  EXPECT_THAT(Walked(2), ElementsAre(60));
}

TEST_F(LookaheadTest, BelievesWhatCameTrue) {
  EXPECT_FLOAT_EQ(lookahead_.calibration().Probability(HintSource::kQueue, 1), 1);
  for (uint64_t i = 1; i <= 20; ++i) {
    ASSERT_TRUE(Queue(i, i, {i}).ok());
    ASSERT_TRUE(Say(HintSource::kDocuments, i, 0, 0, {1000 + i}).ok());
    lookahead_.Started(i);
    lookahead_.Used(1000 + i);
    now_ += 2 * options_.settle;
  }
  lookahead_.Withdraw(99);
  EXPECT_LT(lookahead_.calibration().Probability(HintSource::kQueue, 1), 0.1);
  EXPECT_GT(lookahead_.calibration().Probability(HintSource::kDocuments, 1), 0.9);
  ASSERT_TRUE(Queue(50, 50, {7}).ok());
  EXPECT_FALSE(lookahead_.NextUse(7).has_value());
  EXPECT_TRUE(lookahead_.NextUse(7, 0).has_value());
}

TEST_F(LookaheadTest, ASourceOnTrialIsHeardButNotGoneBy) {
  options_.trial_hints = 3;
  Lookahead lookahead(options_, [this] { return now_; });
  const AnnouncedKey key{7, 1};
  for (uint64_t i = 1; i <= 4; ++i) {
    ASSERT_TRUE(lookahead.Announce({HintSource::kQueue, i, 1, i, kUnknownUse, {&key, 1}}).ok());
    EXPECT_EQ(lookahead.NextUse(7).has_value(), i == 4) << i;
    EXPECT_TRUE(lookahead.NextUse(7, 0).has_value());
    lookahead.Started(i);
    lookahead.Used(7);
    now_ += 2 * options_.settle;
  }
}

TEST_F(LookaheadTest, WhatIsSaidAgainIsNotAnotherPrediction) {
  ASSERT_TRUE(Queue(1, 0, {7, 8}).ok());
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Queue(1, 0, {7, 8}).ok());
  EXPECT_EQ(lookahead_.uses(), 2u);
  EXPECT_FLOAT_EQ(lookahead_.calibration().Probability(HintSource::kQueue, 1), 1);
  ASSERT_TRUE(Queue(1, 0, {8, 8}).ok());  // 7 was wrong; a key counts once
  EXPECT_EQ(lookahead_.uses(), 1u);
  EXPECT_LT(lookahead_.calibration().Probability(HintSource::kQueue, 1), 1);
}

TEST_F(LookaheadTest, LimitsAndBadInputLeaveEverythingAsItWas) {
  EXPECT_EQ(Say(HintSource::kQueue, 1, 1, 0, {7}, kUnknownUse, 1.5f).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      Say(HintSource::kQueue, 1, 1, 0, {7}, kUnknownUse, std::numeric_limits<float>::quiet_NaN())
          .code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Say(static_cast<HintSource>(9), 1, 1, 0, {7}).code(),
            absl::StatusCode::kInvalidArgument);
  for (uint64_t i = 1; i <= 8; ++i) ASSERT_TRUE(Queue(i, i, {i, 100 + i}).ok());
  const absl::Status requests = Queue(9, 9, {9});
  EXPECT_EQ(requests.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(requests.message()), HasSubstr("at most 8"));
  const absl::Status uses = Queue(8, 8, {1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(uses.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(uses.message()), HasSubstr("at most 20"));
  EXPECT_EQ(lookahead_.uses(), 16u);
  EXPECT_EQ(lookahead_.NextUse(108)->request, 8u);
  // What has started makes room, judged early if need be.
  lookahead_.Started(1);
  lookahead_.Started(2);
  EXPECT_TRUE(Queue(8, 8, {1, 2, 3, 4, 5, 6, 7, 8}).ok());
}

TEST_F(LookaheadTest, AQueueThatEndsOrIsForgottenLeavesNothing) {
  for (uint64_t i = 1; i <= 4; ++i) ASSERT_TRUE(Queue(i, i, {i}).ok());
  ASSERT_TRUE(Queue(5, 0, {5}, kUnknownUse, 2).ok());
  lookahead_.EndQueue(1);
  EXPECT_EQ(lookahead_.requests(), 1u);
  EXPECT_THAT(Walked(), ElementsAre(5));
  now_ += 2 * options_.expire;
  lookahead_.Withdraw(99);
  EXPECT_EQ(lookahead_.requests(), 0u);
  EXPECT_EQ(lookahead_.uses(), 0u);
}

TEST_F(LookaheadTest, TheTwoWindows) {
  ASSERT_TRUE(Queue(1, 1, {1, 2}, 2000).ok());
  ASSERT_TRUE(Queue(2, 2, {1, 3}, 3000).ok());
  ASSERT_TRUE(Queue(3, 3, {4}, 4000).ok());
  ASSERT_TRUE(Queue(4, 4, {5}, 5000).ok());
  const auto ten_each = [](uint64_t) -> uint64_t { return 10; };
  auto windows = lookahead_.ComputeWindows(30, 10, ten_each);
  EXPECT_EQ(windows.prefetch_end, 4000u);  // 1, 2 and 3 fit above
  EXPECT_EQ(windows.eviction_end, 5000u);  // 4 fits below
  windows = lookahead_.ComputeWindows(50, 0, ten_each);
  EXPECT_EQ(windows.prefetch_end, kNeverUsed);
  EXPECT_EQ(windows.eviction_end, kNeverUsed);
  windows = lookahead_.ComputeWindows(0, 0, ten_each);
  EXPECT_EQ(windows.prefetch_end, 2000u);
  EXPECT_EQ(windows.eviction_end, 2000u);
}

TEST_F(LookaheadTest, AWalkResumesWhereSomethingIsNew) {
  ASSERT_TRUE(Queue(1, 1, {1}, 2000).ok());
  ASSERT_TRUE(Queue(2, 2, {2}, 4000).ok());
  const size_t walker = lookahead_.AddWalker(), other = lookahead_.AddWalker();
  Lookahead::Position position = lookahead_.TakeEarliestNew(walker, 1);
  EXPECT_EQ(lookahead_.Walk(1, &position)->key_head, 1u);
  EXPECT_EQ(lookahead_.Walk(1, &position)->key_head, 2u);
  EXPECT_FALSE(lookahead_.Walk(1, &position).has_value());
  ASSERT_TRUE(Queue(3, 1, {3}, 3000).ok());
  EXPECT_FALSE(lookahead_.Walk(1, &position).has_value());
  position = std::min(position, lookahead_.TakeEarliestNew(walker, 1));
  EXPECT_EQ(lookahead_.Walk(1, &position)->key_head, 3u);
  position = lookahead_.TakeEarliestNew(other, 1);
  EXPECT_EQ(lookahead_.Walk(1, &position)->key_head, 1u);
  position = lookahead_.TakeEarliestNew(walker, 1);
  EXPECT_FALSE(lookahead_.Walk(1, &position).has_value());
  position = lookahead_.PositionOf(1, 2);
  EXPECT_EQ(lookahead_.Walk(1, &position)->key_head, 2u);
  position = lookahead_.PositionOf(1, 77);
  EXPECT_FALSE(lookahead_.Walk(1, &position).has_value());
}

}  // namespace
}  // namespace terrace
