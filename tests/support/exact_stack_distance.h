// The exact miss ratio of LRU at every size, the plain way: a Fenwick tree over all accesses holds
// the bytes of each object at its last one (Mattson et al. 1970; Bennett and Kruskal 1975).
// O(log n) an access, memory in proportion to the trace: what estimates are measured against.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace terrace {

class ExactStackDistance {
 public:
  explicit ExactStackDistance(uint64_t accesses) : tree_(accesses + 1) {}

  void Access(uint64_t key, uint64_t bytes) {
    const uint64_t now = ++now_;
    asked_bytes_ += bytes;
    auto [last, first] = last_.try_emplace(key, Last{now, bytes});
    if (!first) {
      const uint64_t others = SumTo(now) - SumTo(last->second.at);
      distances_.push_back({others + bytes, bytes});
      Add(last->second.at, -last->second.bytes);
      last->second = {now, bytes};
    }
    Add(now, bytes);
  }

  // Requires that no more is added. `by_bytes`: of bytes instead of accesses.
  double MissRatio(uint64_t cache_bytes, bool by_bytes = false) {
    if (sums_.size() != distances_.size()) {
      std::sort(distances_.begin(), distances_.end());
      uint64_t sum = 0;
      for (const Reuse& reuse : distances_) sums_.push_back(sum += reuse.bytes);
    }
    const auto end =
        std::upper_bound(distances_.begin(), distances_.end(), Reuse{cache_bytes, UINT64_MAX});
    const auto hits = static_cast<uint64_t>(end - distances_.begin());
    if (!by_bytes) return 1 - static_cast<double>(hits) / static_cast<double>(now_);
    const uint64_t hit_bytes = hits == 0 ? 0 : sums_[hits - 1];
    return 1 - static_cast<double>(hit_bytes) / static_cast<double>(asked_bytes_);
  }
  // Of all objects.
  uint64_t FootprintBytes() const { return SumTo(now_); }

 private:
  struct Last {
    uint64_t at, bytes;
  };
  struct Reuse {
    uint64_t distance, bytes;
    auto operator<=>(const Reuse&) const = default;
  };
  void Add(uint64_t at, uint64_t bytes) {
    for (; at < tree_.size(); at += at & -at) tree_[at] += bytes;
  }
  uint64_t SumTo(uint64_t at) const {
    uint64_t sum = 0;
    for (; at > 0; at -= at & -at) sum += tree_[at];
    return sum;
  }

  uint64_t now_ = 0, asked_bytes_ = 0;
  std::vector<uint64_t> tree_;  // by access, from 1
  absl::flat_hash_map<uint64_t, Last> last_;
  std::vector<Reuse> distances_;
  std::vector<uint64_t> sums_;
};

}  // namespace terrace
