// How likely what leaves a tier is wanted again before as much as the tier holds has left, too:
// what a prefetch stands to lose with its victim. Ghosts of the latest evictions, by key head;
// decayed. One thread; O(1), amortised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace terrace {

class ReturnRate {
 public:
  // `resident`: objects that the tier holds, 1 or more; so many evictions later, the object is
  // taken not to have returned.
  void Evicted(uint64_t key_head, size_t resident);
  // A demand for the object, wherever it is.
  void Demanded(uint64_t key_head);
  double rate() const { return returned_ / judged_; }  // 0 .. 1

 private:
  void Judge(bool returned);

  uint64_t evictions_ = 0;
  double judged_ = 8, returned_ = 2;                // so much is assumed at first
  absl::flat_hash_map<uint64_t, uint64_t> ghosts_;  // key head -> the number of its eviction
  std::deque<std::pair<uint64_t, uint64_t>> order_;
};

}  // namespace terrace
