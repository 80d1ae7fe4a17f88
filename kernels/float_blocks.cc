// ApplyBlocks of kernels/tile_math.h.
#include <algorithm>
#include <utility>

#include "kernels/tile_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define TERRACE_AVX512 __attribute__((target("avx2,fma,avx512f")))
#define TERRACE_AVX512_INLINE TERRACE_AVX512 inline __attribute__((always_inline))
#endif

namespace terrace::kernels {

#if defined(__x86_64__)
namespace {

constexpr size_t kTokens = 8, kColumns = 32;  // whose sums stay in registers

struct Block {
  const float* matrix;
  size_t size;
  const float* in;  // of the first token
  float* out;
  size_t stride;  // between tokens, of both
};

// Of fewer tokens the last counts again.
template <size_t... t>
TERRACE_AVX512_INLINE void Columns(const Block& block, size_t tokens, size_t column,
                                   std::index_sequence<t...>) {
  const auto columns =
      static_cast<uint32_t>((uint64_t{1} << std::min(kColumns, block.size - column)) - 1);
  const auto low = static_cast<__mmask16>(columns), high = static_cast<__mmask16>(columns >> 16);
  const float* const in[] = {block.in + std::min(t, tokens - 1) * block.stride...};
  const float* row = block.matrix + column;
  __m512 a[] = {(static_cast<void>(t), _mm512_setzero_ps())...};
  __m512 b[] = {(static_cast<void>(t), _mm512_setzero_ps())...};
  for (size_t j = 0; j < block.size; ++j, row += block.size) {
    const __m512 row_a = _mm512_maskz_loadu_ps(low, row);
    const __m512 row_b = _mm512_maskz_loadu_ps(high, row + 16);
    const __m512 value[] = {_mm512_set1_ps(in[t][j])...};
    ((a[t] = _mm512_fmadd_ps(row_a, value[t], a[t])), ...);
    ((b[t] = _mm512_fmadd_ps(row_b, value[t], b[t])), ...);
  }
  float* const out = block.out + column;
  ((t < tokens ? _mm512_mask_storeu_ps(out + t * block.stride, low, a[t]) : void()), ...);
  ((t < tokens ? _mm512_mask_storeu_ps(out + t * block.stride + 16, high, b[t]) : void()), ...);
}

TERRACE_AVX512 void Apply(const Block& block, size_t tokens) {
  for (size_t column = 0; column < block.size; column += kColumns) {
    Columns(block, tokens, column, std::make_index_sequence<kTokens>());
  }
}

}  // namespace
#endif

void ApplyBlocks(const float* matrix, size_t channels, size_t block, const float* in, size_t tokens,
                 float* out) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512f");
  if (has) {
    for (size_t c = 0; c < channels; c += block, matrix += block * block) {
      for (size_t t = 0; t < tokens; t += kTokens) {
        const size_t at = t * channels + c;
        Apply({matrix, block, in + at, out + at, channels}, std::min(kTokens, tokens - t));
      }
    }
    return;
  }
#endif
  ApplyBlocksPlain(matrix, channels, block, in, tokens, out);
}

}  // namespace terrace::kernels
