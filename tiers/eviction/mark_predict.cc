// Mark&Predict: marking with one bit a use, whether the object will be used in the next phase.
// A. Antoniadis, J. Boyar, M. Elias, L. M. Favrholdt, R. Hoeksma, K. S. Larsen, A. Polak, B. Simon:
// Paging with succinct predictions. ICML 2023 (arXiv 2210.02775), phase predictions.
//
// The bit is a Hint of kNeverUsed after the use: absent from the next phase. A use marks. The
// victim is drawn from the unmarked that were predicted absent, else from the unmarked; when all
// are marked, a phase ends and none is. Twice the optimum with perfect bits, O(log k) with the
// worst.
#include <random>

#include "tiers/eviction/id_set.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

class MarkPredictPolicy final : public EvictionPolicy {
 public:
  explicit MarkPredictPolicy(const PolicyContext& context) : random_(context.seed) {}

  void Track(PolicyId id, const TrackInfo&) override {
    entries_.At(id);
    Put(id, false);
  }

  void Touch(PolicyId id) override { Move(id, false); }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    std::optional<PolicyId> victim = Draw(evictable);
    if (!victim) {
      unmarked_.absent.Merge(marked_.absent);
      unmarked_.present.Merge(marked_.present);
      ++phase_;
      victim = Draw(evictable);
    }
    if (victim) Forget(*victim);
    return victim;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) set(id).Remove(id);
  }

  void Hint(PolicyId id, uint64_t next_use, float) override { Move(id, next_use == kNeverUsed); }

 private:
  struct Entry : IdPosition {
    bool absent = false;
    uint32_t phase = 0;  // when it was marked
  };
  struct Side {
    explicit Side(IdTable<Entry>* entries) : absent(entries), present(entries) {}
    IdSet<Entry> absent, present;
  };

  std::optional<PolicyId> Draw(absl::FunctionRef<bool(PolicyId)> evictable) {
    const std::optional<PolicyId> absent = unmarked_.absent.Draw(random_, evictable);
    return absent ? absent : unmarked_.present.Draw(random_, evictable);
  }

  IdSet<Entry>& set(PolicyId id) {
    Side& side = entries_[id].phase == phase_ ? marked_ : unmarked_;
    return entries_[id].absent ? side.absent : side.present;
  }

  void Put(PolicyId id, bool absent) {
    entries_[id].absent = absent;
    entries_[id].phase = phase_;
    set(id).Add(id);
  }
  void Move(PolicyId id, bool absent) {
    if (!Placed(entries_, id)) return;
    set(id).Remove(id);
    Put(id, absent);
  }

  std::mt19937_64 random_;
  uint32_t phase_ = 0;
  IdTable<Entry> entries_;
  Side marked_{&entries_}, unmarked_{&entries_};
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewMarkPredictPolicy(const PolicyContext& context) {
  return std::make_unique<MarkPredictPolicy>(context);
}

}  // namespace terrace
