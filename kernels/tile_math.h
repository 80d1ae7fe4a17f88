// The arithmetic of encoding and decoding a token's channels with a profile
// (codec/profile_coder.h). The same bits on every machine: integers wrap, floats are added in the
// order given here and round after each operation, or once after a fused multiply-add where it says
// so. Any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

// Sum of a[i] * b[i], fused: element i goes to partial sum i % 16; then partial sums 8 apart are
// added, 4 apart, 2 apart, and the last two.
float Dot(const float* a, const float* b, size_t count);

// log2, piecewise linear between powers of two (error below 0.09). 0 gives -127.
constexpr float RoughLog2(float value) {
  const auto bits = static_cast<int32_t>(std::bit_cast<uint32_t>(value));
  return static_cast<float>(bits - 0x3f800000) * 0x1p-23f;
}

// out[k of block b] = sum over j of matrix[b][j][k] * in[j of block b], fused, in the order of j.
void ApplyBlocks(const float* matrix, size_t channels, size_t block, const float* in, float* out);

// A matrix for ApplyIntegerBlocks: rows 2 p and 2 p + 1 of each block next to each other,
// pairs[block][p][column][2], the second of the last pair 0 when the block is odd.
size_t PairedSize(size_t channels, size_t block);  // in values
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

// out[j] = in[j] * (step * row_scale[j]) + mean[j]: in[j] and the second product rounded, the rest
// fused.
void Dequantise(const int32_t* in, size_t count, float step, const float* row_scale,
                const float* mean, float* out);
// The same of int16.
void Dequantise(const int16_t* in, size_t count, float step, const float* row_scale,
                const float* mean, float* out);

}  // namespace terrace::kernels
