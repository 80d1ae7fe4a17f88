// The offline optimum: what is wanted furthest in the future leaves first. L. A. Belady: A study of
// replacement algorithms for a virtual-storage computer. IBM Systems Journal 5(2), 1966.
//
// Where bytes and costs differ the optimum is NP-hard, and this is the usual greedy rule: the
// victim has the most of
//   (next use - now) * bytes / cost,
// the room it occupies until then for what it saves then. Ids of about one ratio of bytes to cost
// (a class, a quarter of an octave) are ordered by next use alone, so that with one size and cost,
// or with costs proportional to bytes (or unknown, which is taken to be that), it is exactly
// Belady. What is never wanted again is further away than anything; the class with the most bytes
// for their cost gives first.
#include <cmath>
#include <map>

#include "tiers/eviction/id_heap.h"
#include "tiers/eviction/policies.h"

namespace terrace {

namespace {

constexpr double kClassesPerOctave = 4;

struct Entry : IdPosition {
  int32_t weight_class = 0;
};
// Of the complement of the next use: the furthest is on top.
using Heap = IdHeap<Entry, uint64_t>;

class MinPolicy final : public EvictionPolicy {
 public:
  explicit MinPolicy(const PolicyContext& context) : now_(context.now) {}

  void Track(PolicyId id, const TrackInfo& info) override {
    ++accesses_;
    Entry& entry = entries_.At(id);
    entry.weight_class = ClassOf(info);
    const auto [heap, added] = classes_.try_emplace(entry.weight_class, &entries_);
    heap->second.Push(id, ~kUnknownUse);
  }

  void Touch(PolicyId id) override {
    ++accesses_;
    if (Placed(entries_, id)) heap(id).Update(id, ~kUnknownUse);
  }

  std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) override {
    const uint64_t now = now_ ? now_() : accesses_;
    std::optional<PolicyId> victim;
    double most = -1;
    for (auto& [weight_class, heap] : classes_) {
      const std::optional<PolicyId> id = heap.First(evictable);
      if (!id) continue;
      const uint64_t next_use = ~heap.KeyOf(*id);
      const double wait = next_use > now ? static_cast<double>(next_use - now) : 0;
      const double room = wait * std::exp2(weight_class / kClassesPerOctave);
      if (room <= most) continue;
      most = room;
      victim = id;
    }
    if (victim) Forget(*victim);
    return victim;
  }

  void Forget(PolicyId id) override {
    if (Placed(entries_, id)) heap(id).Remove(id);
  }

  void Hint(PolicyId id, uint64_t next_use, float) override {
    if (Placed(entries_, id)) heap(id).Update(id, ~next_use);
  }

 private:
  static int32_t ClassOf(const TrackInfo& info) {
    if (info.cost_us == 0 || info.bytes == 0) return 0;
    const double ratio = static_cast<double>(info.bytes) / info.cost_us;
    return static_cast<int32_t>(std::lround(kClassesPerOctave * std::log2(ratio)));
  }

  Heap& heap(PolicyId id) { return classes_.find(entries_[id].weight_class)->second; }

  std::function<uint64_t()> now_;
  uint64_t accesses_ = 0;
  IdTable<Entry> entries_;
  std::map<int32_t, Heap> classes_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> NewMinPolicy(const PolicyContext& context) {
  return std::make_unique<MinPolicy>(context);
}

}  // namespace terrace
