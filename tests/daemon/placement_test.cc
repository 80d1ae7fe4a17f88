#include "daemon/placement.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "config/option_keys.h"
#include "tiers/eviction/registry.h"

namespace terrace {
namespace {

constexpr uint64_t kPage = kExtentAlignment;
constexpr size_t kKv = 0, kExpert = 1;

class PlacementTest : public ::testing::Test {
 protected:
  // A tier of 100 pages.
  void Make(const std::string& policy, const KindLimits& limits = {}) {
    PolicyContext context;
    context.capacity_bytes = 100 * kPage;
    context.prefixes = true;
    placement_ =
        std::make_unique<Placement>(*NewPolicy(policy, context), limits, context.capacity_bytes);
  }
  void Enter(PolicyId id, ObjectKind kind, uint64_t pages = 10, Loss loss = {},
             PolicyId parent = kNoPolicyId) {
    spaces_[id] = {pages * kPage, kind};
    placement_->Entered(
        id, {.space = spaces_[id], .key_head = id + uint64_t{1}, .parent = parent, .loss = loss});
  }
  std::optional<PolicyId> Victim(std::optional<ObjectKind> incoming) {
    return VictimAmong(incoming, [](PolicyId) { return true; });
  }
  std::optional<PolicyId> VictimAmong(std::optional<ObjectKind> incoming,
                                      absl::FunctionRef<bool(PolicyId)> evictable) {
    return placement_->VictimFor(incoming, [&](PolicyId id) -> std::optional<Space> {
      if (!evictable(id)) return std::nullopt;
      return spaces_.at(id);
    });
  }
  std::unique_ptr<Placement> placement_;
  std::map<PolicyId, Space> spaces_;
};

TEST(LossTest, TheCheaperWayCounts) {
  EXPECT_EQ(LossUs({500, 200}), 200u);
  EXPECT_EQ(LossUs({100, 200}), 100u);
  EXPECT_EQ(LossUs({100, 0}), 100u);
  EXPECT_EQ(LossUs({0, 200}), 200u);
  EXPECT_EQ(LossUs({0, 0}), 0u);
}

TEST_F(PlacementTest, AKindAtItsFloorGivesNothingToOthers) {
  KindLimits limits;
  limits[kExpert].floor = Size::Percent(30);
  Make("lru", limits);
  for (PolicyId id = 0; id < 4; ++id) Enter(id, ObjectKind::kExpert);
  for (PolicyId id = 10; id < 16; ++id) Enter(id, ObjectKind::kKv);
  // One expert is above the floor, and the oldest of all; the other three are not.
  EXPECT_EQ(Victim(ObjectKind::kKv), 0u);
  EXPECT_EQ(Victim(ObjectKind::kKv), 10u);
  EXPECT_EQ(placement_->used_bytes(ObjectKind::kExpert), 30 * kPage);
  // Its own kind may replace it.
  EXPECT_EQ(Victim(ObjectKind::kExpert), 1u);
  for (PolicyId id = 11; id < 16; ++id) EXPECT_EQ(Victim(ObjectKind::kKv), id);
  EXPECT_EQ(Victim(ObjectKind::kKv), std::nullopt);
  EXPECT_EQ(Victim(ObjectKind::kExpert), 2u);
}

TEST_F(PlacementTest, AKindAboveItsCeilingGivesFirst) {
  KindLimits limits;
  limits[kKv].ceiling = Size::Percent(50);
  Make("lru", limits);
  for (PolicyId id = 0; id < 4; ++id) Enter(id, ObjectKind::kDocument);
  for (PolicyId id = 10; id < 16; ++id) Enter(id, ObjectKind::kKv);
  EXPECT_EQ(Victim(ObjectKind::kDocument), 10u);
  // At the ceiling, not above it: as among equals.
  EXPECT_EQ(Victim(ObjectKind::kDocument), 0u);
}

TEST_F(PlacementTest, AboveItsCeilingAKindTakesOnlyItsOwn) {
  KindLimits limits;
  limits[kKv].ceiling = Size::Percent(20);
  Make("lru", limits);
  Enter(0, ObjectKind::kDocument);
  for (PolicyId id = 10; id < 13; ++id) Enter(id, ObjectKind::kKv);
  const auto not_kv = [](PolicyId id) { return id < 10; };  // what KV there is, is leased
  EXPECT_EQ(VictimAmong(ObjectKind::kKv, not_kv), std::nullopt);
  EXPECT_EQ(VictimAmong(ObjectKind::kExpert, not_kv), 0u);
}

TEST_F(PlacementTest, FloorsFollowTheCapacity) {
  KindLimits limits;
  limits[kKv].floor = Size::Bytes(60 * kPage);
  limits[kExpert].floor = Size::Bytes(20 * kPage);
  Make("lru", limits);
  for (PolicyId id = 0; id < 6; ++id) Enter(id, ObjectKind::kKv);
  for (PolicyId id = 10; id < 12; ++id) Enter(id, ObjectKind::kExpert);
  EXPECT_EQ(Victim(std::nullopt), std::nullopt);
  // Half of both floors: 30 pages of KV stay, 10 of experts.
  placement_->SetCapacity(40 * kPage);
  std::set<PolicyId> left;
  while (const auto id = Victim(std::nullopt)) left.insert(*id);
  EXPECT_EQ(left, (std::set<PolicyId>{0, 1, 2, 10}));
}

TEST_F(PlacementTest, WhatLeftIsNoLongerCounted) {
  Make("lru");
  Enter(1, ObjectKind::kKv, 7);
  EXPECT_EQ(placement_->used_bytes(ObjectKind::kKv), 7 * kPage);
  placement_->Left(1, spaces_[1]);
  placement_->Missed(99'999);
  EXPECT_EQ(placement_->used_bytes(ObjectKind::kKv), 0u);
  Enter(1, ObjectKind::kDocument, 2);
  EXPECT_EQ(placement_->used_bytes(ObjectKind::kDocument), 2 * kPage);
}

// Kinds compete in one currency: what is cheap to have again a byte leaves first.
TEST_F(PlacementTest, TheCheapestByteLeavesFirst) {
  Make("gdsf");
  Enter(1, ObjectKind::kKv, 10, {.remake_us = 50'000});
  Enter(2, ObjectKind::kExpert, 10, {.remake_us = 0, .fetch_us = 2'000});
  Enter(3, ObjectKind::kDocument, 40, {.remake_us = 50'000});
  Enter(4, ObjectKind::kKv, 10, {.remake_us = 50'000, .fetch_us = 3'000});
  EXPECT_EQ(Victim(ObjectKind::kKv), 2u);
  EXPECT_EQ(Victim(ObjectKind::kKv), 4u);
  EXPECT_EQ(Victim(ObjectKind::kKv), 3u);
  EXPECT_EQ(Victim(ObjectKind::kKv), 1u);
}

// What has become durable is fetched instead of made again.
TEST_F(PlacementTest, APriceFollowsTheNextHolder) {
  for (const char* policy : {"gdsf", "pgdsf", "hit-density"}) {
    SCOPED_TRACE(policy);
    Make(policy);
    for (PolicyId id = 1; id <= 4; ++id) {
      Enter(id, ObjectKind::kKv, 10, {.remake_us = 50'000 + 100 * id});
    }
    placement_->Repriced(3, 10 * kPage, {.remake_us = 50'300, .fetch_us = 500});
    placement_->Repriced(2, 10 * kPage, {.remake_us = 50'200, .fetch_us = 500});
    placement_->Repriced(2, 10 * kPage, {.remake_us = 50'200});  // its record was dropped
    placement_->Repriced(77, 10 * kPage, {.remake_us = 1});
    EXPECT_EQ(Victim(ObjectKind::kKv), 3u);
  }
}

TEST_F(PlacementTest, AChildNeverOutlivesItsParent) {
  for (const PolicyEntry& policy : Policies()) {
    if (policy.needs_hints) continue;
    SCOPED_TRACE(std::string(policy.name));
    Make(std::string(policy.name));
    for (PolicyId id = 0; id < 10; ++id) {
      Enter(id, ObjectKind::kKv, 10, {.remake_us = 100 * (id + 1)}, id == 0 ? kNoPolicyId : id - 1);
    }
    for (PolicyId expected = 10; expected-- > 0;) {
      EXPECT_EQ(Victim(ObjectKind::kKv), expected);
    }
  }
}

// host.policy accepts what the registry has, but for what is of no use without hints.
TEST(HostPolicyTest, TheConfigNamesThePoliciesThereAre) {
  std::set<std::string> there, accepted;
  for (const PolicyEntry& policy : Policies()) {
    if (!policy.needs_hints) there.insert(std::string(policy.name));
  }
  for (const OptionSection& section : OptionSections()) {
    for (const OptionKey& key : section.keys) {
      if (section.name != "host" || key.name != "policy") continue;
      for (std::string_view name : std::get<ChoiceField>(key.field).choices) {
        accepted.insert(std::string(name));
      }
    }
  }
  EXPECT_EQ(accepted, there);
}

}  // namespace
}  // namespace terrace
