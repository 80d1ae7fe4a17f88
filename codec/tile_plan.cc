#include "codec/tile_plan.h"

#include <algorithm>
#include <numeric>

namespace terrace::codec {

kernels::RansShape TilePlan::ShapeOf(uint32_t tokens, uint32_t channels) {
  const size_t groups = (tokens + kernels::kRansLanes - 1) / kernels::kRansLanes;
  return {groups * (1 + channels), groups, tokens - kernels::kRansLanes * (groups - 1)};
}

TilePlan::TilePlan(const SectionProfile& section, int32_t lambda16, const int8_t* levels,
                   uint32_t tokens)
    : shape_(ShapeOf(tokens, section.channels)),
      groups_(static_cast<uint32_t>(shape_.rounds_per_channel)) {
  std::iota(order_.begin(), order_.begin() + tokens, 0);
  std::stable_sort(order_.begin(), order_.begin() + tokens,
                   [levels](uint8_t a, uint8_t b) { return levels[a] < levels[b]; });
  std::array<int32_t, kMaxGroups> shift;
  for (uint32_t g = 0; g < groups_; ++g) {
    const uint32_t first = g * kernels::kRansLanes;
    const uint32_t lanes = Lanes(g);
    int32_t sum = 0;
    for (uint32_t i = first; i < first + lanes; ++i) sum += levels[order_[i]];
    shift[g] = kernels::ShiftOfGroup(sum, section.level_slope, lanes, lambda16);
  }
  schedule_.resize(shape_.rounds);
  std::fill_n(schedule_.begin(), groups_, static_cast<uint8_t>(kLevelTable));
  uint8_t* out = schedule_.data() + groups_;
  for (uint32_t c = 0; c < section.channels; ++c) {
    for (uint32_t g = 0; g < groups_; ++g) {
      *out++ = static_cast<uint8_t>(kernels::TableOfScale(section.scale16[c], shift[g]));
    }
  }
}

}  // namespace terrace::codec
