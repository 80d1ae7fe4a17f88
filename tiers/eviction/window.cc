#include "tiers/eviction/window.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "tiers/eviction/id_table.h"
#include "tiers/eviction/past_uses.h"
#include "tiers/eviction/shadow_contest.h"

namespace terrace {

namespace {

enum class State : uint8_t {
  kUntracked,
  kUnknown,  // the policy within has it
  kKnown,    // hinted, and not with the policy within
};

// Hints that are looked through for expired ones in a call: more than can be made in one.
constexpr int kExpiredACall = 4;
// A hint is followed if it is likelier to come true than not.
constexpr float kLikely = 0.5;
// What is needed to hand the id to the policy within again is kept with it.
struct Entry {
  uint64_t next_use = kUnknownUse;
  uint32_t name = 0;  // PastUses::TagOf its head: what the policy within knows it by
  uint32_t bytes = 0;
  uint32_t cost_us = 0;
  uint16_t depth = 0;
  uint8_t kind = 0;
  uint8_t lead_bits : 6 = 0;  // next_use was less than 2^lead_bits away when it was hinted
  State state : 2 = State::kUntracked;
};

class Window final : public EvictionPolicy {
 public:
  // Without `stand_in` nothing guards it.
  Window(std::unique_ptr<EvictionPolicy> policy, ShadowContest::Maker stand_in,
         std::function<uint64_t()> clock)
      : policy_(std::move(policy)), stand_in_(std::move(stand_in)), clock_(std::move(clock)) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    Step();
    Entry& entry = entries_.At(id);
    entry.name = PastUses::TagOf(info.key_head);
    entry.bytes =
        static_cast<uint32_t>(std::min<uint64_t>(info.bytes, std::numeric_limits<uint32_t>::max()));
    entry.cost_us = info.cost_us;
    entry.depth = info.depth;
    entry.kind = static_cast<uint8_t>(info.kind);
    entry.state = State::kUnknown;
    TrackInfo named = info;
    named.key_head = entry.name;
    if (guard_) guard_->Track(id, named);
    policy_->Track(id, named);
  }

  void Touch(PolicyId id) override {
    Step();
    const Entry* entry = Tracked(id);
    if (entry == nullptr) return;
    if (guard_) guard_->Track(id, InfoOf(*entry));
    if (entry->state == State::kKnown) {
      Return(id);
    } else {
      policy_->Touch(id);
    }
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    Expire();
    std::optional<PolicyId> id = LastKnown(/*never=*/true, evictable);
    if (!id) id = policy_->Evict(evictable);
    if (!id) id = LastKnown(/*never=*/false, evictable);
    if (!id) return std::nullopt;
    if (guard_) guard_->Evicted(*id);
    Unhint(*id);
    entries_[*id].state = State::kUntracked;
    return id;
  }

  void Forget(PolicyId id) override {
    const Entry* entry = Tracked(id);
    if (entry == nullptr) return;
    if (guard_) guard_->Forget(id);
    if (entry->state == State::kUnknown) policy_->Forget(id);
    Unhint(id);
    entries_[id].state = State::kUntracked;
  }

  void Hint(PolicyId id, uint64_t next_use, float confidence) override {
    Entry* entry = Tracked(id);
    if (entry == nullptr) return;
    if (Followed(id, next_use, confidence)) {
      Unhint(id);
      if (entry->state == State::kUnknown) {
        if (next_use != kNeverUsed) policy_->Hint(id, next_use, confidence);
        policy_->Forget(id);
      }
      entry->state = State::kKnown;
      entry->next_use = next_use;
      entry->lead_bits =
          static_cast<uint8_t>(std::min<int>(std::bit_width(next_use - Now()), kMostLeadBits));
      known_.insert({next_use, id});
    } else if (entry->state == State::kKnown) {
      Return(id);
    }
  }

  void Reprice(PolicyId id, uint64_t bytes, uint32_t cost_us) override {
    Entry* entry = Tracked(id);
    if (entry == nullptr) return;
    entry->cost_us = cost_us;
    if (entry->state == State::kUnknown) policy_->Reprice(id, bytes, cost_us);
  }
  void SetCapacity(uint64_t bytes) override { policy_->SetCapacity(bytes); }

 private:
  struct Known {
    uint64_t next_use;
    PolicyId id;
    auto operator<=>(const Known&) const = default;
  };
  static constexpr int kMostLeadBits = 62;

  Entry* Tracked(PolicyId id) {
    Entry* entry = entries_.Find(id);
    return entry != nullptr && entry->state != State::kUntracked ? entry : nullptr;
  }

  uint64_t Now() const { return clock_ ? clock_() : accesses_; }

  void Step() {
    ++accesses_;
    Expire();
  }

  // Whether the order goes by the hint. The guard sees each of them.
  bool Followed(PolicyId id, uint64_t next_use, float confidence) {
    if (stand_in_) {
      if (guard_ == nullptr) StartGuard();
      guard_->Hint(id, next_use, confidence, /*is_use=*/false);
      if (guard_->leader() != kFollow) return false;
    }
    return next_use != kUnknownUse && next_use >= Now() && confidence >= kLikely;
  }

  void StartGuard() {
    const auto follow = [this] {
      return std::make_unique<Window>(stand_in_(), nullptr, [this] { return Now(); });
    };
    guard_ = std::make_unique<ShadowContest>(std::vector<ShadowContest::Maker>{follow, stand_in_});
  }
  static constexpr size_t kFollow = 0;

  // Ids whose hints did not come true are unknown again.
  void Expire() {
    const uint64_t now = Now();
    for (int i = 0; i < kExpiredACall && !known_.empty(); ++i) {
      const auto [next_use, id] = *known_.begin();
      const uint64_t lead = uint64_t{1} << entries_[id].lead_bits;
      if (now <= next_use || now - next_use <= lead / 2) return;
      Return(id);
    }
  }

  // The last wanted one of those that are wanted, or of those that never are.
  std::optional<PolicyId> LastKnown(bool never, absl::FunctionRef<bool(PolicyId)> evictable) {
    for (auto it = known_.rbegin(); it != known_.rend(); ++it) {
      if (never && it->next_use != kNeverUsed) break;
      if (evictable(it->id)) return it->id;
    }
    return std::nullopt;
  }

  void Unhint(PolicyId id) {
    Entry& entry = entries_[id];
    if (entry.next_use == kUnknownUse) return;
    known_.erase({entry.next_use, id});
    entry.next_use = kUnknownUse;
  }

  // From those that are known about to the policy within.
  void Return(PolicyId id) {
    Unhint(id);
    entries_[id].state = State::kUnknown;
    policy_->Track(id, InfoOf(entries_[id]));
  }

  static TrackInfo InfoOf(const Entry& entry) {
    TrackInfo info;
    info.bytes = entry.bytes;
    info.cost_us = entry.cost_us;
    info.key_head = entry.name;
    info.depth = entry.depth;
    info.kind = static_cast<ObjectKind>(entry.kind);
    return info;
  }

  std::unique_ptr<EvictionPolicy> policy_;
  const ShadowContest::Maker stand_in_;
  const std::function<uint64_t()> clock_;
  std::unique_ptr<ShadowContest> guard_;  // from the first hint on
  uint64_t accesses_ = 0;
  IdTable<Entry> entries_;
  absl::btree_set<Known> known_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewWindow(std::unique_ptr<EvictionPolicy> policy,
                                          ShadowContest::Maker stand_in,
                                          const PolicyContext& context) {
  return std::make_unique<Window>(std::move(policy), std::move(stand_in), context.now);
}

}  // namespace terrace
