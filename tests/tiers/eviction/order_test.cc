// What each policy prefers, on sequences small enough to follow by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/tiers/eviction/owner.h"

namespace terrace {
namespace {

using testing::Any;
using testing::Drain;
using ::testing::ElementsAre;
using testing::MustMake;
using testing::Owner;
using testing::Unit;

PolicyContext Room(uint64_t capacity, uint32_t layers = 1) {
  PolicyContext context;
  context.capacity_bytes = capacity;
  context.layers = layers;
  return context;
}

TrackInfo Sized(PolicyId id, uint64_t bytes, uint32_t cost_us = 0) {
  TrackInfo info = Unit(id);
  info.bytes = bytes;
  info.cost_us = cost_us;
  return info;
}

TEST(Arc, WhatWasUsedTwiceOutlivesAScan) {
  Owner owner("arc", Room(4));
  for (PolicyId id : {1, 2, 1, 2}) owner.Use(id);
  for (PolicyId id = 10; id < 30; ++id) owner.Use(id);
  EXPECT_TRUE(owner.here(1) && owner.here(2));
}

TEST(Arc, AReturningGhostGivesItsSideMoreRoom) {
  Owner owner("arc", Room(4));
  for (PolicyId id : {1, 1, 2, 2}) owner.Use(id);
  for (PolicyId id : {3, 4, 5}) owner.Use(id);  // 3 left: the recent side has no room of its own
  EXPECT_FALSE(owner.here(3));
  EXPECT_FALSE(owner.Use(3));  // back, and counted as used twice; one more for the recent
  owner.Use(6);
  EXPECT_THAT(owner.evicted(), ElementsAre(1));  // of the frequent, for the recent keep one
  EXPECT_TRUE(owner.here(5) && owner.here(3));
}

TEST(Arc, GhostsAreOfBytes) {
  Owner owner("arc", Room(100));
  owner.Use(1, Sized(1, 90));
  owner.Use(1);
  owner.Use(2, Sized(2, 60));  // evicts 1 from the frequent side
  EXPECT_THAT(owner.evicted(), ElementsAre(1));
  for (PolicyId id = 10; id < 40; ++id) owner.Use(id, Sized(id, 60));
  owner.Use(1, Sized(1, 50));  // remembered through the scan: it is frequent again
  owner.Use(50, Sized(50, 50));
  owner.Use(51, Sized(51, 50));
  EXPECT_TRUE(owner.here(1));
}

TEST(S3Fifo, NewObjectsThatAreNotUsedAgainLeaveFirst) {
  Owner owner("s3-fifo", Room(10));
  for (PolicyId id : {1, 2}) {
    for (int i = 0; i < 3; ++i) owner.Use(id);
  }
  for (PolicyId id = 10; id < 60; ++id) owner.Use(id);
  EXPECT_TRUE(owner.here(1) && owner.here(2));
  EXPECT_FALSE(owner.here(10));
}

TEST(S3Fifo, AReturningGhostGoesToTheMainQueue) {
  Owner owner("s3-fifo", Room(10));
  for (PolicyId id = 1; id <= 11; ++id) owner.Use(id);
  EXPECT_FALSE(owner.here(1));
  owner.Use(1);  // from the ghosts
  for (PolicyId id = 20; id < 28; ++id) owner.Use(id);
  EXPECT_TRUE(owner.here(1));  // eight later ones left the small queue, one by one
}

TEST(S3Fifo, TheMainQueueSparesWhatWasUsed) {
  auto policy = MustMake("s3-fifo", Room(100));
  for (PolicyId id = 1; id <= 3; ++id) {
    policy->Track(id, Unit(id));
    policy->Touch(id);
    policy->Touch(id);
  }
  // Small is below its tenth: the main queue is asked first, then all of small moves there.
  EXPECT_EQ(policy->Evict([](PolicyId id) { return id == 3; }), std::nullopt);
  policy->Touch(1);
  EXPECT_THAT(Drain(*policy), ElementsAre(2, 3, 1));
}

TEST(Gdsf, SmallAndUsedAndDearStay) {
  auto policy = MustMake("gdsf", Room(1000));
  policy->Track(1, Sized(1, 100, 100));
  policy->Track(2, Sized(2, 10, 100));   // smaller
  policy->Track(3, Sized(3, 100, 400));  // dearer
  policy->Track(4, Sized(4, 100, 100));
  policy->Touch(4);
  policy->Touch(4);
  EXPECT_THAT(Drain(*policy), ElementsAre(1, 4, 3, 2));
}

TEST(Gdsf, TheClockAgesWhatIsNotUsed) {
  Owner owner("gdsf", Room(2));
  for (int i = 0; i < 5; ++i) owner.Use(1);
  for (PolicyId id = 10; id < 40; ++id) {
    owner.Use(id);
  }
  EXPECT_FALSE(owner.here(1));
}

TEST(Gdsf, UsesSurviveAnEviction) {
  auto policy = MustMake("gdsf", Room(10));
  policy->Track(1, Unit(1));
  policy->Touch(1);
  policy->Touch(1);
  EXPECT_EQ(policy->Evict(Any), 1u);
  policy->Track(2, Unit(2));
  policy->Track(1, Unit(1));  // its fourth use
  policy->Touch(2);
  policy->Touch(2);
  EXPECT_THAT(Drain(*policy), ElementsAre(2, 1));
}

TEST(Pgdsf, CountsTheMeanOfTheCostsWhereGdsfCountsTheLast) {
  for (const auto& [name, first] : {std::pair{"gdsf", 1u}, std::pair{"pgdsf", 2u}}) {
    auto policy = MustMake(name, Room(100));
    policy->Track(1, Sized(1, 1, 90));
    EXPECT_EQ(policy->Evict(Any), 1u);
    policy->Track(1, Sized(1, 1, 10));  // mean 50, used twice
    policy->Track(2, Sized(2, 1, 30));
    policy->Touch(2);
    EXPECT_EQ(policy->Evict(Any), first) << name;
  }
}

TEST(Marconi, IsLruWithoutCosts) {
  auto policy = MustMake("marconi", Room(100));
  for (PolicyId id : {1, 2, 3}) policy->Track(id, Unit(id));
  policy->Touch(1);
  EXPECT_THAT(Drain(*policy), ElementsAre(2, 3, 1));
}

TEST(Marconi, WhatSavesMoreForAByteStaysLongerButNotForever) {
  auto policy = MustMake("marconi", Room(100));
  for (PolicyId id = 2; id < 22; ++id) policy->Track(id, Sized(id, 10, 10));
  policy->Track(1, Sized(1, 10, 100));
  const auto use_the_others = [&policy] {
    for (PolicyId id = 2; id < 22; ++id) policy->Touch(id);
  };
  use_the_others();
  EXPECT_EQ(policy->Evict(Any), 2u);
  for (int i = 0; i < 10; ++i) use_the_others();
  EXPECT_EQ(policy->Evict(Any), 1u);
}

TEST(Lfru, FewUsesAndLongAgoLeaveFirst) {
  auto policy = MustMake("lfru", Room(100));
  for (PolicyId id : {1, 2, 3}) policy->Track(id, Unit(id));
  policy->Touch(1);
  EXPECT_EQ(policy->Evict(Any), 2u);  // before 3 by recency, before 1 by uses
  for (int i = 0; i < 1000; ++i) policy->Touch(3);
  policy->Track(4, Unit(4));
  EXPECT_EQ(policy->Evict(Any), 1u);  // two uses a thousand accesses ago, against one just now
}

TEST(Lfru, UsesSurviveAnEviction) {
  auto policy = MustMake("lfru", Room(100));
  policy->Track(1, Unit(1));
  policy->Touch(1);
  EXPECT_EQ(policy->Evict(Any), 1u);
  policy->Track(1, Unit(1));
  policy->Track(2, Unit(2));
  EXPECT_THAT(Drain(*policy), ElementsAre(2, 1));
}

TEST(LfuLayer, TheFullestLayerGivesItsLeastUsed) {
  auto policy = MustMake("lfu-layer", Room(100, 2));
  for (PolicyId id : {1, 2, 3}) policy->Track(id, Unit(id, 0));
  for (PolicyId id : {11, 12}) policy->Track(id, Unit(id, 1));
  policy->Touch(1);
  EXPECT_EQ(policy->Evict(Any), 2u);
  policy->Touch(12);
  EXPECT_EQ(policy->Evict(Any), 11u);  // equally full: the layer in use
  EXPECT_EQ(policy->Evict([](PolicyId id) { return id == 12; }), 12u);
  EXPECT_THAT(Drain(*policy), ElementsAre(3, 1));
}

// One token: an expert of each layer.
void Token(EvictionPolicy& policy, std::set<PolicyId>& here, std::vector<PolicyId> experts) {
  for (uint16_t layer = 0; layer < experts.size(); ++layer) {
    const PolicyId id = experts[layer];
    if (here.insert(id).second) {
      policy.Track(id, Unit(id, layer));
    } else {
      policy.Touch(id);
    }
  }
}

TEST(Lenu, WhatTheLayersLikeStaysAndTheLastLayerHasALongWayToGo) {
  auto policy = MustMake("lenu", Room(100, 3));
  std::set<PolicyId> here;
  for (int i = 0; i < 5; ++i) Token(*policy, here, {1, 11, 21});
  Token(*policy, here, {2, 11, 21});
  Token(*policy, here, {1, 11, 21});
  EXPECT_EQ(policy->Evict(Any), 2u);  // once in seven tokens
  // The next token is likely to take each of the others: layer 0 is next, layer 2 a round away.
  EXPECT_THAT(Drain(*policy), ElementsAre(21, 11, 1));
}

TEST(Lenu, WhatIsKnownSurvivesAnEviction) {
  auto policy = MustMake("lenu", Room(100, 1));
  for (PolicyId id : {1, 2}) policy->Track(id, Unit(id));
  for (int i = 0; i < 20; ++i) policy->Touch(1);
  EXPECT_EQ(policy->Evict(Any), 2u);
  EXPECT_EQ(policy->Evict(Any), 1u);
  policy->Track(1, Unit(1));
  policy->Track(2, Unit(2));
  policy->Track(3, Unit(3));
  EXPECT_EQ(Drain(*policy).back(), 1u);
}

TEST(DiscardBit, DiscardsLeaveFirstThenTheLeastRecentlyUsed) {
  auto policy = MustMake("discard-bit", Room(100));
  for (PolicyId id : {1, 2, 3, 4}) policy->Track(id, Unit(id));
  policy->Hint(4, kNeverUsed, 1);
  policy->Hint(3, kNeverUsed, 1);
  policy->Touch(3);  // ends the bit
  policy->Touch(1);
  EXPECT_THAT(Drain(*policy), ElementsAre(4, 2, 3, 1));
}

TEST(DiscardBitRandom, TheUnmarkedLeaveBeforeTheMarked) {
  auto policy = MustMake("discard-bit-random", Room(100));
  for (PolicyId id = 0; id < 20; ++id) policy->Track(id, Unit(id));
  policy->Hint(7, kNeverUsed, 1);
  EXPECT_EQ(policy->Evict(Any), 7u);
  EXPECT_TRUE(policy->Evict(Any).has_value());  // all were marked: a new phase
  for (PolicyId id = 0; id < 10; ++id) policy->Touch(id);
  std::vector<PolicyId> order = Drain(*policy);
  ASSERT_GE(order.size(), 18u);
  for (size_t i = 0; i < 9; ++i) EXPECT_GE(order[i], 10u);
}

TEST(MarkPredict, TheUnmarkedThatWereCalledAbsentLeaveFirst) {
  auto policy = MustMake("mark-predict", Room(100));
  for (PolicyId id = 0; id < 20; ++id) {
    policy->Track(id, Unit(id));
    if (id % 2 == 1) policy->Hint(id, kNeverUsed, 1);
  }
  const auto first = policy->Evict(Any);  // all were marked: a new phase
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(*first % 2, 1u);
  for (PolicyId id = 10; id < 20; ++id) {
    policy->Touch(id);
    policy->Hint(id, kNeverUsed, 1);
  }
  for (int i = 0; i < 19; ++i) {
    const auto victim = policy->Evict(Any);
    ASSERT_TRUE(victim.has_value());
    const int unmarked_absent = *first < 10 ? 4 : 5;
    EXPECT_EQ(*victim < 10, i < unmarked_absent + 5) << i;
    if (i < unmarked_absent + 5) {
      EXPECT_EQ(*victim % 2 == 1, i < unmarked_absent) << i;
    }
  }
}

TEST(Min, TheFurthestLeavesFirst) {
  auto policy = MustMake("min", Room(100));
  for (PolicyId id : {1, 2, 3, 4}) policy->Track(id, Unit(id));
  policy->Hint(1, 50, 1);
  policy->Hint(2, kNeverUsed, 1);
  policy->Hint(3, 70, 1);
  EXPECT_THAT(Drain(*policy), ElementsAre(2, 4, 3, 1));  // of 4 nothing is known
}

TEST(Min, RoomForAWhileIsWeighedAgainstCost) {
  PolicyContext context = Room(1000);
  context.now = [] { return 100; };
  auto policy = MustMake("min", context);
  policy->Track(1, Sized(1, 100, 100));
  policy->Track(2, Sized(2, 400, 100));  // four times the room
  policy->Track(3, Sized(3, 100, 25));   // a quarter of the cost
  policy->Track(4, Sized(4, 100, 400));  // four times the cost
  policy->Hint(1, 190, 1);
  policy->Hint(2, 130, 1);
  policy->Hint(3, 125, 1);
  policy->Hint(4, 300, 1);
  EXPECT_THAT(Drain(*policy), ElementsAre(2, 3, 1, 4));
}

TEST(Min, CostsProportionalToBytesLeaveBeladysOrder) {
  auto policy = MustMake("min", Room(1000));
  for (PolicyId id : {1, 2, 3}) {
    policy->Track(id, Sized(id, id * 100, id * 7));
    policy->Hint(id, 1000 - id, 1);
  }
  EXPECT_THAT(Drain(*policy), ElementsAre(1, 2, 3));
}

}  // namespace
}  // namespace terrace
