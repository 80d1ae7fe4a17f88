// GreedyDual-Size with frequency. L. Cherkasova: Improving WWW proxies performance with
// Greedy-Dual-Size-Frequency caching policy. HP Laboratories HPL-98-69, 1998.
// And its prefix-aware form, PGDSF. C. Jin, Z. Zhang, X. Jiang, F. Liu, X. Liu, X. Liu, X. Jin:
// RAGCache: efficient knowledge caching for retrieval-augmented generation. 2024.
//
// The score is clock + uses * cost / bytes, where the clock is the highest score that was evicted:
// what was not used since falls behind. GDSF takes the cost that the object came with last, PGDSF
// the mean of those that it came with so far, for the cost of a document depends on what is before
// it. Uses and costs are remembered, under the key, when an object leaves.
//
// A cost of 0 (unknown) is taken to be proportional to bytes: an owner gives costs for all or none.
#include <algorithm>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/policies.h"
#include "tiers/eviction/scored_policy.h"

namespace terrace {

namespace {

enum class Cost { kLatest, kMean };

class GdsfScorer {
 public:
  struct Past {
    uint32_t uses = 0;
    uint32_t stays = 0;
    float cost = 0;  // for a byte
  };
  struct State : Past {
    uint64_t key_head = 0;
  };

  explicit GdsfScorer(Cost cost) : cost_(cost) {}

  double Track(State& state, const TrackInfo& info) {
    static_cast<Past&>(state) = ghosts_.Take(info.key_head).value_or(Past{});
    state.key_head = info.key_head;
    ++state.stays;
    Learn(state, info.bytes, info.cost_us);
    ++tracked_;
    return Touch(state);
  }

  double Touch(State& state) {
    ++state.uses;
    return clock_ + static_cast<double>(state.uses) * state.cost;
  }

  double Reprice(State& state, double score, uint64_t bytes, uint32_t cost_us) {
    const float before = state.cost;
    Learn(state, bytes, cost_us);
    return score + static_cast<double>(state.uses) * (state.cost - before);
  }

  void Leave(State& state, double score, bool evicted) {
    --tracked_;
    if (!evicted) return;
    clock_ = std::max(clock_, score);
    ghosts_.Add(state.key_head, 0, state);
    ghosts_.TrimTo(MostGhosts(tracked_));
  }

 private:
  void Learn(State& state, uint64_t bytes, uint32_t cost_us) {
    const float cost =
        cost_us == 0 || bytes == 0 ? 1 : static_cast<float>(cost_us) / static_cast<float>(bytes);
    state.cost +=
        (cost - state.cost) / (cost_ == Cost::kMean ? static_cast<float>(state.stays) : 1);
  }

  const Cost cost_;
  double clock_ = 0;
  uint32_t tracked_ = 0;
  Ghosts<Past> ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewGdsfPolicy() {
  return std::make_unique<ScoredPolicy<GdsfScorer>>(Cost::kLatest);
}
std::unique_ptr<EvictionPolicy> NewPgdsfPolicy() {
  return std::make_unique<ScoredPolicy<GdsfScorer>>(Cost::kMean);
}

}  // namespace terrace
