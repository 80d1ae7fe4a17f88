#include "tiers/eviction/adaptive.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "tiers/eviction/past_uses.h"

namespace terrace {

namespace {

// A shadow of so many objects tells policies apart that differ by a point, and costs under a
// millisecond where its sample must be halved.
constexpr size_t kMostSampled = 4096;
// Uses of one request are alike: only batches longer than most requests are independent.
constexpr uint64_t kBatch = 128;
// Ahead by three standard deviations, of so many batches at least: it is asked after each batch,
// and two were passed by chance once in 25 runs over real traces.
constexpr double kSignificant = 3.0;
constexpr uint64_t kLeastBatches = 8;
// What was seen is halved after so many times the sample's size in uses.
constexpr uint64_t kMemory = 16;

}  // namespace

AdaptivePolicy::AdaptivePolicy(const std::vector<Maker>& makers) : held_(makers.size()) {
  for (const Maker& make : makers) experts_.push_back({make(), ShadowCache(make())});
}

void AdaptivePolicy::Track(PolicyId id, const TrackInfo& info) {
  for (Expert& expert : experts_) expert.policy->Track(id, info);
  if (Sampled(info.key_head)) Sample(id, info);
}

void AdaptivePolicy::Touch(PolicyId id) {
  for (Expert& expert : experts_) expert.policy->Touch(id);
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  const TrackInfo& info = it->second;
  Count(info, [&](ShadowCache& shadow) { return shadow.Use(info, sample_bytes_); });
}

std::optional<PolicyId> AdaptivePolicy::Evict(absl::FunctionRef<bool(PolicyId)> evictable) {
  const std::optional<PolicyId> id = experts_[leader_].policy->Evict(evictable);
  if (!id) return std::nullopt;
  for (size_t i = 0; i < experts_.size(); ++i) {
    if (i != leader_) experts_[i].policy->Forget(*id);
  }
  Unsample(*id);
  return id;
}

void AdaptivePolicy::Forget(PolicyId id) {
  for (Expert& expert : experts_) expert.policy->Forget(id);
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  for (Expert& expert : experts_) expert.shadow.Drop(it->second.key_head);
  Unsample(id);
}

void AdaptivePolicy::Hint(PolicyId id, uint64_t next_use, float confidence) {
  for (Expert& expert : experts_) expert.policy->Hint(id, next_use, confidence);
  const auto it = sample_.find(id);
  if (it == sample_.end() || next_use == kUnknownUse || next_use == kNeverUsed) return;
  // To have kept it until it is known to be wanted is to have kept it.
  const TrackInfo& info = it->second;
  Count(info,
        [&](ShadowCache& shadow) { return shadow.Hint(info.key_head, next_use, confidence); });
}

void AdaptivePolicy::SetCapacity(uint64_t bytes) {
  for (Expert& expert : experts_) expert.policy->SetCapacity(bytes);
}

bool AdaptivePolicy::Sampled(uint64_t key_head) const {
  const uint32_t tag = PastUses::TagOf(key_head);
  return tag != 0 && (uint64_t{tag} << sample_bits_ >> 32) == 0;
}

void AdaptivePolicy::Sample(PolicyId id, const TrackInfo& info) {
  sample_[id] = info;
  sample_bytes_ += info.bytes;
  if (sample_.size() > kMostSampled) Thin();
  if (!Sampled(info.key_head)) return;
  Count(info, [&](ShadowCache& shadow) { return shadow.Use(info, sample_bytes_); });
}

void AdaptivePolicy::Unsample(PolicyId id) {
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  sample_bytes_ -= it->second.bytes;
  sample_.erase(it);
}

// Half as many keys are sampled from now on.
void AdaptivePolicy::Thin() {
  ++sample_bits_;
  std::vector<PolicyId> dropped;
  for (const auto& [id, info] : sample_) {
    if (!Sampled(info.key_head)) dropped.push_back(id);
  }
  for (PolicyId id : dropped) Unsample(id);
  for (Expert& expert : experts_) {
    expert.shadow.Retain([this](uint64_t key_head) { return Sampled(key_head); });
  }
}

void AdaptivePolicy::Count(const TrackInfo& info, absl::FunctionRef<bool(ShadowCache&)> held) {
  const double loss = info.cost_us > 0 ? info.cost_us : static_cast<double>(info.bytes) / 1024;
  for (size_t i = 0; i < experts_.size(); ++i) held_[i] = held(experts_[i].shadow) ? 1 : 0;
  for (size_t i = 0; i < experts_.size(); ++i) {
    experts_[i].batch += loss * (held_[i] - held_[leader_]);
  }
  if (++uses_ % kBatch == 0) EndBatch();
}

void AdaptivePolicy::EndBatch() {
  ++batches_;
  size_t best = leader_;
  double best_ahead = 0;
  const double fade = std::exp2(-static_cast<double>(kBatch) /
                                static_cast<double>(kMemory * std::max<size_t>(sample_.size(), 1)));
  for (size_t i = 0; i < experts_.size(); ++i) {
    Expert& expert = experts_[i];
    expert.ahead = expert.ahead * fade + expert.batch;
    expert.variance = expert.variance * fade + expert.batch * expert.batch;
    expert.batch = 0;
    if (expert.ahead > kSignificant * std::sqrt(expert.variance) && expert.ahead > best_ahead) {
      best = i;
      best_ahead = expert.ahead;
    }
  }
  if (best == leader_ || batches_ < kLeastBatches) return;
  leader_ = best;
  ++switches_;
  batches_ = 0;
  for (Expert& expert : experts_) expert.ahead = expert.variance = 0;
}

}  // namespace terrace
