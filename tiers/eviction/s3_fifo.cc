// S3-FIFO. J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi: FIFO queues are all you need for cache
// eviction. SOSP 2023.
//
// Sizes: the small queue has a tenth of the capacity in bytes, ghosts are of as many bytes as the
// main queue may have.
#include <algorithm>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/id_list.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

constexpr uint32_t kMostUses = 3;       // counted
constexpr uint32_t kUsesForMain = 2;    // while in the small queue
constexpr uint64_t kSmallDivisor = 10;  // of the capacity

struct Entry : IdLink {
  uint64_t key_head = 0;
  uint64_t bytes : 48 = 0;
  uint64_t uses : 8 = 0;
  uint64_t main : 8 = 0;
};

class S3FifoPolicy final : public EvictionPolicy {
 public:
  explicit S3FifoPolicy(const PolicyContext& context) : capacity_(context.capacity_bytes) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    Entry& entry = entries_.At(id);
    entry.key_head = info.key_head;
    entry.bytes = std::max(info.bytes, uint64_t{1});
    entry.uses = 0;
    Append(id, ghosts_.Take(info.key_head).has_value());
  }

  void Touch(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    Entry& entry = entries_[id];
    if (entry.uses < kMostUses) ++entry.uses;
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    std::optional<PolicyId> victim;
    const bool small_first = small_.bytes >= capacity_ / kSmallDivisor;
    if (small_first) victim = FromSmall(evictable);
    if (!victim) victim = FromMain(evictable);
    if (!victim && !small_first) victim = FromSmall(evictable);
    return victim;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) Remove(id);
  }

  void SetCapacity(uint64_t bytes) override {
    capacity_ = bytes;
    TrimGhosts();
  }

 private:
  struct Queue {
    explicit Queue(IdTable<Entry>* entries) : ids(entries) {}
    IdList<Entry> ids;
    uint64_t bytes = 0;
  };

  void Append(PolicyId id, bool to_main) {
    Entry& entry = entries_[id];
    entry.main = to_main;
    Queue& queue = to_main ? main_ : small_;
    queue.ids.Append(id);
    queue.bytes += entry.bytes;
  }

  void Remove(PolicyId id) {
    Queue& queue = entries_[id].main ? main_ : small_;
    queue.ids.Remove(id);
    queue.bytes -= entries_[id].bytes;
  }

  // The oldest goes to the main queue if it was used, else it leaves and is remembered.
  std::optional<PolicyId> FromSmall(absl::FunctionRef<bool(PolicyId)> evictable) {
    for (PolicyId id = small_.ids.oldest(), newer; id != kEndOfList; id = newer) {
      newer = small_.ids.NewerThan(id);
      Entry& entry = entries_[id];
      if (entry.uses >= kUsesForMain) {
        Remove(id);
        entry.uses = 0;
        Append(id, true);
      } else if (evictable(id)) {
        Remove(id);
        ghosts_.Add(entry.key_head, entry.bytes, {});
        TrimGhosts();
        return id;
      }
    }
    return std::nullopt;
  }

  // The oldest starts anew for each use, else it leaves for good.
  std::optional<PolicyId> FromMain(absl::FunctionRef<bool(PolicyId)> evictable) {
    for (PolicyId id = main_.ids.oldest(), newer; id != kEndOfList; id = newer) {
      Entry& entry = entries_[id];
      if (entry.uses > 0) {
        --entry.uses;
        newer = main_.ids.NewerThan(id);
        main_.ids.MoveToNewest(id);
        if (newer == kEndOfList) newer = id;  // it is the only one that is left
      } else if (evictable(id)) {
        Remove(id);
        return id;
      } else {
        newer = main_.ids.NewerThan(id);
      }
    }
    return std::nullopt;
  }

  void TrimGhosts() {
    const uint64_t most = capacity_ - capacity_ / kSmallDivisor;
    while (ghosts_.bytes() > most) ghosts_.DropOldest();
  }

  uint64_t capacity_;
  IdTable<Entry> entries_;
  Queue small_{&entries_}, main_{&entries_};
  Ghosts<NoValue> ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewS3FifoPolicy(const PolicyContext& context) {
  return std::make_unique<S3FifoPolicy>(context);
}

}  // namespace terrace
