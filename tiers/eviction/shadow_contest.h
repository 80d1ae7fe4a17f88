// Which of several policies a tier should follow, as seen in shadow caches, one a policy: of all of
// a small tier's objects, of a large one's a sample by key (spatial sampling, as SHARDS: C.
// Waldspurger et al., FAST 2015), in as much space as the tier spends on the sampled ones. Another
// policy leads when its shadow has saved significantly more, by what a hit saves. Objects without
// history (TrackInfo::key_head 0) are not seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "tiers/eviction/policy.h"
#include "tiers/eviction/shadow_cache.h"

namespace terrace {

class ShadowContest {
 public:
  using Maker = std::function<std::unique_ptr<EvictionPolicy>()>;

  // The first one leads at the start. Requires at least one.
  explicit ShadowContest(const std::vector<Maker>& makers);

  // What the tier does. Track is a use, of an id that may be tracked already.
  void Track(PolicyId id, const TrackInfo& info);
  void Touch(PolicyId id);
  void Evicted(PolicyId id);
  void Forget(PolicyId id);
  // `is_use`: to have kept the object until it is known to be wanted counts as to have kept it.
  void Hint(PolicyId id, uint64_t next_use, float confidence, bool is_use);

  size_t leader() const { return leader_; }  // an index of makers
  uint64_t switches() const { return switches_; }

 private:
  struct Contender {
    ShadowCache shadow;
    // Saved more than the leader: in a batch of uses, over batches, and the squares' sum.
    double batch = 0, ahead = 0, variance = 0;
  };

  bool Sampled(uint64_t key_head) const;
  void Unsample(PolicyId id);
  void Thin();
  // Counts a use of a sampled object that each shadow does or does not hold.
  void Count(const TrackInfo& info, absl::FunctionRef<bool(ShadowCache&)> held);
  void EndBatch();

  std::vector<Contender> contenders_;
  std::vector<char> held_;  // by contender, of the use that is counted
  size_t leader_ = 0;
  uint64_t switches_ = 0;
  uint64_t uses_ = 0, batches_ = 0;

  int sample_bits_ = 0;                              // one key in 2^sample_bits_ is sampled
  absl::flat_hash_map<PolicyId, TrackInfo> sample_;  // of what is in the tier
  uint64_t sample_bytes_ = 0;
};

}  // namespace terrace
