// What share of accesses would miss in an LRU cache of any size, learned online in fixed memory:
// SHARDS with a fixed number of samples (Waldspurger et al., "Efficient MRC Construction with
// SHARDS", FAST'15), for objects of different sizes. An object is watched when the hash of its key
// is below a threshold, which falls when more are watched than fit. The distance of a reuse is the
// bytes of watched objects used since, divided by the share of objects that is watched, and the
// object itself. SHARDS-adj: what sampling counted too little or too much is put down to accesses
// at the smallest distance.
//
// For a daemon that runs for months, beyond the paper:
// - Objects deeper than `max_bytes` are forgotten (at every size of interest they are misses), so
//   that the threshold follows what is in use and not all that ever was. When few are left it
//   rises; accesses to newly watched objects count once all that was used before the rise has been
//   used again or forgotten: until then one cannot tell whether they are the first.
// - Decay() lets what was counted fade. How fast is the owner's choice: there is no clock in here.
//
// One thread. At the default number of samples less than 1 MiB, allocated at once and never more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terrace {

class MissRatioCurve {
 public:
  static constexpr uint32_t kDefaultSamples = 16384;

  // Sizes beyond `max_bytes` read as that. `max_samples`: 64 .. 32768, how many objects to watch.
  explicit MissRatioCurve(uint64_t max_bytes, uint32_t max_samples = kDefaultSamples);

  // The object was asked for, found or not. O(1) amortised: every some thousand watched accesses
  // the samples are gone over, which takes tens of microseconds. `key_head` names it (any
  // distribution); `bytes` is what it takes in the cache, at least 1.
  void Access(uint64_t key_head, uint64_t bytes);
  // Its size is another than was said last. Ignored when it is not watched.
  void SetBytes(uint64_t key_head, uint64_t bytes);
  // Multiplies all that was counted so far by `factor`, 0 .. 1. What is known of last uses stays.
  void Decay(double factor);
  void SetMaxBytes(uint64_t max_bytes) { max_bytes_ = max_bytes; }

  // Share of accesses that miss at this size; 1 before the first access.
  double MissRatio(uint64_t cache_bytes) const;
  // Share of the bytes asked for that miss.
  double ByteMissRatio(uint64_t cache_bytes) const;

  // As far as they have not faded: accesses and bytes asked for, and how many accesses the curve
  // rests on.
  double accesses() const { return accesses_.all; }
  double bytes() const { return bytes_.all; }
  double sampled_accesses() const { return sampled_accesses_; }
  // Share of objects whose accesses are counted.
  double sampling_rate() const { return RateBelow(counted_below_); }
  uint64_t max_bytes() const { return max_bytes_; }
  // What the curve holds, itself included.
  uint64_t MemoryBytes() const;

 private:
  struct Sample {
    uint64_t hash;
    uint64_t bytes;
    uint32_t slot;  // of its last use: later is higher
    float weight;   // objects that one used then stands for
  };
  // Weights at distances, in buckets of equal ratio.
  struct Histogram {
    explicit Histogram(size_t buckets) : at(buckets) {}
    std::vector<double> at;
    double sampled = 0;  // weights of the accesses that were counted, first uses included
    double all = 0;      // of all accesses, watched or not
    void Decay(double factor);
    double MissRatio(uint64_t cache_bytes) const;
  };

  static double RateBelow(uint64_t threshold);
  uint32_t Find(uint64_t hash) const;
  void Count(uint64_t distance_bytes, uint64_t bytes);
  uint64_t BytesAfter(uint32_t slot) const;
  void AddBytes(uint32_t slot, uint64_t bytes);
  void Compact();
  void FindBySlot();
  void ForgetTheDeep();
  void AdaptRate();
  void Renumber();

  uint64_t max_bytes_;
  const uint32_t max_samples_;
  // Hashes up to these are watched, and counted: the latter is never higher.
  uint64_t watched_below_ = UINT64_MAX;
  uint64_t counted_below_ = UINT64_MAX;
  uint32_t unturned_slot_ = 0;  // last uses in slots below this are older than the latest rise
  uint32_t next_slot_ = 0;
  std::vector<Sample> samples_;
  std::vector<uint16_t> index_;  // open addressing by hash, of positions in samples_
  // Weighted bytes by slot of last use, and their sums over 32 and 1024 slots.
  std::vector<uint64_t> slot_bytes_, slot_sums_, slot_sums2_;
  Histogram accesses_;
  Histogram bytes_;
  double sampled_accesses_ = 0;
};

}  // namespace terrace
