// The owner's part of an eviction policy, as small as it gets: what is here, and room for more.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "tiers/eviction/registry.h"

namespace terrace::testing {

inline bool Any(PolicyId) { return true; }

inline std::unique_ptr<EvictionPolicy> MustMake(std::string_view name,
                                                const PolicyContext& context) {
  auto policy = NewPolicy(name, context);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return policy.ok() ? *std::move(policy) : nullptr;
}

// An object of one byte whose key is its id.
inline TrackInfo Unit(PolicyId id, uint16_t depth = 0) {
  TrackInfo info;
  info.bytes = 1;
  info.key_head = id + 1;
  info.depth = depth;
  return info;
}

// Everything that the policy evicts, in its order.
inline std::vector<PolicyId> Drain(EvictionPolicy& policy) {
  std::vector<PolicyId> order;
  while (const auto id = policy.Evict(Any)) order.push_back(*id);
  return order;
}

class Owner {
 public:
  Owner(std::string_view name, const PolicyContext& context)
      : capacity_(context.capacity_bytes), policy_(MustMake(name, context)) {}

  // Whether it was here. It is now; what left for it is in evicted().
  bool Use(PolicyId id, const TrackInfo& info) {
    evicted_.clear();
    if (here_.contains(id)) {
      policy_->Touch(id);
      return true;
    }
    while (used_ + info.bytes > capacity_) {
      const auto victim = policy_->Evict(Any);
      if (!victim || !here_.contains(*victim)) {
        ADD_FAILURE() << "no victim, or one that is not here";
        return false;
      }
      used_ -= here_[*victim];
      here_.erase(*victim);
      evicted_.push_back(*victim);
    }
    policy_->Track(id, info);
    here_[id] = info.bytes;
    used_ += info.bytes;
    return false;
  }
  bool Use(PolicyId id) { return Use(id, Unit(id)); }

  bool here(PolicyId id) const { return here_.contains(id); }
  const std::vector<PolicyId>& evicted() const { return evicted_; }
  EvictionPolicy& policy() { return *policy_; }

 private:
  const uint64_t capacity_;
  uint64_t used_ = 0;
  std::map<PolicyId, uint64_t> here_;
  std::vector<PolicyId> evicted_;
  std::unique_ptr<EvictionPolicy> policy_;
};

// A trace of objects of one size, with what is known of the future.
struct Trace {
  std::vector<PolicyId> ids;
  std::vector<uint16_t> depths;     // or empty
  std::vector<uint64_t> next_uses;  // positions in the trace, or kNeverUsed

  // After ids are there.
  void FindNextUses() {
    next_uses.assign(ids.size(), kNeverUsed);
    std::map<PolicyId, uint64_t> next;
    for (size_t i = ids.size(); i-- > 0;) {
      if (const auto found = next.find(ids[i]); found != next.end()) next_uses[i] = found->second;
      next[ids[i]] = i;
    }
  }
};

// Hits of the policy. `hint` is called after each access with its position, the policy and whether
// it was a hit.
inline uint64_t Hits(
    const Trace& trace, std::string_view name, PolicyContext context,
    const std::function<void(size_t position, EvictionPolicy& policy, bool hit)>& hint = {}) {
  uint64_t clock = 0, hits = 0;
  context.now = [&clock] { return clock; };
  Owner owner(name, context);
  for (size_t i = 0; i < trace.ids.size(); ++i, ++clock) {
    const uint16_t depth = trace.depths.empty() ? 0 : trace.depths[i];
    const bool hit = owner.Use(trace.ids[i], Unit(trace.ids[i], depth));
    hits += hit;
    if (hint) hint(i, owner.policy(), hit);
  }
  return hits;
}

inline uint64_t MinHits(const Trace& trace, const PolicyContext& context) {
  return Hits(trace, "min", context, [&trace](size_t i, EvictionPolicy& policy, bool) {
    policy.Hint(trace.ids[i], trace.next_uses[i], 1);
  });
}

// The bits of succinct predictions: whether MIN evicts the object before it is wanted again.
inline std::vector<bool> DiscardBits(const Trace& trace, const PolicyContext& context) {
  std::vector<bool> discard(trace.ids.size(), true);
  std::map<PolicyId, size_t> used_at;
  Hits(trace, "min", context, [&](size_t i, EvictionPolicy& policy, bool hit) {
    policy.Hint(trace.ids[i], trace.next_uses[i], 1);
    if (hit) discard[used_at[trace.ids[i]]] = false;
    used_at[trace.ids[i]] = i;
  });
  return discard;
}

inline uint64_t BitHits(const Trace& trace, std::string_view name, const PolicyContext& context,
                        const std::vector<bool>& discard) {
  return Hits(trace, name, context, [&](size_t i, EvictionPolicy& policy, bool) {
    if (discard[i]) policy.Hint(trace.ids[i], kNeverUsed, 1);
  });
}

}  // namespace terrace::testing
