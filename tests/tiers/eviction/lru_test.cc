#include <gtest/gtest.h>

#include "tests/tiers/eviction/owner.h"

namespace terrace {
namespace {

using testing::Any;

TEST(Lru, TheLeastRecentlyUsedLeavesFirst) {
  auto lru = NewLruPolicy();
  EXPECT_FALSE(lru->Evict(Any).has_value());
  for (PolicyId id : {5, 1, 9}) lru->Track(id, {});
  lru->Touch(5);
  EXPECT_EQ(lru->Evict(Any), 1u);
  EXPECT_EQ(lru->Evict(Any), 9u);
  EXPECT_EQ(lru->Evict(Any), 5u);
  EXPECT_FALSE(lru->Evict(Any).has_value());
  lru->Track(1, {});  // an evicted id may come back
  EXPECT_EQ(lru->Evict(Any), 1u);
}

TEST(Lru, RefusedCandidatesKeepTheirPlace) {
  auto lru = NewLruPolicy();
  for (PolicyId id = 0; id < 4; ++id) lru->Track(id, {});
  EXPECT_EQ(lru->Evict([](PolicyId id) { return id > 1; }), 2u);
  EXPECT_EQ(lru->Evict(Any), 0u);
  EXPECT_EQ(lru->Evict(Any), 1u);
  EXPECT_EQ(lru->Evict(Any), 3u);
}

TEST(Lru, ForgetsAndIgnoresTheUnknown) {
  auto lru = NewLruPolicy();
  for (PolicyId id = 0; id < 3; ++id) lru->Track(id, {});
  lru->Forget(0);
  lru->Forget(0);
  lru->Forget(1000);
  lru->Touch(0);
  lru->Touch(1000);
  EXPECT_EQ(lru->Evict(Any), 1u);
  EXPECT_EQ(lru->Evict(Any), 2u);
  EXPECT_FALSE(lru->Evict(Any).has_value());
}

}  // namespace
}  // namespace terrace
