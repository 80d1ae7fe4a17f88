// Which table codes which round of a tile: the part of the format that encoder and decoder share.
// docs/formats/chunk.md, "Rounds of a tile". Integers only. Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "codec/kv_shape.h"
#include "codec/profile.h"
#include "kernels/rans.h"
#include "kernels/tile_rounds.h"

namespace terrace::codec {

using kernels::kEscapeSymbol;
using kernels::kHighestLevel;
using kernels::kLowestLevel;
using kernels::kRawLevel;
using kernels::kZeroSymbol;
using kernels::PowerOf16th;

inline constexpr uint32_t kMaxGroups = kTileTokens / kernels::kRansLanes;

class TilePlan {
 public:
  // Of `tokens` tokens (1 .. kTileTokens) with the given levels.
  TilePlan(const SectionProfile& section, int32_t lambda16, const int8_t* levels, uint32_t tokens);

  // Of every tile of so many tokens and channels, whatever its levels.
  static kernels::RansShape ShapeOf(uint32_t tokens, uint32_t channels);
  // Of its refinement: the same rounds without levels, coded with the same tables' numbers.
  static kernels::RansShape RefinedShapeOf(uint32_t tokens, uint32_t channels);

  uint32_t groups() const { return groups_; }
  // Active lanes of a round.
  uint32_t Lanes(uint32_t round) const {
    return static_cast<uint32_t>((round + 1) % groups_ == 0 ? shape_.tail_lanes
                                                            : kernels::kRansLanes);
  }
  const kernels::RansShape& shape() const { return shape_; }
  // A table id a round: first the levels of 32 tokens each, then by channel and group.
  const std::vector<uint8_t>& schedule() const { return schedule_; }
  // Bits below the symbol of round r, stored as they are.
  uint32_t LowBits(uint32_t round) const { return kernels::LowBitsOfTable(schedule_[round]); }
  // Of all rounds together.
  size_t AllLowBits() const { return all_low_bits_; }
  // Token order_[i] is in lane i % 32 of group i / 32: by level, equal ones in their own order.
  const std::array<uint8_t, kTileTokens>& order() const { return order_; }

 private:
  kernels::RansShape shape_;
  uint32_t groups_;
  std::array<uint8_t, kTileTokens> order_;
  std::vector<uint8_t> schedule_;
  size_t all_low_bits_ = 0;
};

}  // namespace terrace::codec
