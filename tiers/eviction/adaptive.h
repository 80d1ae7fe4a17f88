// Follows the best of several policies. Each of them keeps the order of all that is in the tier, so
// that another one can lead at any access: a switch moves nothing. Which one should, is seen in
// shadow caches, one a policy: all of a small tier's objects, of a large one's a sample by key
// (spatial sampling, as SHARDS: Waldspurger et al., FAST 2015), in as much space as the tier
// spends on the sampled ones. The leader changes when another one's shadow has saved
// significantly more, by what a hit saves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "tiers/eviction/policy.h"
#include "tiers/eviction/shadow_cache.h"

namespace terrace {

class AdaptivePolicy final : public EvictionPolicy {
 public:
  using Maker = std::function<std::unique_ptr<EvictionPolicy>()>;

  // Each maker is called twice: for the tier and for the shadow. The first one leads at the start.
  // Requires at least one.
  explicit AdaptivePolicy(const std::vector<Maker>& makers);

  void Track(PolicyId id, const TrackInfo& info) override;
  void Touch(PolicyId id) override;
  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override;
  void Forget(PolicyId id) override;
  void Hint(PolicyId id, uint64_t next_use, float confidence) override;
  void SetCapacity(uint64_t bytes) override;

  size_t leader() const { return leader_; }  // an index of makers
  uint64_t switches() const { return switches_; }

 private:
  struct Expert {
    std::unique_ptr<EvictionPolicy> policy;
    ShadowCache shadow;
    // Against the leader, in a batch of uses and over batches: saved, and the squares' sum.
    double batch = 0, ahead = 0, variance = 0;
  };

  bool Sampled(uint64_t key_head) const;
  void Sample(PolicyId id, const TrackInfo& info);
  void Unsample(PolicyId id);
  void Thin();
  // Counts a use of a sampled object that each expert's shadow does or does not hold.
  void Count(const TrackInfo& info, absl::FunctionRef<bool(ShadowCache&)> held);
  void EndBatch();

  std::vector<Expert> experts_;
  std::vector<char> held_;  // by expert, of the use that is counted
  size_t leader_ = 0;
  uint64_t switches_ = 0;
  uint64_t uses_ = 0, batches_ = 0;

  int sample_bits_ = 0;                              // one key in 2^sample_bits_ is sampled
  absl::flat_hash_map<PolicyId, TrackInfo> sample_;  // of what is in the tier
  uint64_t sample_bytes_ = 0;
};

}  // namespace terrace
