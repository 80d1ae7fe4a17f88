#include "tiers/eviction/id_list.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

class LruPolicy final : public EvictionPolicy {
 public:
  void Track(PolicyId id, const TrackInfo&) override {
    entries_.At(id);
    order_.Append(id);
  }

  void Touch(PolicyId id) override {
    if (Placed(entries_, id)) order_.MoveToNewest(id);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    for (PolicyId id = order_.oldest(); id != kEndOfList; id = order_.NewerThan(id)) {
      if (!evictable(id)) continue;
      order_.Remove(id);
      return id;
    }
    return std::nullopt;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) order_.Remove(id);
  }

 private:
  IdTable<IdLink> entries_;
  IdList<IdLink> order_{&entries_};
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewLruPolicy() { return std::make_unique<LruPolicy>(); }

}  // namespace terrace
