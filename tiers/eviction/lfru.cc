// Least frequently and recently used: the victim has the least uses for the time since the last
// one, as caches of experts have it (vllm-project/vllm pull request 37190 and its like).
//
// The score is uses / (age + kAge), both counted in accesses. It changes with time, but ids of
// equal uses keep their order: there is a list for each number of uses up to 255, and a victim is
// the best of the lists' oldest. Uses are remembered, under the key, when an object leaves.
#include <vector>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/id_list.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

constexpr uint32_t kMostUses = 255;
constexpr double kAge = 128;  // what is younger is about as recent

struct Entry : IdLink {
  uint64_t key_head = 0;
  uint64_t used_at : 56 = 0;
  uint64_t uses : 8 = 0;
};

class LfruPolicy final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo& info) override {
    Entry& entry = entries_.At(id);
    entry.key_head = info.key_head;
    entry.uses = ghosts_.Take(info.key_head).value_or(0);
    ++tracked_;
    Append(id);
  }

  void Touch(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    lists_[entries_[id].uses].Remove(id);
    Append(id);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    std::optional<PolicyId> victim;
    double least = 0;
    for (uint32_t uses = 1; uses <= kMostUses; ++uses) {
      const IdList<Entry>& list = lists_[uses];
      PolicyId id = list.oldest();
      while (id != kEndOfList && Beats(id, uses, victim, least) && !evictable(id)) {
        id = list.NewerThan(id);
      }
      if (id == kEndOfList || !Beats(id, uses, victim, least)) continue;
      victim = id;
      least = Score(id, uses);
    }
    if (victim) {
      const Entry& entry = entries_[*victim];
      ghosts_.Add(entry.key_head, 0, entry.uses);
      Forget(*victim);
      ghosts_.TrimTo(MostGhosts(tracked_));
    }
    return victim;
  }

  void Forget(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    lists_[entries_[id].uses].Remove(id);
    --tracked_;
  }

 private:
  void Append(PolicyId id) {
    Entry& entry = entries_[id];
    entry.used_at = ++accesses_;
    if (entry.uses < kMostUses) ++entry.uses;
    lists_[entry.uses].Append(id);
  }

  double Score(PolicyId id, uint32_t uses) const {
    return uses / (static_cast<double>(accesses_ - entries_[id].used_at) + kAge);
  }
  bool Beats(PolicyId id, uint32_t uses, std::optional<PolicyId> victim, double least) const {
    return !victim || Score(id, uses) < least;
  }

  uint64_t accesses_ = 0;
  uint32_t tracked_ = 0;
  IdTable<Entry> entries_;
  std::vector<IdList<Entry>> lists_{kMostUses + 1, IdList<Entry>(&entries_)};  // by uses
  Ghosts<uint32_t> ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewLfruPolicy() { return std::make_unique<LfruPolicy>(); }

}  // namespace terrace
