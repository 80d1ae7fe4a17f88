#include "tiers/eviction/leaf_first.h"

#include <utility>

#include "tiers/eviction/id_table.h"

namespace terrace {

namespace {

struct Entry {
  PolicyId parent = kNoPolicyId;
  uint32_t parent_stay = 0;  // the parent's `stay` when the child was tracked
  uint32_t stay = 0;      // counts what the id has stood for, so that old children are told apart
  uint32_t children = 0;  // tracked, of this stay
};

class LeafFirst final : public EvictionPolicy {
 public:
  explicit LeafFirst(std::unique_ptr<EvictionPolicy> policy) : policy_(std::move(policy)) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    entries_.At(id).parent = kNoPolicyId;
    if (info.parent != kNoPolicyId) Link(id, info.parent);
    policy_->Track(id, info);
  }

  void Follows(PolicyId id, PolicyId parent) override {
    if (ParentOf(id) == kNoPolicyId) Link(id, parent);
    policy_->Follows(id, parent);
  }

  void Touch(PolicyId id) override { policy_->Touch(id); }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    const std::optional<PolicyId> id = policy_->Evict([this, evictable](PolicyId candidate) {
      return entries_[candidate].children == 0 && evictable(candidate);
    });
    if (id) End(*id);
    return id;
  }

  void Forget(PolicyId id) override {
    End(id);
    policy_->Forget(id);
  }

  void Hint(PolicyId id, uint64_t next_use, float confidence) override {
    policy_->Hint(id, next_use, confidence);
  }
  void Reprice(PolicyId id, uint64_t bytes, uint32_t cost_us) override {
    policy_->Reprice(id, bytes, cost_us);
  }
  void SetCapacity(uint64_t bytes) override { policy_->SetCapacity(bytes); }

 private:
  void Link(PolicyId id, PolicyId parent_id) {
    if (IsBehind(parent_id, id)) return;
    Entry& parent = entries_.At(parent_id);
    Entry& entry = entries_[id];
    entry.parent = parent_id;
    entry.parent_stay = parent.stay;
    ++parent.children;
  }

  // Whether `last` is `id`, or behind it: by what owners say, a circle would close, none of which
  // could ever leave. Looks only where children came before the id.
  bool IsBehind(PolicyId last, PolicyId id) {
    if (last == id || entries_[id].children == 0) return last == id;
    for (PolicyId parent = ParentOf(last); parent != kNoPolicyId; parent = ParentOf(parent)) {
      if (parent == id) return true;
    }
    return false;
  }
  PolicyId ParentOf(PolicyId id) {
    const Entry* entry = entries_.Find(id);
    if (entry == nullptr || entry->parent == kNoPolicyId) return kNoPolicyId;
    return entries_[entry->parent].stay == entry->parent_stay ? entry->parent : kNoPolicyId;
  }

  // The id's stay ends: its parent has a child less, its children have no parent. Of an id that is
  // not tracked, it only parts from children that expected it.
  void End(PolicyId id) {
    Entry* entry = entries_.Find(id);
    if (entry == nullptr) return;
    if (entry->parent != kNoPolicyId) {
      Entry& parent = entries_[entry->parent];
      if (parent.stay == entry->parent_stay) --parent.children;
      entry->parent = kNoPolicyId;
    }
    entry->children = 0;
    ++entry->stay;
  }

  std::unique_ptr<EvictionPolicy> policy_;
  IdTable<Entry> entries_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewLeafFirst(std::unique_ptr<EvictionPolicy> policy) {
  return std::make_unique<LeafFirst>(std::move(policy));
}

}  // namespace terrace
