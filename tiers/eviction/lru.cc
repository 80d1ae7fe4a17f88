#include <deque>

#include "tiers/eviction/policy.h"

namespace terrace {

namespace {

constexpr PolicyId kNone = 0xffffffffu;

// A doubly linked list threaded through an array indexed by id; front is the oldest.
class LruPolicy final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo&) override {
    if (id >= links_.size()) links_.resize(id + 1, kUntracked);
    Append(id);
  }

  void Touch(PolicyId id) override {
    if (!tracked(id) || id == newest_) return;
    Remove(id);
    Append(id);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    for (PolicyId id = oldest_; id != kNone; id = links_[id].newer) {
      if (!evictable(id)) continue;
      Remove(id);
      return id;
    }
    return std::nullopt;
  }

  void Forget(PolicyId id) override {
    if (tracked(id)) Remove(id);
  }

 private:
  struct Link {
    PolicyId older, newer;
    bool operator==(const Link&) const = default;
  };
  // No tracked id is its own neighbour, so this value is free to mean "not in the list".
  static constexpr Link kUntracked{kNone - 1, kNone - 1};

  bool tracked(PolicyId id) const { return id < links_.size() && links_[id] != kUntracked; }

  void Append(PolicyId id) {
    links_[id] = {newest_, kNone};
    if (newest_ != kNone) {
      links_[newest_].newer = id;
    } else {
      oldest_ = id;
    }
    newest_ = id;
  }

  void Remove(PolicyId id) {
    const Link link = links_[id];
    (link.older != kNone ? links_[link.older].newer : oldest_) = link.newer;
    (link.newer != kNone ? links_[link.newer].older : newest_) = link.older;
    links_[id] = kUntracked;
  }

  std::deque<Link> links_;  // grows without moving or doubling
  PolicyId oldest_ = kNone, newest_ = kNone;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewLruPolicy() { return std::make_unique<LruPolicy>(); }

}  // namespace terrace
