#include "kernels/symbol_rounds_simd.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace terrace::kernels::symbol_rounds {

namespace {

#define TERRACE_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl")))
#define TERRACE_AVX512_INLINE TERRACE_AVX512 inline __attribute__((always_inline))

constexpr size_t kChannels = 32;  // at a time: a register

// Eight tokens of 32 channels: quarter k of register i becomes channel 8 k + i of the eight.
TERRACE_AVX512_INLINE void Transpose8(const __m512i in[8], __m512i out[8]) {
  __m512i a[8];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    a[2 * i] = _mm512_unpacklo_epi16(in[i], in[i + 4]);
    a[2 * i + 1] = _mm512_unpackhi_epi16(in[i], in[i + 4]);
  }
  __m512i b[8];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    b[2 * i] = _mm512_unpacklo_epi16(a[i], a[i + 4]);
    b[2 * i + 1] = _mm512_unpackhi_epi16(a[i], a[i + 4]);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    out[2 * i] = _mm512_unpacklo_epi16(b[i], b[i + 4]);
    out[2 * i + 1] = _mm512_unpackhi_epi16(b[i], b[i + 4]);
  }
}

TERRACE_AVX512_INLINE void PackRound(const RoundsToPack& rounds, size_t channel, __mmask32 active,
                                     __m512i coefficients) {
  const size_t at = channel * rounds.step;
  const uint8_t id = rounds.tables[at];
  const uint32_t bits = rounds.low_bits[id];
  // What saturates escapes anyway.
  const __m512i biased =
      _mm512_adds_epi16(coefficients, _mm512_set1_epi16(static_cast<int16_t>((1u << bits) >> 1)));
  const __m512i symbols = _mm512_add_epi16(
      _mm512_sra_epi16(biased, _mm_cvtsi32_si128(static_cast<int>(bits))), _mm512_set1_epi16(15));
  const __m512i gap =
      _mm512_permutexvar_epi16(symbols, _mm512_loadu_si512(rounds.bank->tables[id].gap));
  const __mmask32 coded = _mm512_mask_cmpneq_epu16_mask(
      _mm512_mask_cmple_epu16_mask(active, symbols, _mm512_set1_epi16(30)), gap,
      _mm512_set1_epi16(kRansTotal));
  const __m512i with_escapes =
      _mm512_mask_mov_epi16(_mm512_maskz_set1_epi16(active, 31), coded, symbols);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounds.symbols + at * kRansLanes),
                      _mm512_cvtepi16_epi8(with_escapes));
  rounds.escapes[at] = active & ~coded;
  for (uint32_t b = 0; b < bits; ++b) {
    rounds.planes[rounds.plane_at[at] + b] = _mm512_mask_test_epi16_mask(
        coded, biased, _mm512_set1_epi16(static_cast<int16_t>(1u << b)));
  }
}

TERRACE_AVX512_INLINE void PackBlock(const RoundsToPack& rounds, size_t first, size_t count) {
  const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  const auto active = static_cast<__mmask32>((uint64_t{1} << rounds.lanes) - 1);
  __m512i eights[4][8];
  for (size_t eight = 0; eight < 4; ++eight) {
    __m512i rows[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) {  // of lanes there are not, the last again
      const size_t lane = std::min(8 * eight + i, rounds.lanes - 1);
      rows[i] = _mm512_maskz_loadu_epi16(mask, rounds.rows[lane] + first);
    }
    Transpose8(rows, eights[eight]);
  }
  for (size_t i = 0; i < 8; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(eights[0][i], eights[1][i], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(eights[2][i], eights[3][i], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(eights[0][i], eights[1][i], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(eights[2][i], eights[3][i], 0xee);
    const __m512i channels[4] = {_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd),
                                 _mm512_shuffle_i32x4(c, d, 0x88),
                                 _mm512_shuffle_i32x4(c, d, 0xdd)};
#pragma GCC unroll 4
    for (size_t k = 0; k < 4; ++k) {
      if (8 * k + i < count) PackRound(rounds, first + 8 * k + i, active, channels[k]);
    }
  }
}

}  // namespace

TERRACE_AVX512 void PackAvx512(const RoundsToPack& rounds) {
  for (size_t c = 0; c < rounds.channels; c += kChannels) {
    PackBlock(rounds, c, std::min(kChannels, rounds.channels - c));
  }
}

}  // namespace terrace::kernels::symbol_rounds

#endif  // __x86_64__
