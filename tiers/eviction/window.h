// What is known about next uses, as of what the requests of a queue will read, goes before any
// guess (the hybrid of LSM-GNN: J. B. Park et al., arXiv 2407.15264, 2024; the eviction window of
// CachedAttention: B. Gao et al., USENIX ATC 2024). An id that is known not to be wanted leaves
// first of all. The policy within orders what nothing is known about. An id that is known to be
// wanted leaves when nothing else is left, the latest wanted first: as Belady would, if all
// requests up to the farthest known one are known.
//
// Hints may be wrong. One below a confidence of a half is not followed, and one whose time is over
// by half of its lead falls back to unknown. From the first hint on, shadow caches compare an
// order that follows them with one that does not (shadow_contest.h), and the better one is taken.
#pragma once

#include <memory>

#include "tiers/eviction/policy.h"
#include "tiers/eviction/shadow_contest.h"

namespace terrace {

// `stand_in` makes what stands for the policy in the shadow caches: one like it, or the like.
// Without `context.now` time is a count of accesses. 24 bytes an id and about 20 an id that is
// hinted. O(log n), an eviction in addition as the policy's within.
std::unique_ptr<EvictionPolicy> NewWindow(std::unique_ptr<EvictionPolicy> policy,
                                          ShadowContest::Maker stand_in,
                                          const PolicyContext& context);

}  // namespace terrace
