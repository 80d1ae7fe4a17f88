// Whether a stored prefix is worth waiting for: a pure decision. Where a link is slower than the
// engine, the rest of the prefix is computed anew (the text level of CacheGen, Liu et al.,
// arXiv:2310.07240).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace terrace {

// One extent of a prefix, in order.
struct PrefixStep {
  uint64_t ready_us = 0;    // from now, until it and all before it are there
  uint64_t compute_us = 0;  // to make it again once those before it are there; 0: unknown
};

// How many leading steps to load so that the whole is there soonest, the others being computed
// behind them. Loads when both take equally long, and what nobody knows the cost of.
size_t StepsWorthLoading(std::span<const PrefixStep> steps);

}  // namespace terrace
