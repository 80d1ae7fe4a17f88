// Encodes and decodes tiles of KV with a calibrated profile: un-RoPE, mean, linear transform and
// one step in a weighted space, token levels, rANS. Everything that a decoder computes is either an
// integer or a float operation that rounds once (fused where the format says so), so that every
// machine decodes the same bytes.
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
#include <vector>

#include "absl/status/statusor.h"
#include "codec/profile.h"
#include "codec/tile_plan.h"

namespace terrace::codec {

// The inverse of a section's transform, [block][channel][coefficient]: what an encoder needs.
// Computed from the profile in double, the same on every machine. FailedPrecondition when it is
// singular.
absl::StatusOr<std::vector<float>> InverseTransform(const SectionProfile& section);

// One layer's tile, un-rotated: floats[token * channels + channel].
struct LayerTile {
  uint32_t tokens = 0;  // 1 .. kTileTokens
  const float* k = nullptr;
  const float* v = nullptr;
  const bool* raw = nullptr;  // tokens to be kept as they are
};

// Levels of the tokens for section `s` (kRawLevel where raw, or a value is not finite).
void ChooseLevels(const Profile& profile, uint32_t s, const LayerTile& tile, int8_t* levels);

struct EncodeInput {
  const kernels::RansTables* tables = nullptr;
  uint32_t tokens = 0;
  const float* values = nullptr;    // [tokens, channels], un-rotated
  const uint8_t* source = nullptr;  // the same as they came, token-major, for raw tokens
  uint32_t source_value_bytes = 2;
  int8_t* levels = nullptr;  // may become kRawLevel, for a token whose coefficients do not fit
};
// Appends the tile's bytes. `inverse` as InverseTransform (empty for Transform::kChannel).
void EncodeTile(const SectionProfile& section, const std::vector<float>& inverse, int32_t lambda16,
                const EncodeInput& input, std::vector<uint8_t>* out);

// One tile on its way back, in three steps, so that the streams of several can be decoded in
// lockstep: Start, then kernels::RansDecode of stream(), then Tokens.
class TileDecoder {
 public:
  // DataLoss saying what is wrong, for lengths that no encoder makes.
  absl::Status Start(const Profile& profile, uint32_t s, int32_t lambda16, uint32_t tokens,
                     uint32_t source_value_bytes, std::span<const uint8_t> bytes);
  kernels::RansStream* stream() { return &stream_; }
  const kernels::RansShape& shape() const { return plan_->shape(); }
  // After the stream was decoded: DataLoss when it, or an escape, is wrong.
  absl::Status Finish();
  // The token's values as they came, or null when they are quantised.
  const uint8_t* RawToken(uint32_t token) const { return raw_[token]; }
  // Un-rotated values of tokens [first, first + count), count at most kBatch, [token][channel].
  // Those of raw tokens mean nothing.
  static constexpr uint32_t kBatch = 8;
  void Tokens(uint32_t first, uint32_t count, float* values);

 private:
  absl::Status TakeEscapes();

  const SectionProfile* section_ = nullptr;
  int32_t lambda16_ = 0;
  uint32_t tokens_ = 0;
  std::array<int8_t, kTileTokens> levels_;
  std::array<const uint8_t*, kTileTokens> raw_;
  std::optional<TilePlan> plan_;
  kernels::RansStream stream_;
  std::vector<uint8_t> symbols_;
  std::span<const uint8_t> planes_, escapes_;
  std::vector<int16_t> quantised_;  // [token][coefficient]
  std::vector<int32_t> sums_;       // of a batch
};

inline constexpr uint32_t kTileFixedBytes = 8;  // rANS bytes u32, escapes u32
inline constexpr uint32_t kEscapeBytes = 6;     // place u32, coefficient i16

}  // namespace terrace::codec
