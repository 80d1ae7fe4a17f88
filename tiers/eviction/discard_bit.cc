// Paging with one bit a use: would the optimum evict the object before it is wanted again?
// A. Antoniadis, J. Boyar, M. Elias, L. M. Favrholdt, R. Hoeksma, K. S. Larsen, A. Polak, B. Simon:
// Paging with succinct predictions. ICML 2023 (arXiv 2210.02775), discard predictions.
//
// The bit is a Hint of kNeverUsed after the use. What has it leaves first. When nothing has it, the
// others are marked as they are used and the unmarked leave; when all are marked, a phase ends and
// none is. With k objects of one size, OPT the optimum's misses, e0 (e1) the wrong bits that said
// keep (discard): at most OPT + (k - 1) e0 + e1 misses; drawing the unmarked at random, 2 H(k) for
// k - 1. With perfect bits it is the optimum.
#include <random>

#include "tiers/eviction/id_list.h"
#include "tiers/eviction/id_set.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

// The unmarked are taken in the order of their last uses. Then the oldest is always one of them,
// whenever phases begin, and marks need not be kept.
class DiscardBitPolicy final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo&) override {
    entries_.At(id).discard = false;
    keep_.Append(id);
  }

  void Touch(PolicyId id) override { Move(id, false); }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    for (IdList<Entry>* list : {&discard_, &keep_}) {
      for (PolicyId id = list->oldest(); id != kEndOfList; id = list->NewerThan(id)) {
        if (!evictable(id)) continue;
        list->Remove(id);
        return id;
      }
    }
    return std::nullopt;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) list(id).Remove(id);
  }

  void Hint(PolicyId id, uint64_t next_use, float) override { Move(id, next_use == kNeverUsed); }

 private:
  struct Entry : IdLink {
    bool discard = false;
  };
  IdList<Entry>& list(PolicyId id) { return entries_[id].discard ? discard_ : keep_; }

  void Move(PolicyId id, bool discard) {
    if (!Placed(entries_, id)) return;
    list(id).Remove(id);
    entries_[id].discard = discard;
    list(id).Append(id);
  }

  IdTable<Entry> entries_;
  IdList<Entry> discard_{&entries_}, keep_{&entries_};
};

class DiscardBitRandomPolicy final : public EvictionPolicy {
 public:
  explicit DiscardBitRandomPolicy(const PolicyContext& context) : random_(context.seed) {}

  void Track(PolicyId id, const TrackInfo&) override {
    entries_.At(id);
    Put(id, kMarked);
  }

  void Touch(PolicyId id) override { Move(id, kMarked); }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    std::optional<PolicyId> victim = sets_[kDiscard].Draw(random_, evictable);
    if (!victim) victim = sets_[kUnmarked].Draw(random_, evictable);
    if (!victim) {
      sets_[kUnmarked].Merge(sets_[kMarked]);
      ++phase_;
      victim = sets_[kUnmarked].Draw(random_, evictable);
    }
    if (victim) Forget(*victim);
    return victim;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) sets_[set(id)].Remove(id);
  }

  void Hint(PolicyId id, uint64_t next_use, float) override {
    Move(id, next_use == kNeverUsed ? kDiscard : kMarked);
  }

 private:
  enum Set : uint8_t { kDiscard, kMarked, kUnmarked };
  struct Entry : IdPosition {
    bool discard = false;
    uint32_t phase = 0;  // when it was marked
  };

  Set set(PolicyId id) const {
    if (entries_[id].discard) return kDiscard;
    return entries_[id].phase == phase_ ? kMarked : kUnmarked;
  }

  void Put(PolicyId id, Set set) {
    entries_[id].discard = set == kDiscard;
    entries_[id].phase = phase_;
    sets_[set].Add(id);
  }
  void Move(PolicyId id, Set to) {
    if (!Placed(entries_, id)) return;
    sets_[set(id)].Remove(id);
    Put(id, to);
  }

  std::mt19937_64 random_;
  uint32_t phase_ = 0;
  IdTable<Entry> entries_;
  IdSet<Entry> sets_[3] = {IdSet<Entry>(&entries_), IdSet<Entry>(&entries_),
                           IdSet<Entry>(&entries_)};
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewDiscardBitPolicy() {
  return std::make_unique<DiscardBitPolicy>();
}
std::unique_ptr<EvictionPolicy> NewDiscardBitRandomPolicy(const PolicyContext& context) {
  return std::make_unique<DiscardBitRandomPolicy>(context);
}

}  // namespace terrace
