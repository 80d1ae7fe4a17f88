#include "tiers/eviction/shadow_contest.h"

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
// Ahead by four standard deviations, of so many batches at least: it is asked after each batch, and
// two, then three, were each passed by chance once in some 25 runs over real traces.
constexpr double kSignificant = 4.0;
constexpr uint64_t kLeastBatches = 8;
// What was seen is halved after so many times the sample's size in uses, of a small sample after 64
// batches: less could never be significant.
constexpr uint64_t kMemory = 16, kLeastMemory = 64 * kBatch;

}  // namespace

ShadowContest::ShadowContest(const std::vector<Maker>& makers) : held_(makers.size()) {
  for (const Maker& make : makers) contenders_.push_back({ShadowCache(make())});
}

void ShadowContest::Track(PolicyId id, const TrackInfo& info) {
  if (!Sampled(info.key_head)) return;
  if (sample_.try_emplace(id, info).second) {
    sample_bytes_ += info.bytes;
    if (sample_.size() > kMostSampled) Thin();
    if (!Sampled(info.key_head)) return;
  }
  Count(info, [&](ShadowCache& shadow) { return shadow.Use(info, sample_bytes_); });
}

void ShadowContest::Touch(PolicyId id) {
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  const TrackInfo& info = it->second;
  Count(info, [&](ShadowCache& shadow) { return shadow.Use(info, sample_bytes_); });
}

void ShadowContest::Evicted(PolicyId id) { Unsample(id); }

void ShadowContest::Forget(PolicyId id) {
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  for (Contender& contender : contenders_) contender.shadow.Drop(it->second.key_head);
  Unsample(id);
}

void ShadowContest::Hint(PolicyId id, uint64_t next_use, float confidence, bool is_use) {
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  const TrackInfo& info = it->second;
  const auto hint = [&](ShadowCache& shadow) {
    return shadow.Hint(info.key_head, next_use, confidence);
  };
  if (is_use && next_use < kUnknownUse) {
    Count(info, hint);
  } else {
    for (Contender& contender : contenders_) hint(contender.shadow);
  }
}

bool ShadowContest::Sampled(uint64_t key_head) const {
  const uint32_t tag = PastUses::TagOf(key_head);
  return tag != 0 && (uint64_t{tag} << sample_bits_ >> 32) == 0;
}

void ShadowContest::Unsample(PolicyId id) {
  const auto it = sample_.find(id);
  if (it == sample_.end()) return;
  sample_bytes_ -= it->second.bytes;
  sample_.erase(it);
}

// Half as many keys are sampled from now on.
void ShadowContest::Thin() {
  ++sample_bits_;
  std::vector<PolicyId> dropped;
  for (const auto& [id, info] : sample_) {
    if (!Sampled(info.key_head)) dropped.push_back(id);
  }
  for (PolicyId id : dropped) Unsample(id);
  for (Contender& contender : contenders_) {
    contender.shadow.Retain([this](uint64_t key_head) { return Sampled(key_head); });
  }
}

void ShadowContest::Count(const TrackInfo& info, absl::FunctionRef<bool(ShadowCache&)> held) {
  const double loss = info.cost_us > 0 ? info.cost_us : static_cast<double>(info.bytes) / 1024;
  for (size_t i = 0; i < contenders_.size(); ++i) held_[i] = held(contenders_[i].shadow) ? 1 : 0;
  for (size_t i = 0; i < contenders_.size(); ++i) {
    contenders_[i].batch += loss * (held_[i] - held_[leader_]);
  }
  if (++uses_ % kBatch == 0) EndBatch();
}

void ShadowContest::EndBatch() {
  ++batches_;
  size_t best = leader_;
  double best_ahead = 0;
  const uint64_t memory = std::max<uint64_t>(kMemory * sample_.size(), kLeastMemory);
  const double fade = std::exp2(-static_cast<double>(kBatch) / static_cast<double>(memory));
  for (size_t i = 0; i < contenders_.size(); ++i) {
    Contender& contender = contenders_[i];
    contender.ahead = contender.ahead * fade + contender.batch;
    contender.variance = contender.variance * fade + contender.batch * contender.batch;
    contender.batch = 0;
    if (contender.ahead > kSignificant * std::sqrt(contender.variance) &&
        contender.ahead > best_ahead) {
      best = i;
      best_ahead = contender.ahead;
    }
  }
  if (best == leader_ || batches_ < kLeastBatches) return;
  leader_ = best;
  ++switches_;
  batches_ = 0;
  for (Contender& contender : contenders_) contender.ahead = contender.variance = 0;
}

}  // namespace terrace
