// Follows the best of several policies (shadow_contest.h). Each of them keeps the order of all that
// is in the tier, so that another one can lead at any access: a switch moves nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tiers/eviction/policy.h"
#include "tiers/eviction/shadow_contest.h"

namespace terrace {

class AdaptivePolicy final : public EvictionPolicy {
 public:
  // Each maker is called twice: for the tier and for the shadow. The first one leads at the start.
  // Requires at least one.
  explicit AdaptivePolicy(const std::vector<ShadowContest::Maker>& makers);

  void Track(PolicyId id, const TrackInfo& info) override;
  void Touch(PolicyId id) override;
  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override;
  void Forget(PolicyId id) override;
  // A known next use is a use to the shadows: what is known about is kept by others (window.h).
  void Hint(PolicyId id, uint64_t next_use, float confidence) override;
  void Reprice(PolicyId id, uint64_t bytes, uint32_t cost_us) override;
  void SetCapacity(uint64_t bytes) override;

  size_t leader() const { return contest_.leader(); }  // an index of makers
  uint64_t switches() const { return contest_.switches(); }

 private:
  std::vector<std::unique_ptr<EvictionPolicy>> experts_;
  ShadowContest contest_;
};

}  // namespace terrace
