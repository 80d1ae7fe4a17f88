#include "tiers/eviction/leaf_first.h"

#include <gtest/gtest.h>

#include "tests/tiers/eviction/owner.h"

namespace terrace {
namespace {

using testing::Any;
using testing::Drain;
using Order = std::vector<PolicyId>;

class LeafFirstTest : public ::testing::Test {
 protected:
  void Track(PolicyId id, PolicyId parent) {
    TrackInfo info = testing::Unit(id);
    info.parent = parent;
    policy_->Track(id, info);
  }

  std::unique_ptr<EvictionPolicy> policy_ = NewLeafFirst(NewLruPolicy());
};

TEST_F(LeafFirstTest, AParentLeavesAfterAllItsChildren) {
  Track(1, kNoPolicyId);
  Track(2, 1);
  Track(3, 2);
  Track(4, 1);
  Track(9, kNoPolicyId);
  EXPECT_EQ(Drain(*policy_), (Order{3, 2, 4, 1, 9}));
}

TEST_F(LeafFirstTest, ChildrenMayComeBeforeTheirParent) {
  Track(3, 2);
  Track(2, 1);
  Track(1, kNoPolicyId);
  policy_->Touch(3);
  EXPECT_EQ(Drain(*policy_), (Order{3, 2, 1}));
}

TEST_F(LeafFirstTest, ChildrenOfAForgottenParentGoOnWithoutOne) {
  Track(1, kNoPolicyId);
  Track(2, 1);
  Track(3, 1);
  policy_->Forget(1);
  Track(1, kNoPolicyId);  // the id stands for something else now
  Track(4, 1);
  policy_->Touch(4);
  // 2 and 3 are not counted as children of the new 1: neither do they hold it nor free it.
  policy_->Forget(2);
  EXPECT_EQ(policy_->Evict(Any), 3u);
  EXPECT_EQ(policy_->Evict(Any), 4u);
  EXPECT_EQ(policy_->Evict(Any), 1u);
  EXPECT_FALSE(policy_->Evict(Any).has_value());
}

TEST_F(LeafFirstTest, ARefusedLeafKeepsItsParent) {
  Track(1, kNoPolicyId);
  Track(2, 1);
  EXPECT_FALSE(policy_->Evict([](PolicyId id) { return id != 2; }).has_value());
  EXPECT_EQ(Drain(*policy_), (Order{2, 1}));
}

TEST_F(LeafFirstTest, ACircleIsNotClosed) {
  Track(5, 5);
  Track(1, 3);
  Track(2, 1);
  Track(3, 2);  // 2 is behind 1, which is behind 3
  Track(4, 3);
  EXPECT_EQ(Drain(*policy_), (Order{5, 2, 1, 4, 3}));
  // One that goes over what has left is none: 3 was behind another 2.
  Track(2, 1);
  Track(3, 2);
  policy_->Forget(2);
  Track(2, 1);
  Track(1, 3);
  EXPECT_EQ(Drain(*policy_), (Order{2, 1, 3}));
}

TEST_F(LeafFirstTest, AParentMayBeKnownOnlyLater) {
  for (const PolicyId id : {1, 2, 3}) Track(id, kNoPolicyId);
  policy_->Follows(2, 1);
  policy_->Follows(2, 1);
  policy_->Follows(2, 3);  // it has one
  policy_->Follows(1, 2);  // a circle
  policy_->Follows(1, 4);  // which comes only now
  Track(4, kNoPolicyId);
  policy_->Touch(2);
  EXPECT_EQ(Drain(*policy_), (Order{3, 2, 1, 4}));
}

TEST_F(LeafFirstTest, ForgetsAndIgnoresTheUnknown) {
  policy_->Forget(7);
  policy_->Touch(7);
  policy_->Hint(7, 1, 1);
  Track(1, kNoPolicyId);
  Track(2, 1);
  policy_->Forget(2);
  policy_->Forget(2);
  EXPECT_EQ(Drain(*policy_), (Order{1}));
}

}  // namespace
}  // namespace terrace
