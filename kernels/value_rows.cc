#include "kernels/value_rows.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels/clones.h"
#include "kernels/float_format.h"
#include "kernels/value_rows_simd.h"

namespace terrace::kernels {
namespace {

constexpr size_t kMostDim = 4096;

template <typename T>
inline void DequantiseAll(const HeadFormat& head, const T* in, float step, float* out) {
  const float* const row_scale = head.row_scale;
  const float* const mean = head.mean;
  for (size_t j = 0; j < head.dim; ++j) {
    out[j] = __builtin_fmaf(static_cast<float>(in[j]), step * row_scale[j], mean[j]);
  }
}

TERRACE_CLONES
void Dequantise(const HeadFormat& head, const int8_t* in, float step, float* out) {
  DequantiseAll(head, in, step, out);
}
TERRACE_CLONES
void Dequantise(const HeadFormat& head, const int16_t* in, float step, float* out) {
  DequantiseAll(head, in, step, out);
}
TERRACE_CLONES
void Dequantise(const HeadFormat& head, const int32_t* in, float step, float* out) {
  DequantiseAll(head, in, step, out);
}

template <typename T>
void Plain(const HeadFormat& head, const T* in, size_t row_stride,
           std::span<const TokenPlace> tokens, size_t out_offset) {
  float values[kMostDim];
  for (size_t t = 0; t < tokens.size(); ++t) {
    const TokenPlace& token = tokens[t];
    Dequantise(head, in + t * row_stride, token.step, values);
    Rotate(values, 1, head.dim, head.rotary_dim, head.pairing, {token.cosines, token.sines}, false);
    uint8_t* const out = token.out + out_offset;
    if (head.dtype == Dtype::kF32) {
      std::memcpy(out, values, head.dim * sizeof *values);
    } else if (head.dtype == Dtype::kBf16) {
      Bf16sOfFloat(values, head.dim, reinterpret_cast<uint16_t*>(out));
    } else {
      F16sOfFloat(values, head.dim, reinterpret_cast<uint16_t*>(out));
    }
  }
}

template <typename T>
void Write(const HeadFormat& head, const T* in, size_t row_stride,
           std::span<const TokenPlace> tokens, size_t out_offset) {
#if defined(__x86_64__)
  static const bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("bmi2");
  if (avx512) return value_rows::WriteAvx512(head, in, row_stride, tokens, out_offset);
#endif
  Plain(head, in, row_stride, tokens, out_offset);
}

}  // namespace

void WriteHead(const HeadFormat& head, const int8_t* in, size_t row_stride,
               std::span<const TokenPlace> tokens, size_t out_offset) {
  Write(head, in, row_stride, tokens, out_offset);
}
void WriteHead(const HeadFormat& head, const int16_t* in, size_t row_stride,
               std::span<const TokenPlace> tokens, size_t out_offset) {
  Write(head, in, row_stride, tokens, out_offset);
}
void WriteHead(const HeadFormat& head, const int32_t* in, size_t row_stride,
               std::span<const TokenPlace> tokens, size_t out_offset) {
  Write(head, in, row_stride, tokens, out_offset);
}
void StreamFence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

void WriteHeadPlain(const HeadFormat& head, const int8_t* in, size_t row_stride,
                    std::span<const TokenPlace> tokens, size_t out_offset) {
  Plain(head, in, row_stride, tokens, out_offset);
}
void WriteHeadPlain(const HeadFormat& head, const int16_t* in, size_t row_stride,
                    std::span<const TokenPlace> tokens, size_t out_offset) {
  Plain(head, in, row_stride, tokens, out_offset);
}
void WriteHeadPlain(const HeadFormat& head, const int32_t* in, size_t row_stride,
                    std::span<const TokenPlace> tokens, size_t out_offset) {
  Plain(head, in, row_stride, tokens, out_offset);
}

}  // namespace terrace::kernels
