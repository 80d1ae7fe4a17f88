// How likely what leaves a tier is wanted again before as much as the tier holds has left, too:
// what a prefetch stands to lose with its victim. Ghosts of the latest evictions, by key head;
// decayed. One thread; O(1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace terrace {

class ReturnRate {
 public:
  // `horizon`: evictions that an object may wait for, about as many objects as the tier holds.
  explicit ReturnRate(size_t horizon) : horizon_(horizon) {}

  void Evicted(uint64_t key_head);
  // A demand for the object, wherever it is.
  void Demanded(uint64_t key_head);
  double rate() const { return returned_ / judged_; }  // 0 .. 1

 private:
  void Judge(bool returned);

  const size_t horizon_;
  uint64_t evictions_ = 0;
  double judged_ = 8, returned_ = 2;                // so much is assumed at first
  absl::flat_hash_map<uint64_t, uint64_t> ghosts_;  // key head -> the number of its eviction
  std::deque<std::pair<uint64_t, uint64_t>> order_;
};

}  // namespace terrace
