// What a GPU's kernels are told of profiles, tiles and an engine's memory, and the forms of a
// profile's tables and transforms that they read. The functions run on the host, from the profile's
// own forms, once a profile. Raw pointers; allocates nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rans.h"
#include "kernels/rope.h"

namespace terrace::kernels {

inline constexpr uint32_t kTilePlaces = 128;  // tokens of a tile, at most
inline constexpr uint32_t kPieceRun = 32;
inline constexpr uint32_t kSlab = 32;  // coefficients that one matrix instruction takes
inline constexpr uint32_t kGpuTables = 62;

enum class ValueFormat : uint8_t { kF32 = 1, kF16 = 2, kBf16 = 3 };  // as in the container
constexpr uint32_t BytesOf(ValueFormat format) { return format == ValueFormat::kF32 ? 4 : 2; }

// Columns of one head that a warp makes together: two runs. What turns together is in one piece: of
// RopePairing::kHalf, column k of run 0 with column k of run 1.
struct ColumnPiece {
  uint16_t head = 0;
  uint16_t block = 0;          // of the transform
  uint16_t first[2] = {0, 0};  // column within the head
  uint8_t count[2] = {0, 0};   // 0 .. kPieceRun
  bool turned = false;
  uint16_t pair = 0;  // of column 0 of both runs, of RopePairing::kHalf when turned
};

// What the cut of a section's columns depends on.
struct ColumnShape {
  uint32_t heads = 0, dim = 0;
  uint32_t block = 1;  // 1, dim, or heads * dim
  RopePairing pairing = RopePairing::kNone;
  uint32_t rotary_dim = 0;  // 0 of V

  // Coefficients in scratch: blocks (all of them when a block is 1) of a multiple of kSlab.
  constexpr uint32_t ScratchBlock() const { return block == 1 ? heads * dim : block; }
  constexpr uint32_t ScratchRows() const { return (ScratchBlock() + kSlab - 1) / kSlab * kSlab; }
  constexpr uint32_t ScratchCoefficients() const {
    return heads * dim / ScratchBlock() * ScratchRows();
  }
};

size_t PieceCount(const ColumnShape& shape);
void CutColumns(const ColumnShape& shape, ColumnPiece* pieces);

// What a lane gives the matrix instructions for 8 columns and a slab: bytes of 4 coefficients each,
// those of lane l from coefficient l % 4 * 4 and from 16 on, of column l / 4.
struct MatrixWords {
  uint32_t low[2];   // unsigned
  uint32_t high[2];  // signed: a value is 256 high + low
};

// Of column `n` (0 .. 7) of the n-tile `tile` (0 .. 7): run tile / 4 of the piece, this column of
// it. A lane so gets 8 columns next to each other of each run (kernels/tile_rows.cuh).
constexpr uint32_t ColumnOfRun(uint32_t tile, uint32_t n) {
  return n / 2 * 8 + tile % 4 * 2 + n % 2;
}

// The transform of kernels::PairRows by piece: [piece][slab][n-tile][lane], zeros past the ends.
// In MatrixWords; 0 when a block is 1.
size_t PackedMatrixSize(const ColumnShape& shape);
void PackMatrix(const ColumnShape& shape, const int16_t* pairs, const ColumnPiece* pieces,
                MatrixWords* out);

// Tables 0 .. 61 by slot: slot - start, frequency << 8, symbol << 24.
void PackDecodeTables(const RansTables& bank, uint32_t entries[kGpuTables * kRansTotal]);

// A symbol of a table as an encoder needs it.
struct EncodeSymbol {
  uint16_t frequency, start;
  uint32_t reciprocal;  // 65536 / frequency, 0 of frequency 0
};
// Tables 0 .. 61.
void PackEncodeTables(const RansTables& bank, EncodeSymbol symbols[kGpuTables * kRansSymbols]);

// One section of a profile; all pointers to memory of the GPU.
struct GpuSection {
  ColumnShape shape;
  uint32_t piece_count = 0;
  int32_t level_slope = 0;
  const int16_t* scale16 = nullptr;
  const float* mean = nullptr;
  const float* row_scale = nullptr;
  const ColumnPiece* pieces = nullptr;
  const MatrixWords* matrix = nullptr;
  // An encoder's. The transform's inverse, [channel][coefficient] of each block, null when a block
  // is 1; and the weights of levels, null when tokens have none.
  const float* inverse = nullptr;
  const float* level_weights = nullptr;
};

// Where an engine has a section's values: tokens in blocks, as paged attention keeps them. Strides
// in bytes; a head's values are next to each other.
struct KvPlaces {
  uint8_t* base = nullptr;
  const int32_t* block_table = nullptr;  // block of token / block_tokens; null: it is that block
  uint32_t block_tokens = 1;
  uint64_t block_stride = 0, token_stride = 0, head_stride = 0;
};

// A tile to be decoded; pointers to memory of the GPU.
struct DecodeJob {
  const GpuSection* section = nullptr;
  // May be anything: nothing outside of it is used. It is read by aligned words of 4 bytes, so by
  // up to 3 bytes on either side.
  const uint8_t* tile = nullptr;
  uint32_t bytes = 0;
  uint32_t tokens = 0;       // 1 .. kTilePlaces
  uint32_t first_token = 0;  // in `to`
  int32_t lambda16 = 0;
  const Turn* turns = nullptr;  // [token][rotary_dim / 2], of keys that turn
  KvPlaces to;
};

// A tile of codec 1 (kernels/exponent_nibbles.h), either way; pointers to memory of the GPU.
struct NibbleJob {
  // To be decoded: as in DecodeJob. Encoded: the room for it, and how much that is.
  uint8_t* tile = nullptr;
  uint32_t bytes = 0;
  uint32_t tokens = 0;       // 1 .. kTilePlaces
  uint32_t first_token = 0;  // in `places`
  uint32_t heads = 0, dim = 0, value_bytes = 0;
  bool bf16 = false;        // or values are kept as they are
  bool head_major = false;  // the order of the values in the tile
  KvPlaces places;
};

// What became of a tile. If not kDone, its values mean nothing.
enum class TileStatus : uint32_t {
  kDone = 0,
  kShort = 1,  // shorter than its counts
  kStreamCutOff = 2,
  kWrongLength = 3,
  kStreamDamaged = 4,
  kWrongEscapes = 5,
  kWrongForm = 6,
};

// A tile of one layer to be encoded, K and V together; pointers to memory of the GPU.
struct EncodeJob {
  const GpuSection* sections = nullptr;  // that of K; that of V comes next
  KvPlaces from[2];
  uint32_t tokens = 0;                             // 1 .. kTilePlaces
  uint32_t first_token = 0;                        // in `from`
  uint32_t raw_below = 0, raw_from = kTilePlaces;  // the tile's other tokens are kept as they are
  int32_t lambda16 = 0;
  const Turn* turns = nullptr;  // as in DecodeJob
  uint8_t* out[2] = {nullptr, nullptr};
  uint32_t capacity = 0;  // of each
};

// Scratch of one job of a layer with so many channels of K and V together, by 16 bytes.
constexpr size_t EncodeScratchBytes(uint32_t channels) {
  return size_t{kTilePlaces} * (7 * size_t{channels} + 2);
}

// Scratch of one tile: bytes of coefficients, [low, high][coefficient / 4][place][4].
constexpr size_t DecodeScratchBytes(uint32_t scratch_coefficients) {
  return size_t{2} * scratch_coefficients * kTilePlaces;
}

}  // namespace terrace::kernels
