#include "tiers/eviction/window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "tests/tiers/eviction/owner.h"

namespace terrace {
namespace {

using testing::Any;
using testing::Drain;
using ::testing::ElementsAre;
using testing::Unit;

class WindowTest : public ::testing::Test {
 protected:
  WindowTest() {
    PolicyContext context;
    context.now = [this] { return now_; };
    policy_ = NewWindow(NewLruPolicy(), NewLruPolicy, context);
    for (PolicyId id = 0; id < 6; ++id) policy_->Track(id, Unit(id));
  }

  uint64_t now_ = 0;
  std::unique_ptr<EvictionPolicy> policy_;
};

TEST_F(WindowTest, NeverThenUnknownThenTheLatestWanted) {
  policy_->Hint(0, 10, 1);
  policy_->Hint(1, 30, 1);
  policy_->Hint(2, 20, 1);
  policy_->Hint(5, kNeverUsed, 1);
  EXPECT_THAT(Drain(*policy_), ElementsAre(5, 3, 4, 1, 2, 0));
}

TEST_F(WindowTest, AUseEndsWhatWasKnown) {
  for (PolicyId id : {0, 1, 2}) policy_->Hint(id, 10, 1);
  now_ = 10;
  policy_->Touch(1);
  EXPECT_THAT(Drain(*policy_), ElementsAre(3, 4, 5, 1, 2, 0));
}

TEST_F(WindowTest, ALaterHintReplacesAndAnUnknownOneTakesBack) {
  for (PolicyId id = 0; id < 6; ++id) policy_->Hint(id, 10 + id, 1);
  policy_->Hint(5, 1, 1);
  policy_->Hint(2, kUnknownUse, 1);
  EXPECT_THAT(Drain(*policy_), ElementsAre(2, 4, 3, 1, 0, 5));
}

TEST_F(WindowTest, AHintExpiresHalfItsLeadAfterItsTime) {
  policy_->Hint(0, 63, 1);
  policy_->Hint(1, 1000, 1);
  now_ = 90;
  EXPECT_EQ(policy_->Evict(Any), 2u);
  now_ = 96;
  policy_->Touch(3);
  EXPECT_THAT(Drain(*policy_), ElementsAre(4, 5, 0, 3, 1));
}

TEST_F(WindowTest, ThePastAndTheUnlikelyAreNotFollowed) {
  now_ = 100;
  policy_->Hint(0, 99, 1);
  policy_->Hint(1, 110, 0.4f);
  policy_->Hint(2, kNeverUsed, 0.4f);
  EXPECT_THAT(Drain(*policy_), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST_F(WindowTest, RefusedOnesKeepTheirPlaces) {
  policy_->Hint(0, 10, 1);
  policy_->Hint(1, 20, 1);
  policy_->Hint(2, kNeverUsed, 1);
  const auto only_known = [](PolicyId id) { return id < 2; };
  EXPECT_EQ(policy_->Evict([](PolicyId id) { return id == 0; }), 0u);
  EXPECT_EQ(policy_->Evict(only_known), 1u);
  EXPECT_EQ(policy_->Evict(only_known), std::nullopt);
  EXPECT_THAT(Drain(*policy_), ElementsAre(2, 3, 4, 5));
}

TEST_F(WindowTest, ForgottenIdsAreGone) {
  policy_->Hint(0, 10, 1);
  policy_->Hint(2, kNeverUsed, 1);
  for (PolicyId id : {0, 1, 2}) policy_->Forget(id);
  EXPECT_THAT(Drain(*policy_), ElementsAre(3, 4, 5));
}

// A skewed choice among many times what fits, with hints that are made up or true.
uint64_t SkewedHits(double wrong, double right) {
  testing::Trace trace;
  std::mt19937 random(7);
  std::geometric_distribution<PolicyId> skewed(0.01);
  for (int i = 0; i < 60000; ++i) trace.ids.push_back(skewed(random));
  trace.FindNextUses();
  PolicyContext context;
  context.capacity_bytes = 100;
  std::uniform_real_distribution<double> share;
  return Hits(trace, "default", context, [&](size_t i, EvictionPolicy& policy, bool) {
    if (share(random) < wrong) policy.Hint(skewed(random), i + random() % 2000, 1);
    if (share(random) < wrong) policy.Hint(skewed(random), kNeverUsed, 1);
    if (share(random) < right) policy.Hint(trace.ids[i], trace.next_uses[i], 1);
  });
}

TEST(DefaultPolicy, TrueHintsHelpAndRandomOnesAreIgnored) {
  const auto none = static_cast<double>(SkewedHits(0, 0));
  EXPECT_GT(static_cast<double>(SkewedHits(0, 1)), 1.1 * none);
  EXPECT_GT(static_cast<double>(SkewedHits(1, 0)), 0.95 * none);
}

}  // namespace
}  // namespace terrace
