// Adaptive replacement cache. N. Megiddo, D. Modha: ARC: a self-tuning, low overhead replacement
// cache. FAST 2003.
//
// Sizes: lengths and the target are in bytes, and a returning ghost moves the target by its own
// size times the paper's ratio. An eviction does not know what comes in, so the target moves when
// the ghost is back, one eviction later than in the paper.
#include <algorithm>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/id_list.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

enum class Queue : uint8_t { kNone, kRecent, kFrequent };  // T1 and T2 of the paper

struct Entry : IdLink {
  uint64_t key_head = 0;
  uint64_t bytes : 62 = 0;
  uint64_t queue : 2 = 0;
};

class ArcPolicy final : public EvictionPolicy {
 public:
  explicit ArcPolicy(const PolicyContext& context) : capacity_(context.capacity_bytes) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    Entry& entry = entries_.At(id);
    entry.key_head = info.key_head;
    entry.bytes = std::max(info.bytes, uint64_t{1});
    const uint64_t recent_ghosts = recent_.ghosts.bytes();
    const uint64_t frequent_ghosts = frequent_.ghosts.bytes();
    if (recent_.ghosts.Take(info.key_head)) {
      target_ = std::min(static_cast<double>(capacity_),
                         target_ + Step(entry.bytes, frequent_ghosts, recent_ghosts));
      Append(id, Queue::kFrequent);
    } else if (frequent_.ghosts.Take(info.key_head)) {
      target_ = std::max(0.0, target_ - Step(entry.bytes, recent_ghosts, frequent_ghosts));
      Append(id, Queue::kFrequent);
    } else {
      Append(id, Queue::kRecent);
    }
    TrimGhosts();
  }

  void Touch(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    if (queue(id) == Queue::kFrequent) {
      frequent_.ids.MoveToNewest(id);
      return;
    }
    Remove(id);
    Append(id, Queue::kFrequent);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    const bool recent_first = static_cast<double>(recent_.bytes) > target_ || frequent_.ids.empty();
    for (Side* side :
         {recent_first ? &recent_ : &frequent_, recent_first ? &frequent_ : &recent_}) {
      for (PolicyId id = side->ids.oldest(); id != kEndOfList; id = side->ids.NewerThan(id)) {
        if (!evictable(id)) continue;
        side->ghosts.Add(entries_[id].key_head, entries_[id].bytes, {});
        Remove(id);
        TrimGhosts();
        return id;
      }
    }
    return std::nullopt;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) Remove(id);
  }

  void SetCapacity(uint64_t bytes) override {
    capacity_ = bytes;
    target_ = std::min(target_, static_cast<double>(bytes));
    TrimGhosts();
  }

 private:
  struct Side {
    explicit Side(IdTable<Entry>* entries) : ids(entries) {}
    IdList<Entry> ids;
    uint64_t bytes = 0;
    Ghosts<NoValue> ghosts;
  };

  // How far a ghost's return moves the target: further, the rarer its side's ghosts are.
  static double Step(uint64_t bytes, uint64_t other_ghosts, uint64_t own_ghosts) {
    const double ratio = static_cast<double>(other_ghosts) / static_cast<double>(own_ghosts);
    return std::max(1.0, ratio) * static_cast<double>(bytes);
  }

  Queue queue(PolicyId id) const { return static_cast<Queue>(entries_[id].queue); }
  Side& side(PolicyId id) { return queue(id) == Queue::kRecent ? recent_ : frequent_; }

  void Append(PolicyId id, Queue queue) {
    entries_[id].queue = static_cast<uint64_t>(queue);
    Side& to = side(id);
    to.ids.Append(id);
    to.bytes += entries_[id].bytes;
  }

  void Remove(PolicyId id) {
    Side& from = side(id);
    from.ids.Remove(id);
    from.bytes -= entries_[id].bytes;
  }

  // What was wanted once is remembered for a capacity, with what is here; all for two of them.
  void TrimGhosts() {
    while (recent_.ghosts.size() > 0 && recent_.bytes + recent_.ghosts.bytes() > capacity_) {
      recent_.ghosts.DropOldest();
    }
    while (frequent_.ghosts.size() > 0 &&
           recent_.bytes + recent_.ghosts.bytes() + frequent_.bytes + frequent_.ghosts.bytes() >
               2 * capacity_) {
      frequent_.ghosts.DropOldest();
    }
  }

  uint64_t capacity_;
  double target_ = 0;  // of recent_.bytes; a ghost of a small object moves it by a fraction
  IdTable<Entry> entries_;
  Side recent_{&entries_}, frequent_{&entries_};
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewArcPolicy(const PolicyContext& context) {
  return std::make_unique<ArcPolicy>(context);
}

}  // namespace terrace
