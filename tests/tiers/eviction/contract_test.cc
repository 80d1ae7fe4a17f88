// What every policy owes its owner, whatever it prefers: random use of each registered one, alone
// and with prefixes, against a model of the tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>

#include "tests/tiers/eviction/owner.h"

namespace terrace {
namespace {

using testing::MustMake;

class Contract : public ::testing::TestWithParam<std::tuple<std::string_view, bool>> {
 protected:
  static constexpr uint64_t kCapacity = 1000;
  static constexpr PolicyId kIds = 60;

  struct Here {
    uint64_t bytes = 0;
    PolicyId parent = kNoPolicyId;
  };

  Contract() {
    context_.capacity_bytes = kCapacity;
    context_.layers = 4;
    context_.prefixes = std::get<1>(GetParam());
    policy_ = MustMake(std::get<0>(GetParam()), context_);
  }

  uint64_t Below(uint64_t end) {
    return std::uniform_int_distribution<uint64_t>(0, end - 1)(random_);
  }

  bool IsParent(PolicyId id) const {
    return context_.prefixes && std::any_of(here_.begin(), here_.end(), [id](const auto& entry) {
             return entry.second.parent == id;
           });
  }
  bool MayLeave(PolicyId id, const std::set<PolicyId>& refused) const {
    return here_.contains(id) && !refused.contains(id) && !IsParent(id);
  }

  void Gone(PolicyId id) {
    used_ -= here_[id].bytes;
    here_.erase(id);
    for (auto& [other, entry] : here_) {
      if (entry.parent == id) entry.parent = kNoPolicyId;
    }
  }

  // False when nothing may leave, about which the policy must agree.
  bool Evict(const std::set<PolicyId>& refused) {
    std::set<PolicyId> asked;
    const auto victim = policy_->Evict([&](PolicyId id) {
      EXPECT_TRUE(here_.contains(id)) << "asked about " << id << ", which is not tracked";
      return !refused.contains(id);
    });
    bool possible = false;
    for (const auto& [id, entry] : here_) possible |= MayLeave(id, refused);
    EXPECT_EQ(victim.has_value(), possible);
    if (!victim) return false;
    EXPECT_TRUE(MayLeave(*victim, refused)) << *victim;
    if (::testing::Test::HasFailure()) return false;
    Gone(*victim);
    return true;
  }

  std::set<PolicyId> SomeRefused() {
    std::set<PolicyId> refused;
    if (Below(2) == 0) return refused;
    for (const auto& [id, entry] : here_) {
      if (Below(3) != 0) refused.insert(id);
    }
    return refused;
  }

  // Makes room, and tracks unless what is refused leaves none.
  void Enter(PolicyId id) {
    TrackInfo info;
    info.bytes = 1 + Below(100);
    info.cost_us = static_cast<uint32_t>(Below(3) == 0 ? 0 : Below(5000));
    info.key_head = Below(5) == 0 ? 0 : id + 1;
    info.depth = static_cast<uint16_t>(Below(6));
    const std::set<PolicyId> refused = SomeRefused();
    while (used_ + info.bytes > capacity_) {
      if (!Evict(refused)) return;
    }
    // The parent was evicted or never here, or is any that is not below this one.
    if (!here_.empty() && Below(2) == 0) {
      auto parent = here_.begin();
      std::advance(parent, Below(here_.size()));
      info.parent = parent->first;
    }
    policy_->Track(id, info);
    here_[id] = {info.bytes, info.parent};
    used_ += info.bytes;
  }

  void Step() {
    const PolicyId id = static_cast<PolicyId>(Below(kIds)) * 97;
    switch (Below(12)) {
      case 0:
        policy_->Forget(id);
        if (here_.contains(id)) Gone(id);
        break;
      case 1:
        policy_->Touch(id);
        break;
      case 2:
        policy_->Hint(id, Below(2) == 0 ? kNeverUsed : Below(1000), 0.5f);
        break;
      case 3:
        capacity_ = kCapacity / 2 + Below(kCapacity);
        policy_->SetCapacity(capacity_);
        while (used_ > capacity_ && Evict({})) {
        }
        break;
      case 4:
        Evict(SomeRefused());
        break;
      default:
        if (here_.contains(id)) {
          policy_->Touch(id);
        } else {
          Enter(id);
        }
        if (Below(3) == 0) policy_->Hint(id, kNeverUsed, 1);
    }
  }

  std::mt19937_64 random_{1};
  PolicyContext context_;
  std::unique_ptr<EvictionPolicy> policy_;
  uint64_t capacity_ = kCapacity, used_ = 0;
  std::map<PolicyId, Here> here_;
};

TEST_P(Contract, HoldsUnderRandomUse) {
  for (int i = 0; i < 20000; ++i) {
    Step();
    ASSERT_FALSE(HasFailure()) << "step " << i;
  }
  std::set<PolicyId> all;
  for (const auto& [id, entry] : here_) all.insert(id);
  EXPECT_FALSE(Evict(all));
  while (!here_.empty()) ASSERT_TRUE(Evict({}));
  EXPECT_FALSE(Evict({}));
  EXPECT_EQ(used_, 0u);
}

TEST_P(Contract, EqualSeedsChooseEqually) {
  std::vector<PolicyId> orders[2];
  for (auto& order : orders) {
    auto policy = MustMake(std::get<0>(GetParam()), context_);
    for (PolicyId id = 0; id < 50; ++id) policy->Track(id, testing::Unit(id, id % 4));
    for (PolicyId id = 0; id < 50; id += 3) policy->Touch(id);
    order = testing::Drain(*policy);
  }
  EXPECT_EQ(orders[0], orders[1]);
  EXPECT_EQ(orders[0].size(), 50u);
}

std::vector<std::string_view> Names() {
  std::vector<std::string_view> names;
  for (const PolicyEntry& entry : Policies()) names.push_back(entry.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Every, Contract,
                         ::testing::Combine(::testing::ValuesIn(Names()), ::testing::Bool()),
                         [](const auto& info) {
                           std::string name(std::get<0>(info.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + (std::get<1>(info.param) ? "_prefixes" : "");
                         });

}  // namespace
}  // namespace terrace
