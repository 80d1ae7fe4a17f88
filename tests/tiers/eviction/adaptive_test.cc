#include "tiers/eviction/adaptive.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "tests/tiers/eviction/owner.h"

namespace terrace {
namespace {

using testing::Any;
using testing::Drain;
using testing::Unit;

// The best there is for a loop that does not fit, and bad for all that moves on.
class MostRecentFirst final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo&) override { order_.push_back(id); }
  void Touch(PolicyId id) override {
    if (std::erase(order_, id) > 0) order_.push_back(id);
  }
  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    for (size_t i = order_.size(); i-- > 0;) {
      const PolicyId id = order_[i];
      if (!evictable(id)) continue;
      order_.erase(order_.begin() + static_cast<ptrdiff_t>(i));
      return id;
    }
    return std::nullopt;
  }
  void Forget(PolicyId id) override { std::erase(order_, id); }

 private:
  std::vector<PolicyId> order_;
};

class AdaptiveTest : public ::testing::Test {
 protected:
  static constexpr size_t kCapacity = 60, kLru = 0, kMru = 1;

  bool Use(PolicyId id) {
    if (here_.contains(id)) {
      policy_.Touch(id);
      return true;
    }
    if (here_.size() == kCapacity) {
      const auto victim = policy_.Evict(Any);
      EXPECT_TRUE(victim && here_.erase(*victim) == 1);
    }
    policy_.Track(id, Unit(id));
    here_.insert(id);
    return false;
  }
  uint64_t Loop(int uses) {
    uint64_t hits = 0;
    for (int i = 0; i < uses; ++i) hits += Use(1000 + i % 100);
    return hits;
  }
  uint64_t Drift(int uses) {
    uint64_t hits = 0;
    for (int i = 0; i < uses; ++i) hits += Use(2000 + i / 4 + random_() % 40);
    return hits;
  }

  AdaptivePolicy policy_{
      {[] { return NewLruPolicy(); }, [] { return std::make_unique<MostRecentFirst>(); }}};
  std::set<PolicyId> here_;
  std::mt19937 random_{1};
};

TEST_F(AdaptiveTest, FollowsThePolicyThatSuitsThePhase) {
  EXPECT_EQ(policy_.leader(), kLru);
  EXPECT_LT(Loop(5000), 4000u);
  EXPECT_EQ(policy_.leader(), kMru);
  EXPECT_GT(Loop(1000), 500u);  // least recently used would hit none
  Drift(10000);
  EXPECT_EQ(policy_.leader(), kLru);
  EXPECT_GT(Drift(1000), 600u);
  Loop(20000);
  EXPECT_EQ(policy_.leader(), kMru);
  EXPECT_LE(policy_.switches(), 5u);
}

TEST_F(AdaptiveTest, ASwitchLosesNoId) {
  Loop(5000);
  policy_.Forget(*here_.begin());
  here_.erase(here_.begin());
  const std::vector<PolicyId> left = Drain(policy_);
  EXPECT_EQ(std::set<PolicyId>(left.begin(), left.end()), here_);
  EXPECT_EQ(left.size(), here_.size());
}

TEST_F(AdaptiveTest, EqualPoliciesDoNotTakeTurns) {
  AdaptivePolicy policy({[] { return NewLruPolicy(); }, [] { return NewLruPolicy(); }});
  for (PolicyId id = 0; id < 5000; ++id) {
    if (id >= 100) policy.Evict(Any);
    policy.Track(id, Unit(id));
    policy.Touch(id / 2);
  }
  EXPECT_EQ(policy.switches(), 0u);
}

TEST_F(AdaptiveTest, OfManyObjectsASampleTells) {
  AdaptivePolicy policy(
      {[] { return NewLruPolicy(); }, [] { return std::make_unique<MostRecentFirst>(); }});
  std::set<PolicyId> here;
  for (int i = 0; i < 100000; ++i) {
    const PolicyId id = i % 12000;
    if (here.contains(id)) {
      policy.Touch(id);
      continue;
    }
    if (here.size() == 8000) here.erase(*policy.Evict(Any));
    policy.Track(id, Unit(id));
    here.insert(id);
  }
  EXPECT_EQ(policy.leader(), kMru);
}

}  // namespace
}  // namespace terrace
