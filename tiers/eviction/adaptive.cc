#include "tiers/eviction/adaptive.h"

namespace terrace {

AdaptivePolicy::AdaptivePolicy(const std::vector<ShadowContest::Maker>& makers) : contest_(makers) {
  for (const ShadowContest::Maker& make : makers) experts_.push_back(make());
}

void AdaptivePolicy::Track(PolicyId id, const TrackInfo& info) {
  for (const auto& expert : experts_) expert->Track(id, info);
  contest_.Track(id, info);
}

void AdaptivePolicy::Touch(PolicyId id) {
  for (const auto& expert : experts_) expert->Touch(id);
  contest_.Touch(id);
}

std::optional<PolicyId> AdaptivePolicy::Evict(absl::FunctionRef<bool(PolicyId)> evictable) {
  const std::optional<PolicyId> id = experts_[leader()]->Evict(evictable);
  if (!id) return std::nullopt;
  for (size_t i = 0; i < experts_.size(); ++i) {
    if (i != leader()) experts_[i]->Forget(*id);
  }
  contest_.Evicted(*id);
  return id;
}

void AdaptivePolicy::Forget(PolicyId id) {
  for (const auto& expert : experts_) expert->Forget(id);
  contest_.Forget(id);
}

void AdaptivePolicy::Hint(PolicyId id, uint64_t next_use, float confidence) {
  for (const auto& expert : experts_) expert->Hint(id, next_use, confidence);
  contest_.Hint(id, next_use, confidence, /*is_use=*/true);
}

// The shadows hear of it with the object's next stay.
void AdaptivePolicy::Reprice(PolicyId id, uint64_t bytes, uint32_t cost_us) {
  for (const auto& expert : experts_) expert->Reprice(id, bytes, cost_us);
}

void AdaptivePolicy::SetCapacity(uint64_t bytes) {
  for (const auto& expert : experts_) expert->SetCapacity(bytes);
}

}  // namespace terrace
