#include "tiers/eviction/miss_ratio_curve.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <utility>

namespace terrace {

namespace {

constexpr uint16_t kEmpty = 0xffff;
constexpr uint32_t kFan = 32;  // slots a sum, sums a sum of sums
constexpr uint32_t kSubBuckets = 32;
constexpr uint32_t kBuckets = 64 * kSubBuckets;

// Keys of tests and traces are small numbers: every bit of a key decides (the finaliser of
// SplitMix64).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Bucket b holds distances above BucketStart(b) up to BucketStart(b + 1).
uint32_t BucketOf(uint64_t distance) {
  const uint64_t below = distance - 1;
  if (below < kSubBuckets) return static_cast<uint32_t>(below);
  const auto octave = static_cast<uint32_t>(std::bit_width(below)) - 1;  // at least 5
  const auto part = static_cast<uint32_t>(below >> (octave - 5)) % kSubBuckets;
  return (octave - 4) * kSubBuckets + part;
}

double BucketStart(uint32_t bucket) {
  if (bucket < kSubBuckets) return bucket;
  const uint32_t octave = bucket / kSubBuckets + 4;
  return std::ldexp(kSubBuckets + bucket % kSubBuckets, static_cast<int>(octave) - 5);
}

uint64_t Weighted(uint64_t bytes, float weight) {
  return static_cast<uint64_t>(static_cast<double>(bytes) * weight);
}

// Of up to kFan values. Whole numbers, so that the compiler adds several at once.
uint64_t Sum(const uint64_t* values, uint32_t count) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

}  // namespace

MissRatioCurve::MissRatioCurve(uint64_t max_bytes, uint32_t max_samples)
    : max_bytes_(max_bytes), max_samples_(max_samples), accesses_(kBuckets), bytes_(kBuckets) {
  assert(max_samples >= 64 && max_samples <= 32768);
  samples_.reserve(max_samples_);
  index_.assign(std::bit_ceil(max_samples_ * 2), kEmpty);
  const uint32_t slots = (2 * max_samples_ + kFan - 1) / kFan * kFan;
  slot_bytes_.resize(slots);
  slot_sums_.resize((slots / kFan + kFan - 1) / kFan * kFan);
  slot_sums2_.resize(slot_sums_.size() / kFan);
}

double MissRatioCurve::RateBelow(uint64_t threshold) {
  return (static_cast<double>(threshold) + 1) * 0x1p-64;
}

// Its place in the index, or the empty one where it would be.
uint32_t MissRatioCurve::Find(uint64_t hash) const {
  const auto mask = static_cast<uint32_t>(index_.size() - 1);
  // The low bits: the high ones say only that it is watched.
  auto place = static_cast<uint32_t>(hash) & mask;
  while (index_[place] != kEmpty && samples_[index_[place]].hash != hash) {
    place = (place + 1) & mask;
  }
  return place;
}

void MissRatioCurve::Access(uint64_t key_head, uint64_t bytes) {
  accesses_.all += 1;
  bytes_.all += static_cast<double>(bytes);
  const uint64_t hash = Mix(key_head);
  if (hash > watched_below_) return;
  if (next_slot_ == 2 * max_samples_ || samples_.size() == max_samples_) {
    Compact();
    if (hash > watched_below_) return;
  }
  const uint32_t place = Find(hash);
  const auto weight = static_cast<float>(1 / RateBelow(watched_below_));
  const bool counted = hash <= counted_below_;
  if (index_[place] == kEmpty) {
    index_[place] = static_cast<uint16_t>(samples_.size());
    samples_.push_back({hash, bytes, next_slot_, weight});
    if (counted) Count(0, bytes);
  } else {
    Sample& sample = samples_[index_[place]];
    if (counted) Count(BytesAfter(sample.slot) + bytes, bytes);
    AddBytes(sample.slot, -Weighted(sample.bytes, sample.weight));
    sample = {hash, bytes, next_slot_, weight};
  }
  AddBytes(next_slot_, Weighted(bytes, weight));
  ++next_slot_;
}

void MissRatioCurve::SetBytes(uint64_t key_head, uint64_t bytes) {
  const uint64_t hash = Mix(key_head);
  if (hash > watched_below_) return;
  const uint32_t place = Find(hash);
  if (index_[place] == kEmpty) return;
  Sample& sample = samples_[index_[place]];
  AddBytes(sample.slot, Weighted(bytes, sample.weight) - Weighted(sample.bytes, sample.weight));
  sample.bytes = bytes;
}

// Distance 0: it was not used before.
void MissRatioCurve::Count(uint64_t distance_bytes, uint64_t bytes) {
  const double weight = 1 / RateBelow(counted_below_);
  const double weighted_bytes = weight * static_cast<double>(bytes);
  sampled_accesses_ += 1;
  accesses_.sampled += weight;
  bytes_.sampled += weighted_bytes;
  if (distance_bytes == 0) return;
  const uint32_t bucket = BucketOf(distance_bytes);
  accesses_.at[bucket] += weight;
  bytes_.at[bucket] += weighted_bytes;
}

// Bytes of objects that were last used after this slot.
uint64_t MissRatioCurve::BytesAfter(uint32_t slot) const {
  const uint32_t sum = slot / kFan;
  const uint32_t sum2 = sum / kFan;
  return Sum(&slot_bytes_[slot] + 1, kFan - 1 - slot % kFan) +
         Sum(&slot_sums_[sum] + 1, kFan - 1 - sum % kFan) +
         Sum(&slot_sums2_[sum2] + 1, static_cast<uint32_t>(slot_sums2_.size()) - 1 - sum2);
}

void MissRatioCurve::AddBytes(uint32_t slot, uint64_t bytes) {
  slot_bytes_[slot] += bytes;
  slot_sums_[slot / kFan] += bytes;
  slot_sums2_[slot / kFan / kFan] += bytes;
}

void MissRatioCurve::Compact() {
  ForgetTheDeep();
  AdaptRate();
  Renumber();
}

// slot_bytes_ is made anew by Renumber: until then it is room to work in. Here: which sample was
// last used in each slot, as its position plus 1. Sorting by slot takes a millisecond, this does
// not.
void MissRatioCurve::FindBySlot() {
  std::fill(slot_bytes_.begin(), slot_bytes_.end(), 0);
  for (size_t i = 0; i < samples_.size(); ++i) slot_bytes_[samples_[i].slot] = i + 1;
}

void MissRatioCurve::ForgetTheDeep() {
  FindBySlot();
  double depth_bytes = 0;
  for (uint32_t slot = next_slot_; slot-- > 0;) {
    if (slot_bytes_[slot] == 0) continue;
    Sample& sample = samples_[slot_bytes_[slot] - 1];
    if (depth_bytes > static_cast<double>(max_bytes_)) sample.weight = 0;
    depth_bytes += static_cast<double>(sample.bytes) * sample.weight;
  }
  std::erase_if(samples_, [](const Sample& sample) { return sample.weight == 0; });
}

// Watches fewer objects when there is no room for more, and more when there is much.
void MissRatioCurve::AdaptRate() {
  const uint32_t keep = max_samples_ - max_samples_ / 8;
  if (samples_.size() > keep) {
    for (size_t i = 0; i < samples_.size(); ++i) slot_bytes_[i] = samples_[i].hash;
    const auto at = slot_bytes_.begin() + keep;
    std::nth_element(slot_bytes_.begin(), at,
                     slot_bytes_.begin() + static_cast<ptrdiff_t>(samples_.size()));
    watched_below_ = *at - 1;
    counted_below_ = std::min(counted_below_, watched_below_);
    std::erase_if(samples_, [this](const Sample& s) { return s.hash > watched_below_; });
    const auto weight = static_cast<float>(1 / RateBelow(watched_below_));
    for (Sample& sample : samples_) sample.weight = std::max(sample.weight, weight);
    return;
  }
  const auto unturned = [this](const Sample& s) { return s.slot < unturned_slot_; };
  if (std::any_of(samples_.begin(), samples_.end(), unturned)) return;
  counted_below_ = watched_below_;
  if (samples_.size() < max_samples_ / 4 && watched_below_ != UINT64_MAX) {
    watched_below_ = watched_below_ > UINT64_MAX / 2 ? UINT64_MAX : watched_below_ * 2 + 1;
    unturned_slot_ = next_slot_;
  }
}

void MissRatioCurve::Renumber() {
  FindBySlot();
  std::fill(slot_sums_.begin(), slot_sums_.end(), 0);
  std::fill(slot_sums2_.begin(), slot_sums2_.end(), 0);
  std::fill(index_.begin(), index_.end(), kEmpty);
  uint32_t unturned = 0;
  uint32_t next = 0;
  for (uint32_t slot = 0; slot < next_slot_; ++slot) {
    const uint64_t found = std::exchange(slot_bytes_[slot], 0);
    if (found == 0) continue;
    Sample& sample = samples_[found - 1];
    if (slot < unturned_slot_) ++unturned;
    index_[Find(sample.hash)] = static_cast<uint16_t>(found - 1);
    sample.slot = next++;  // at most `slot`: what is written here has been read
    AddBytes(sample.slot, Weighted(sample.bytes, sample.weight));
  }
  next_slot_ = next;
  unturned_slot_ = unturned;
}

void MissRatioCurve::Histogram::Decay(double factor) {
  for (double& weight : at) weight *= factor;
  sampled *= factor;
  all *= factor;
}

void MissRatioCurve::Decay(double factor) {
  accesses_.Decay(factor);
  bytes_.Decay(factor);
  sampled_accesses_ *= factor;
}

double MissRatioCurve::Histogram::MissRatio(uint64_t cache_bytes) const {
  if (all <= 0) return 1;
  const auto size = static_cast<double>(cache_bytes);
  double hits = all - sampled;
  for (uint32_t b = 0; b < kBuckets && BucketStart(b) < size; ++b) {
    const double start = BucketStart(b);
    hits += at[b] * std::min(1.0, (size - start) / (BucketStart(b + 1) - start));
  }
  return 1 - std::clamp(hits / all, 0.0, 1.0);
}

double MissRatioCurve::MissRatio(uint64_t cache_bytes) const {
  return accesses_.MissRatio(std::min(cache_bytes, max_bytes_));
}

double MissRatioCurve::ByteMissRatio(uint64_t cache_bytes) const {
  return bytes_.MissRatio(std::min(cache_bytes, max_bytes_));
}

uint64_t MissRatioCurve::MemoryBytes() const {
  const auto held = [](const auto& v) { return v.capacity() * sizeof(v[0]); };
  return sizeof *this + held(samples_) + held(index_) + held(slot_bytes_) + held(slot_sums_) +
         held(slot_sums2_) + held(accesses_.at) + held(bytes_.at);
}

}  // namespace terrace
