// Least frequently used, layer by layer: every layer of the experts' model has an equal share of
// the room, and the layer furthest over its share gives its least used, of those the least recently
// used. Uses are remembered, under the key, when an object leaves. The policy of MoE-Infinity-like
// caches (L. Xue, Y. Fu, Z. Lu, L. Mai, M. Marina, 2024) with the shares fixed.
//
// It is meant for an owner that leases the experts of a layer together: where they come one by one,
// a new expert has few uses and makes room for the next of the same layer.
#include <algorithm>
#include <compare>
#include <vector>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/id_heap.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

struct Uses {
  uint32_t count = 0;
  uint64_t latest = 0;  // in accesses
  auto operator<=>(const Uses&) const = default;
};

struct Entry : IdPosition {
  uint16_t layer = 0;
  uint64_t key_head = 0;
  uint64_t bytes = 0;
};

class LfuLayerPolicy final : public EvictionPolicy {
 public:
  explicit LfuLayerPolicy(const PolicyContext& context) {
    layers_.reserve(context.layers);
    for (uint32_t i = 0; i < context.layers; ++i) layers_.emplace_back(&entries_);
  }

  void Track(PolicyId id, const TrackInfo& info) override {
    Entry& entry = entries_.At(id);
    entry.layer = static_cast<uint16_t>(info.depth % layers_.size());
    entry.key_head = info.key_head;
    entry.bytes = std::max(info.bytes, uint64_t{1});
    Layer& layer = layers_[entry.layer];
    layer.bytes += entry.bytes;
    layer.heap.Push(id, {ghosts_.Take(info.key_head).value_or(0) + 1, ++accesses_});
    latest_layer_ = entry.layer;
    ++tracked_;
  }

  void Touch(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    Layer& layer = layers_[entries_[id].layer];
    layer.heap.Update(id, {layer.heap.KeyOf(id).count + 1, ++accesses_});
    latest_layer_ = entries_[id].layer;
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    std::vector<uint32_t> refused(layers_.size(), 0);
    for (;;) {
      const std::optional<uint32_t> fullest = Fullest(refused);
      if (!fullest) return std::nullopt;
      const Heap& heap = layers_[*fullest].heap;
      const std::optional<PolicyId> id = heap.First(evictable);
      if (id) {
        ghosts_.Add(entries_[*id].key_head, 0, heap.KeyOf(*id).count);
        Forget(*id);
        ghosts_.TrimTo(MostGhosts(tracked_));
        return id;
      }
      refused[*fullest] = 1;
    }
  }

  void Forget(PolicyId id) override {
    if (!Placed(entries_, id)) return;
    Layer& layer = layers_[entries_[id].layer];
    layer.heap.Remove(id);
    layer.bytes -= entries_[id].bytes;
    --tracked_;
  }

 private:
  using Heap = IdHeap<Entry, Uses>;
  struct Layer {
    explicit Layer(IdTable<Entry>* entries) : heap(entries) {}
    Heap heap;
    uint64_t bytes = 0;
  };

  // Of the layers with anything that were not refused; of equals the one in use, for what comes in
  // is likely to be of it.
  std::optional<uint32_t> Fullest(const std::vector<uint32_t>& refused) const {
    std::optional<uint32_t> fullest;
    for (uint32_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].heap.empty() || refused[i]) continue;
      if (!fullest || layers_[i].bytes > layers_[*fullest].bytes ||
          (layers_[i].bytes == layers_[*fullest].bytes && i == latest_layer_)) {
        fullest = i;
      }
    }
    return fullest;
  }

  uint64_t accesses_ = 0;
  uint32_t tracked_ = 0, latest_layer_ = 0;
  IdTable<Entry> entries_;
  std::vector<Layer> layers_;
  Ghosts<uint32_t> ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewLfuLayerPolicy(const PolicyContext& context) {
  return std::make_unique<LfuLayerPolicy>(context);
}

}  // namespace terrace
