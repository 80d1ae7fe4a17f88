#include "kernels/tile_math.h"

#include <cstring>

#include "kernels/clones.h"

namespace terrace::kernels {
namespace {

inline float SumOf(float* sums) {
  for (size_t half = 8; half != 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) sums[lane] = sums[lane] + sums[lane + half];
  }
  return sums[0];
}

}  // namespace

TERRACE_CLONES
RowSums SumRow(const float* row, const float* a, const float* b, size_t count) {
  float squares[16] = {}, with_a[16] = {}, with_b[16] = {};
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t lane = 0; lane < 16; ++lane) {
      squares[lane] = __builtin_fmaf(row[i + lane], row[i + lane], squares[lane]);
      with_a[lane] = __builtin_fmaf(row[i + lane], a[i + lane], with_a[lane]);
      with_b[lane] = __builtin_fmaf(row[i + lane], b[i + lane], with_b[lane]);
    }
  }
  for (; i < count; ++i) {
    squares[i % 16] = __builtin_fmaf(row[i], row[i], squares[i % 16]);
    with_a[i % 16] = __builtin_fmaf(row[i], a[i], with_a[i % 16]);
    with_b[i % 16] = __builtin_fmaf(row[i], b[i], with_b[i % 16]);
  }
  return {SumOf(squares), SumOf(with_a), SumOf(with_b)};
}

TERRACE_CLONES
void Centre(const float* mean, const float* scale, size_t count, float* row) {
  if (scale == nullptr) {
    for (size_t j = 0; j < count; ++j) row[j] = row[j] - mean[j];
  } else {
    for (size_t j = 0; j < count; ++j) row[j] = (row[j] - mean[j]) / scale[j];
  }
}

TERRACE_CLONES
void ApplyBlocksPlain(const float* matrix, size_t channels, size_t block, const float* in,
                      size_t tokens, float* out) {
  std::memset(out, 0, tokens * channels * sizeof *out);
  for (size_t t = 0; t < tokens; ++t, in += channels, out += channels) {
    for (size_t j = 0; j < channels; ++j) {
      float* const sums = out + j / block * block;
      const float* const row = matrix + j * block;
      const float value = in[j];
      for (size_t k = 0; k < block; ++k) sums[k] = __builtin_fmaf(row[k], value, sums[k]);
    }
  }
}

TERRACE_CLONES
uint32_t Quantise(const float* row, float scale, size_t count, int16_t* __restrict out) {
  constexpr float kRounder = 0x1.8p23f;  // a sum with it has no bits after the point
  constexpr float kMost = 32767.0f;
  uint32_t sum = 0, too_large = 0;
  for (size_t j = 0; j < count; ++j) {
    const float rounded = (row[j] * scale + kRounder) - kRounder;
    const uint32_t magnitude = std::bit_cast<uint32_t>(rounded) & 0x7fffffff;
    too_large |= magnitude > std::bit_cast<uint32_t>(kMost) ? 1u : 0u;  // or not a number
    float q = rounded < kMost ? rounded : kMost;
    q = q > -kMost ? q : -kMost;
    const auto whole = static_cast<int32_t>(q);
    out[j] = static_cast<int16_t>(whole);
    sum += static_cast<uint32_t>(whole < 0 ? -whole : whole);
  }
  return too_large != 0 ? kTooLarge : sum;
}

}  // namespace terrace::kernels
