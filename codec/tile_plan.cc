#include "codec/tile_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/clones.h"

namespace terrace::codec {
namespace {

// The tables of four groups are a word.
TERRACE_CLONES
void FillWholeTile(const int16_t* scale16, size_t channels, const int32_t* shift, uint8_t* tables) {
  static_assert(kMaxGroups == 4);
  const int32_t a = shift[0], b = shift[1], c = shift[2], d = shift[3];
  for (size_t i = 0; i < channels; ++i) {
    const uint32_t word =
        kernels::TableOfScale(scale16[i], a) | kernels::TableOfScale(scale16[i], b) << 8 |
        kernels::TableOfScale(scale16[i], c) << 16 | kernels::TableOfScale(scale16[i], d) << 24;
    std::memcpy(tables + 4 * i, &word, sizeof word);
  }
}

TERRACE_CLONES
size_t SumLowBits(const uint8_t* tables, size_t count) {
  uint32_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += kernels::LowBitsOfTable(tables[i]);
  return sum;
}

}  // namespace

kernels::RansShape TilePlan::ShapeOf(uint32_t tokens, uint32_t channels) {
  const size_t groups = (tokens + kernels::kRansLanes - 1) / kernels::kRansLanes;
  return {groups * (1 + channels), groups, tokens - kernels::kRansLanes * (groups - 1)};
}

kernels::RansShape TilePlan::RefinedShapeOf(uint32_t tokens, uint32_t channels) {
  kernels::RansShape shape = ShapeOf(tokens, channels);
  shape.rounds -= shape.rounds_per_channel;
  return shape;
}

TilePlan::TilePlan(const SectionProfile& section, int32_t lambda16, const int8_t* levels,
                   uint32_t tokens)
    : shape_(ShapeOf(tokens, section.channels)),
      groups_(static_cast<uint32_t>(shape_.rounds_per_channel)) {
  // By counting.
  std::array<uint8_t, kHighestLevel - kRawLevel + 2> place{};
  for (uint32_t t = 0; t < tokens; ++t) ++place[levels[t] - kRawLevel + 1];
  std::partial_sum(place.begin(), place.end(), place.begin());
  for (uint32_t t = 0; t < tokens; ++t) order_[place[levels[t] - kRawLevel]++] = t;
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
  uint8_t* const tables = schedule_.data() + groups_;
  if (groups_ == kMaxGroups) {
    FillWholeTile(section.scale16.data(), section.channels, shift.data(), tables);
  } else {
    for (uint32_t c = 0; c < section.channels; ++c) {
      for (uint32_t g = 0; g < groups_; ++g) {
        tables[c * groups_ + g] =
            static_cast<uint8_t>(kernels::TableOfScale(section.scale16[c], shift[g]));
      }
    }
  }
  all_low_bits_ = SumLowBits(tables, size_t{section.channels} * groups_);
}

}  // namespace terrace::codec
