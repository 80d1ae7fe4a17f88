// The arithmetic of encoding and decoding a token's channels with a profile
// (codec/tile_encoder.h). The same bits on every machine: integers wrap, floats are added in the
// order given here and round after each operation, or once after a fused multiply-add where it says
// so. Any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// Sums of row[i] * row[i], row[i] * a[i] and row[i] * b[i], each fused: element i goes to partial
// sum i % 16; then partial sums 8 apart are added, 4 apart, 2 apart, and the last two.
struct RowSums {
  float squares = 0, a = 0, b = 0;
};
RowSums SumRow(const float* row, const float* a, const float* b, size_t count);

// log2, piecewise linear between powers of two (error below 0.09). 0 gives -127.
constexpr float RoughLog2(float value) {
  const auto bits = static_cast<int32_t>(std::bit_cast<uint32_t>(value));
  return static_cast<float>(bits - 0x3f800000) * 0x1p-23f;
}

// row[j] = row[j] - mean[j], then divided by scale[j] unless that is null.
void Centre(const float* mean, const float* scale, size_t count, float* row);

// For each of `tokens` tokens, [token][channel]: out[k of block b] = sum over j of
// matrix[b][j][k] * in[j of block b], fused, in the order of j.
void ApplyBlocks(const float* matrix, size_t channels, size_t block, const float* in, size_t tokens,
                 float* out);
// The path of machines without AVX-512.
void ApplyBlocksPlain(const float* matrix, size_t channels, size_t block, const float* in,
                      size_t tokens, float* out);

// out[j] = row[j] * scale, rounded to an integer, ties to even. Returns the sum of their
// magnitudes, or kTooLarge when one is above 32767 or not a number; then out means nothing.
constexpr uint32_t kTooLarge = 0xffffffff;
uint32_t Quantise(const float* row, float scale, size_t count, int16_t* out);

// A matrix for ApplyIntegerBlocks: of each block panels of 32 columns, the last one narrower, in
// which rows 2 p and 2 p + 1 are next to each other, [block][panel][p][column][2]; the second of
// the last pair is 0 when the block is odd.
size_t PairedSize(size_t channels, size_t block);  // in values
// Where matrix[k][j] of a block is.
size_t PairedIndex(size_t block, size_t k, size_t j);
void PairRows(const int16_t* matrix, size_t channels, size_t block, int16_t* pairs);

// For each of `tokens` tokens, [token][channel]: out[j of block b] = sum over k of
// matrix[b][k][j] * in[k of block b], modulo 2^32.
void ApplyIntegerBlocks(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                        size_t tokens, int32_t* out);
// For tests: the path of machines without AVX-512 VNNI, and the scalar reference.
void ApplyIntegerBlocksAvx2(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                            size_t tokens, int32_t* out);
void ApplyIntegerBlocksScalar(const int16_t* pairs, size_t channels, size_t block,
                              const int16_t* in, size_t tokens, int32_t* out);

}  // namespace terrace::kernels
