// Every policy's maker but LRU's (policy.h); registry.h finds them by name. Each file says where
// its policy comes from. n: tracked ids; refused: candidates that `evictable` refused in a call.
#pragma once

#include <memory>

#include "tiers/eviction/policy.h"

namespace terrace {

// Adaptive replacement cache: recency and frequency, balanced by what returns of what left.
// O(1), an eviction O(1 + refused).
std::unique_ptr<EvictionPolicy> NewArcPolicy(const PolicyContext& context);

// Three queues: small for the new, main for what was wanted again, ghosts. O(1), an eviction
// O(1 + refused) amortised: an id passes its queue once for each use, three at most.
std::unique_ptr<EvictionPolicy> NewS3FifoPolicy(const PolicyContext& context);

// Least expected hits for the space, as learned from reuse times. O(1) amortised over orders anew
// (tens of microseconds), an eviction in addition O(lists / 64 + refused).
std::unique_ptr<EvictionPolicy> NewHitDensityPolicy();

// Belady's offline optimum, by hints of each id's exact next use. O(log n), an eviction in addition
// O(classes + refused), see min.cc.
std::unique_ptr<EvictionPolicy> NewMinPolicy(const PolicyContext& context);

}  // namespace terrace
