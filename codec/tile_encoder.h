// Encodes tiles of codec 3 (docs/formats/chunk.md, "A tile of codec 3") with a calibrated profile:
// un-RoPE, mean, linear transform and one step in a weighted space, token levels, rANS. Everything
// that a decoder computes is either an integer or a float operation that rounds once (fused where
// the format says so), so that every machine decodes the same bytes; encoders agree as well.
//
// Where it comes from: rotation undone before quantising, KVQuant (arXiv:2401.18079); a KLT of KV,
// KVTC (arXiv:2511.01815); weights from the Fisher matrix, Optimal Brain Damage (LeCun et al.,
// 1990); entropy-coded uniform quantiser, Gish and Pierce (1968). Token levels are terrace's own.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "codec/profile.h"
#include "codec/tile_plan.h"
#include "kernels/tile_math.h"

namespace terrace::codec {

// What a token's levels are chosen from: sums over its un-rotated K and V, weighted as the sections
// of K (a) and of V (b) say.
struct TokenSums {
  kernels::RowSums k, v;
};
TokenSums SumToken(const Profile& profile, uint32_t layer, const float* k, const float* v);
// The token's level in section `s`; kRawLevel when a value is not finite.
int8_t LevelOf(const Profile& profile, uint32_t s, const TokenSums& sums);

// One tile of a section. Tokens are added, then packed into symbols; then the symbols of several
// tiles can be coded in lockstep. May be used again.
class TileEncoder {
 public:
  // All must outlive it. `inverse` as InverseTransform. `refined`: with digits for a third of the
  // step.
  TileEncoder(const Profile& profile, uint32_t section, const std::vector<float>& inverse,
              int32_t lambda16, bool refined);

  void Begin(uint32_t tokens);
  // Tokens [first, first + count), un-rotated, [token][channel], and their levels. The values are
  // changed. A token that is raw, or whose coefficients do not fit, is kept as it came.
  static constexpr uint32_t kBatch = 8;
  void Add(uint32_t first, uint32_t count, const int8_t* levels, float* values);
  void Pack();

  const kernels::RansShape& shape() const { return plan_->shape(); }
  // To be coded, with room for what comes out.
  kernels::RansSource Source();
  bool IsRaw(uint32_t token) const { return levels_[token] == kRawLevel; }
  // Appends the tile but for its raw tokens, which must follow; `rans_bytes` of Source() were made.
  void AppendTo(std::vector<uint8_t>* out, size_t rans_bytes) const;

  // The refinement, a stream of its own shape and bank.
  kernels::RansShape refined_shape() const;
  kernels::RansSource RefinedSource();
  std::span<const uint8_t> RefinedStream(size_t rans_bytes) const {
    return {refined_stream_.data(), rans_bytes};
  }

 private:
  void PackGroup(uint32_t group);
  void PackDigits(uint32_t group);

  const Profile& profile_;
  const SectionProfile& section_;
  const std::vector<float>& inverse_;
  const int32_t lambda16_;
  const bool refined_;

  uint32_t tokens_ = 0;
  std::array<int8_t, kTileTokens> levels_;
  std::vector<int16_t> quantised_;   // [token][coefficient]
  std::vector<float> coefficients_;  // of a batch
  std::optional<TilePlan> plan_;
  std::vector<uint8_t> symbols_;  // 32 a round
  std::vector<uint8_t> stream_;
  std::vector<uint32_t> escaped_;   // lanes, of each round
  std::vector<uint32_t> plane_at_;  // of each round; empty when there are none
  std::vector<uint32_t> planes_;
  std::vector<std::pair<uint32_t, int16_t>> escapes_;  // place, coefficient
  std::vector<int8_t> digits_;                         // [token][coefficient]
  std::vector<uint8_t> digit_symbols_, refined_stream_;
};

}  // namespace terrace::codec
