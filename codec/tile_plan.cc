#include "codec/tile_plan.h"

#include <algorithm>
#include <numeric>

namespace terrace::codec {
namespace {

int32_t FloorDivide(int64_t a, int64_t b) {  // b > 0
  return static_cast<int32_t>(a / b - (a % b < 0));
}

}  // namespace

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
  for (uint32_t t = 0; t < kTables; ++t) {
    const int scale = static_cast<int>(t) + kSmallestScale;
    low_bits_[t] = t < kScaleTables && scale >= 8 ? scale / 4 - 1 : 0;
  }
  // What a group's tables are shifted by: its mean level, as far as scales follow levels.
  std::array<int32_t, kMaxGroups> shift;
  for (uint32_t g = 0; g < groups_; ++g) {
    const uint32_t first = g * kernels::kRansLanes;
    const uint32_t lanes = Lanes(g);
    int64_t sum = 0;
    for (uint32_t i = first; i < first + lanes; ++i) sum += levels[order_[i]];
    shift[g] = FloorDivide(sum * 4 * section.level_slope, int64_t{256} * lanes) - lambda16;
  }
  schedule_.resize(shape_.rounds);
  std::fill_n(schedule_.begin(), groups_, static_cast<uint8_t>(kLevelTable));
  uint8_t* out = schedule_.data() + groups_;
  for (uint32_t c = 0; c < section.channels; ++c) {
    for (uint32_t g = 0; g < groups_; ++g) {
      const int32_t scale = (section.scale16[c] + shift[g] + 2) >> 2;
      *out++ = std::clamp(scale - kSmallestScale, 0, static_cast<int>(kScaleTables) - 1);
    }
  }
}

float PowerOf16th(int32_t exponent16) {
  static constexpr float kRoots[16] = {
      0x1p+0f,        0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
      0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
      0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
      0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  const int32_t whole = FloorDivide(exponent16, 16);
  return std::bit_cast<float>(static_cast<uint32_t>(std::clamp(whole + 127, 1, 254)) << 23) *
         kRoots[exponent16 - 16 * whole];
}

}  // namespace terrace::codec
