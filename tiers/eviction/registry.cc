#include "tiers/eviction/registry.h"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tiers/eviction/adaptive.h"
#include "tiers/eviction/leaf_first.h"
#include "tiers/eviction/policies.h"
#include "tiers/eviction/window.h"

namespace terrace {

namespace {

using Maker = std::unique_ptr<EvictionPolicy> (*)(const PolicyContext& context);

struct Registered {
  PolicyEntry entry;
  Maker make;
};

// What is known about next uses before what is learned, and recency where what is learned misleads.
std::unique_ptr<EvictionPolicy> NewDefault(const PolicyContext& context) {
  const ShadowContest::Maker learned = NewHitDensityPolicy;
  return NewWindow(
      std::make_unique<AdaptivePolicy>(std::vector<ShadowContest::Maker>{learned, NewLruPolicy}),
      learned, context);
}

constexpr Registered kPolicies[] = {
    {{"default", "known next uses, then hit-density or LRU, whichever does better", false},
     NewDefault},
    {{"lru", "least recently used", false}, [](const PolicyContext&) { return NewLruPolicy(); }},
    {{"arc", "adaptive replacement: recency and frequency, balanced by ghosts", false},
     NewArcPolicy},
    {{"s3-fifo", "three FIFO queues: small, main and ghosts", false}, NewS3FifoPolicy},
    {{"hit-density", "least expected hits for the space, learned from reuse times", false},
     [](const PolicyContext&) { return NewHitDensityPolicy(); }},
    {{"gdsf", "greedy dual: uses * cost / size over an ageing clock", false},
     [](const PolicyContext&) { return NewGdsfPolicy(); }},
    {{"pgdsf", "GDSF with the mean of an object's costs, as in RAGCache", false},
     [](const PolicyContext&) { return NewPgdsfPolicy(); }},
    {{"marconi", "recency and computation saved for a byte", false},
     [](const PolicyContext&) { return NewMarconiPolicy(); }},
    {{"lfru", "least uses for the time since the last one", false},
     [](const PolicyContext&) { return NewLfruPolicy(); }},
    {{"lfu-layer", "experts: least frequently used of the fullest layer", false},
     NewLfuLayerPolicy},
    {{"lenu", "experts: latest expected next use", false}, NewLenuPolicy},
    {{"discard-bit", "succinct predictions: discard bits, deterministic", true},
     [](const PolicyContext&) { return NewDiscardBitPolicy(); }},
    {{"discard-bit-random", "succinct predictions: discard bits, randomised", true},
     NewDiscardBitRandomPolicy},
    {{"mark-predict", "succinct predictions: phase bits (Mark&Predict)", true},
     NewMarkPredictPolicy},
    {{"min", "Belady's offline optimum, from exact next uses", true}, NewMinPolicy},
};

constexpr auto kEntries = [] {
  std::array<PolicyEntry, std::size(kPolicies)> entries;
  for (size_t i = 0; i < entries.size(); ++i) entries[i] = kPolicies[i].entry;
  return entries;
}();

}  // namespace

absl::Span<const PolicyEntry> Policies() { return kEntries; }

absl::StatusOr<std::unique_ptr<EvictionPolicy>> NewPolicy(std::string_view name,
                                                          const PolicyContext& context) {
  if (context.capacity_bytes == 0) {
    return absl::InvalidArgumentError("capacity_bytes: 0; a policy's capacity is at least 1");
  }
  if (context.layers == 0) {
    return absl::InvalidArgumentError("layers: 0; a model has at least 1");
  }
  for (const Registered& registered : kPolicies) {
    if (registered.entry.name != name) continue;
    std::unique_ptr<EvictionPolicy> policy = registered.make(context);
    return context.prefixes ? NewLeafFirst(std::move(policy)) : std::move(policy);
  }
  std::vector<std::string> names;
  for (const PolicyEntry& entry : kEntries) names.emplace_back(entry.name);
  return absl::InvalidArgumentError(
      absl::StrCat("policy '", std::string(name), "': none of ", absl::StrJoin(names, ", ")));
}

}  // namespace terrace
