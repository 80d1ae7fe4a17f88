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

// Greedy dual by uses, cost and size (GDSF), and with mean costs (PGDSF, of RAGCache).
// O(log n), an eviction O(log n + refused log refused).
std::unique_ptr<EvictionPolicy> NewGdsfPolicy();
std::unique_ptr<EvictionPolicy> NewPgdsfPolicy();

// Recency and computation saved for a byte. As GDSF.
std::unique_ptr<EvictionPolicy> NewMarconiPolicy();

// Least frequently and recently used. O(1), an eviction O(255 + refused).
std::unique_ptr<EvictionPolicy> NewLfruPolicy();

// Of experts, least frequently used within each layer's share. O(log n), an eviction
// O(layers + log n + refused log refused).
std::unique_ptr<EvictionPolicy> NewLfuLayerPolicy(const PolicyContext& context);

// Of experts, latest expected next use. O(1), an eviction O(layers + experts of the layers used
// since the last one), a thousand of a layer at most; when its first choice is refused, of all
// layers, and O(refused).
std::unique_ptr<EvictionPolicy> NewLenuPolicy(const PolicyContext& context);

// Succinct predictions: one bit a use, as a hint of kNeverUsed. O(1), an eviction O(1 + refused)
// amortised: a phase's end costs as much as its refused candidates.
std::unique_ptr<EvictionPolicy> NewDiscardBitPolicy();
std::unique_ptr<EvictionPolicy> NewDiscardBitRandomPolicy(const PolicyContext& context);
std::unique_ptr<EvictionPolicy> NewMarkPredictPolicy(const PolicyContext& context);

// Belady's offline optimum, by hints of each id's exact next use. O(log n), an eviction in addition
// O(classes + refused), see min.cc.
std::unique_ptr<EvictionPolicy> NewMinPolicy(const PolicyContext& context);

}  // namespace terrace
