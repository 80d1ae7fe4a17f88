#include "kernels/tile_math.h"

#include <cmath>
#include <cstring>

#include "kernels/clones.h"

namespace terrace::kernels {
namespace {

template <typename T>
inline void DequantiseAll(const T* in, size_t count, float step, const float* row_scale,
                          const float* mean, float* out) {
  for (size_t j = 0; j < count; ++j) {
    out[j] = __builtin_fmaf(static_cast<float>(in[j]), step * row_scale[j], mean[j]);
  }
}

}  // namespace

TERRACE_CLONES
float Dot(const float* a, const float* b, size_t count) {
  float sums[16] = {};
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (size_t lane = 0; lane < 16; ++lane) {
      sums[lane] = __builtin_fmaf(a[i + lane], b[i + lane], sums[lane]);
    }
  }
  for (; i < count; ++i) sums[i % 16] = __builtin_fmaf(a[i], b[i], sums[i % 16]);
  for (size_t half = 8; half != 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) sums[lane] = sums[lane] + sums[lane + half];
  }
  return sums[0];
}

TERRACE_CLONES
void ApplyBlocks(const float* matrix, size_t channels, size_t block, const float* in, float* out) {
  std::memset(out, 0, channels * sizeof *out);
  for (size_t j = 0; j < channels; ++j) {
    float* const sums = out + j / block * block;
    const float* const row = matrix + j * block;
    const float value = in[j];
    for (size_t k = 0; k < block; ++k) sums[k] = __builtin_fmaf(row[k], value, sums[k]);
  }
}

TERRACE_CLONES
void Dequantise(const int32_t* in, size_t count, float step, const float* row_scale,
                const float* mean, float* out) {
  DequantiseAll(in, count, step, row_scale, mean, out);
}

TERRACE_CLONES
void Dequantise(const int16_t* in, size_t count, float step, const float* row_scale,
                const float* mean, float* out) {
  DequantiseAll(in, count, step, row_scale, mean, out);
}

}  // namespace terrace::kernels
