// Recency and what a byte saves. R. Pan, Z. Wang, Z. Jia, C. Karakus, L. Zancato, T. Dao, Y. Wang,
// R. Netravali: Marconi: prefix caching for the era of hybrid LLMs. MLSys 2025.
//
// The score is recency + alpha * saved computation / bytes, with cost_us for the computation. The
// paper scales both to a common range and tunes alpha online; here recency counts accesses, and a
// byte that saves as much as the mean one of all that came is worth alpha times as many accesses as
// there are objects, about one turn of the cache. Alpha is fixed: 1. Without costs all save alike,
// and it is LRU.
#include <algorithm>

#include "tiers/eviction/policies.h"
#include "tiers/eviction/scored_policy.h"

namespace terrace {

namespace {

constexpr double kAlpha = 1;
constexpr double kMemory = 1024;  // how many tracked objects the mean is over, about

class MarconiScorer {
 public:
  struct State {
    float saved = 0;  // us a byte
  };

  double Track(State& state, const TrackInfo& info) {
    const double saved =
        info.cost_us == 0 || info.bytes == 0 ? 0 : info.cost_us / static_cast<double>(info.bytes);
    state.saved = static_cast<float>(saved);
    seen_ = std::min(seen_ + 1, kMemory);
    mean_saved_ += (saved - mean_saved_) / seen_;
    ++tracked_;
    return Touch(state);
  }

  double Touch(State& state) {
    ++accesses_;
    const double relative = mean_saved_ > 0 ? state.saved / mean_saved_ : 0;
    return static_cast<double>(accesses_) + kAlpha * relative * tracked_;
  }

  void Leave(State&, double, bool) { --tracked_; }

 private:
  uint64_t accesses_ = 0;
  uint32_t tracked_ = 0;
  double seen_ = 0, mean_saved_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewMarconiPolicy() {
  return std::make_unique<ScoredPolicy<MarconiScorer>>();
}

}  // namespace terrace
