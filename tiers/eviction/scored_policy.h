// A policy that evicts the least score, where a score changes only when its object is used: a heap,
// and a Scorer that has
//   struct State                               what it keeps of an object, small
//   double Track(State&, const TrackInfo&)     the object's score
//   double Touch(State&)                       its score from now on
//   void Leave(State&, double score, bool evicted)
//   double Reprice(State&, double score, uint64_t bytes, uint32_t cost_us)   if costs count
// O(log n); refused candidates r cost O(r log r).
#pragma once

#include <optional>

#include "tiers/eviction/id_heap.h"
#include "tiers/eviction/policy.h"

namespace terrace {

template <class Scorer>
class ScoredPolicy final : public EvictionPolicy {
 public:
  // Of the scorer's arguments.
  template <class... Args>
  explicit ScoredPolicy(Args... args) : scorer_(args...) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    Entry& entry = entries_.At(id);
    static_cast<typename Scorer::State&>(entry) = {};
    heap_.Push(id, scorer_.Track(entry, info));
  }

  void Touch(PolicyId id) override {
    if (Placed(entries_, id)) heap_.Update(id, scorer_.Touch(entries_[id]));
  }

  void Reprice(PolicyId id, uint64_t bytes, uint32_t cost_us) override {
    if constexpr (requires(typename Scorer::State & state) {
                    scorer_.Reprice(state, 0.0, bytes, cost_us);
                  }) {
      if (!Placed(entries_, id)) return;
      heap_.Update(id, scorer_.Reprice(entries_[id], heap_.KeyOf(id), bytes, cost_us));
    }
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    const std::optional<PolicyId> id = heap_.First(evictable);
    if (id) Leave(*id, true);
    return id;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) Leave(id, false);
  }

 private:
  struct Entry : IdPosition, Scorer::State {};

  void Leave(PolicyId id, bool evicted) {
    scorer_.Leave(entries_[id], heap_.KeyOf(id), evicted);
    heap_.Remove(id);
  }

  Scorer scorer_;
  IdTable<Entry> entries_;
  IdHeap<Entry, double> heap_{&entries_};
};

}  // namespace terrace
