// Latest expected next use (ours), for experts: a model asks for them layer after layer, so the
// next time is known up to chance. Of an expert that a token takes with probability p it is
//   layer distance / layers + 1 / p - 1
// tokens away, the distance counted from the layer in use around to the expert's; the victim has
// the most. An expert that was used in the step in progress is a whole round away.
//
// p = 0.3 * EMA(0.55) + 0.7 * EMA(0.03) of "this step of its layer used it": what the text is about
// now, and what the model likes, each divided by the weight that its average has had so far. A step
// of a layer ends when another layer, or an expert for the second time, is used; until then it says
// nothing against those that it has not used. What is known of an expert survives its eviction
// under its key.
//
// The rates are chosen on OLMoE's routing, where they gain one to two points of hits over 0.3 and
// 0.02. On routing that they were not chosen on (tiny_olmoe) they lose half a point to one and a
// half.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/id_set.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

constexpr float kFastRate = 0.55f, kSlowRate = 0.03f;
constexpr float kFastWeight = 0.3f;
constexpr double kLeastProbability = 1e-9;
// Compared at a time, of a layer: all experts of any model. Of more, others each time.
constexpr uint32_t kMostCandidates = 1024;

struct Past {
  float fast = 0, slow = 0;  // as of step
  uint32_t step = 0;         // of its layer, when it was last used
};
struct Entry : IdPosition {
  uint16_t layer = 0;
  Past past;
  uint64_t key_head = 0;
};

// What an average of a rate keeps of a value after some steps; nothing after a thousand.
class Decay {
 public:
  explicit Decay(float rate) {
    for (size_t i = 0; i < kept_.size(); ++i) kept_[i] = std::pow(1 - rate, static_cast<float>(i));
  }
  float After(uint32_t steps) const { return steps < kept_.size() ? kept_[steps] : 0; }

 private:
  std::array<float, 1024> kept_;
};

class LenuPolicy final : public EvictionPolicy {
 public:
  explicit LenuPolicy(const PolicyContext& context) {
    layers_.reserve(context.layers);
    for (uint32_t i = 0; i < context.layers; ++i) layers_.emplace_back(&entries_);
  }

  void Track(PolicyId id, const TrackInfo& info) override {
    Entry& entry = entries_.At(id);
    entry.layer = static_cast<uint16_t>(info.depth % layers_.size());
    entry.key_head = info.key_head;
    entry.past = ghosts_.Take(info.key_head).value_or(Past{});
    layers_[entry.layer].ids.Add(id);
    ++tracked_;
    Use(entry);
  }

  void Touch(PolicyId id) override {
    if (Placed(entries_, id)) Use(entries_[id]);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    std::optional<PolicyId> victim = Latest(nullptr);
    if (victim && !evictable(*victim)) victim = Latest(&evictable);
    if (victim) {
      ghosts_.Add(entries_[*victim].key_head, 0, entries_[*victim].past);
      Forget(*victim);
      ghosts_.TrimTo(MostGhosts(tracked_));
    }
    return victim;
  }

  void Forget(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    Layer& layer = layers_[entries_[id].layer];
    layer.ids.Remove(id);
    layer.latest = kNoPolicyId;
    --tracked_;
  }

 private:
  using Evictable = absl::FunctionRef<bool(PolicyId)>;
  struct Layer {
    explicit Layer(IdTable<Entry>* entries) : ids(entries) {}
    IdSet<Entry> ids;
    uint32_t step = 0;
    PolicyId latest = kNoPolicyId;  // its candidate, while nothing of it changes
    uint32_t candidate = 0;         // of ids, where the search goes on
  };

  void Use(Entry& entry) {
    Layer& layer = layers_[entry.layer];
    if (entry.layer != in_use_ || layer.step == 0 || entry.past.step == layer.step) {
      layers_[in_use_].latest = kNoPolicyId;  // its step counts from now on
      in_use_ = entry.layer;
      ++layer.step;
    }
    Past& past = entry.past;
    past.fast = past.fast * fast_.After(layer.step - past.step) + kFastRate;
    past.slow = past.slow * slow_.After(layer.step - past.step) + kSlowRate;
    past.step = layer.step;
    layer.latest = kNoPolicyId;
  }

  // What an average is after `steps` steps of the layer, the last ones without the expert.
  static double Average(float at_use, const Decay& decay, const Past& past, uint32_t steps) {
    return at_use * decay.After(steps - past.step) / (1 - decay.After(steps));
  }

  // Rounds of the layers until it is wanted again, as expected.
  double NextUse(const Entry& entry) const {
    const Past& past = entry.past;
    const uint32_t step = layers_[entry.layer].step;
    const bool in_use = entry.layer == in_use_, used = past.step == step;
    const uint32_t steps = in_use && !used ? step - 1 : step;
    const double p = kFastWeight * Average(past.fast, fast_, past, steps) +
                     (1 - kFastWeight) * Average(past.slow, slow_, past, steps);
    const auto layers = static_cast<uint32_t>(layers_.size());
    const uint32_t distance = in_use && used ? layers : (entry.layer + layers - in_use_) % layers;
    return static_cast<double>(distance) / layers + 1 / std::max(p, kLeastProbability) - 1;
  }

  std::optional<PolicyId> LatestOf(Layer& layer, const Evictable* evictable) const {
    std::optional<PolicyId> latest;
    double most = 0;
    const uint32_t size = layer.ids.size();
    const uint32_t first = size > kMostCandidates ? layer.candidate : 0;
    uint32_t candidates = 0;
    for (uint32_t i = 0; i < size && candidates < kMostCandidates; ++i) {
      layer.candidate = (first + i) % size;
      const PolicyId id = layer.ids[layer.candidate];
      if (evictable != nullptr && !(*evictable)(id)) continue;
      ++candidates;
      const double next_use = NextUse(entries_[id]);
      if (latest && next_use <= most) continue;
      latest = id;
      most = next_use;
    }
    return latest;
  }

  // Of all, or of those that are evictable. The order within a layer changes only when it is used,
  // so its candidate is kept until then.
  std::optional<PolicyId> Latest(const Evictable* evictable) {
    std::optional<PolicyId> latest;
    for (Layer& layer : layers_) {
      std::optional<PolicyId> candidate;
      if (evictable != nullptr) {
        candidate = LatestOf(layer, evictable);
      } else if (layer.latest == kNoPolicyId) {
        candidate = LatestOf(layer, nullptr);
        layer.latest = candidate.value_or(kNoPolicyId);
      } else {
        candidate = layer.latest;
      }
      if (!candidate) continue;
      if (!latest || NextUse(entries_[*candidate]) > NextUse(entries_[*latest])) latest = candidate;
    }
    return latest;
  }

  const Decay fast_{kFastRate}, slow_{kSlowRate};
  IdTable<Entry> entries_;
  std::vector<Layer> layers_;
  uint32_t in_use_ = 0;  // the layer
  uint32_t tracked_ = 0;
  Ghosts<Past> ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewLenuPolicy(const PolicyContext& context) {
  return std::make_unique<LenuPolicy>(context);
}

}  // namespace terrace
