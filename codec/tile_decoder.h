// Decodes tiles of codec 3 (docs/formats/chunk.md, "A tile of codec 3"). Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "codec/kv_shape.h"
#include "codec/profile.h"
#include "codec/tile_plan.h"
#include "kernels/coefficient_rows.h"
#include "kernels/rans_decoder.h"
#include "kernels/value_rows.h"

namespace terrace::codec {

// Where the values of a section go, and what its tokens turn by.
struct SectionOutput {
  uint8_t* bytes = nullptr;
  Dtype dtype = Dtype::kBf16;
  uint32_t heads = 0, dim = 0;
  size_t token_stride = 0, head_stride = 0;  // in bytes
  kernels::RopePairing pairing = kernels::RopePairing::kNone;
  uint32_t rotary_dim = 0;
  const float* cosines = nullptr;  // [token][rotary_dim / 2]
  const float* sines = nullptr;
  bool stream = false;  // past the caches
};

// Decodes the tiles of one section, several in lockstep. Their symbols, and what they become, stay
// in the cache: a range of channels is decoded of all of them, then its values are written. Keeps
// its memory from call to call.
class TileDecoder {
 public:
  static constexpr uint32_t kTogether = kernels::RansDecoder::kTogether;

  TileDecoder(const Profile& profile, uint32_t section, int32_t lambda16,
              const SectionOutput& output);
  ~TileDecoder();

  // Tiles [first_tile, first_tile + tiles.size()), at most kTogether, each of `tokens` tokens.
  // `refined`: the refinement of each, or none. DataLoss saying which and what is wrong; then
  // nothing of what was written is meant.
  absl::Status Decode(uint32_t first_tile, uint32_t tokens,
                      std::span<const std::span<const uint8_t>> tiles,
                      std::span<const std::span<const uint8_t>> refined = {});

 private:
  struct Tile;

  void Reserve(size_t tiles, uint32_t groups, bool refined);
  absl::Status Parse(uint32_t first_token, uint32_t tokens, std::span<const uint8_t> bytes,
                     Tile* tile) const;
  absl::Status SetLevels(const uint8_t* symbols, bool refined, Tile* tile) const;
  void WriteRaw(const Tile& tile) const;
  absl::Status TakeRange(uint32_t first, uint32_t channels, const uint8_t* symbols, Tile* tile);
  // `digits`: of the refinement, as `symbols` lie; null without.
  void WriteGroup(const Tile& tile, uint32_t group, uint32_t first, const uint8_t* symbols,
                  const uint8_t* digits);
  template <typename T>
  void Unpack(const Tile& tile, uint32_t group, uint32_t first, const uint8_t* symbols, T* rows);
  void WriteHeads(const Tile& tile, uint32_t group, uint32_t first, bool narrow);

  const Profile& profile_;
  const uint32_t index_;
  const SectionProfile& section_;
  const int32_t lambda16_;
  const SectionOutput output_;
  const uint32_t together_;  // channels that are transformed together, or a head's
  const uint32_t range_;     // channels at a time: of one or more of those

  std::vector<Tile> tiles_;
  std::unique_ptr<uint8_t[]> symbols_;  // of the range: [tile][channel][group][lane]
  std::unique_ptr<uint8_t[]> digits_;   // of its refinement
  size_t symbols_each_ = 0;
  std::unique_ptr<int8_t[]> narrow_;  // [lane][channel of those together]
  std::unique_ptr<int16_t[]> wide_;
  std::unique_ptr<int8_t[]> digit_rows_;
  std::unique_ptr<int32_t[]> sums_;
  // Of the tile and range at hand.
  std::vector<kernels::LowBits> low_[kMaxGroups];  // of each channel
  uint32_t most_low_[kMaxGroups] = {};
  std::span<const uint8_t> escapes_;
};

inline constexpr uint32_t kTileFixedBytes = 8;  // rANS bytes u32, escapes u32
inline constexpr uint32_t kEscapeBytes = 6;     // place u32, coefficient i16

}  // namespace terrace::codec
