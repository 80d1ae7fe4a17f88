// Whether prefetching for a source of hints pays: what its prefetches saved against what they cost,
// over a decayed window. A source that stops paying is switched off and kept being scored by what
// its prefetches would have done, so that it can come back. One thread; O(1).
#pragma once

#include <cstdint>

namespace terrace {

class SourceAccount {
 public:
  // One prefetch of the source was judged. While the source is off, one that was only imagined.
  void Record(double gain_us, double cost_us);
  bool on() const { return on_; }
  uint64_t verdicts() const { return verdicts_; }  // ever
  uint64_t switches() const { return switches_; }

 private:
  // About so many verdicts are remembered; so many are needed before anything is switched.
  static constexpr double kRemembered = 128, kNeeded = 24;
  // To come back, gain must exceed cost by this factor: a verdict in imagination is a lenient one.
  static constexpr double kMargin = 1.5;

  bool on_ = true;
  double gain_us_ = 0, cost_us_ = 0, weight_ = 0;
  uint64_t verdicts_ = 0, switches_ = 0;
};

}  // namespace terrace
