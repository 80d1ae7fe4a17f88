#include "kernels/coefficient_rows_simd.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// 32 channels of 32 lanes are 16 registers, each of which holds a channel and the one 16 further
// on.

namespace terrace::kernels::coefficient_rows {

namespace {

#define TERRACE_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vl")))
#define TERRACE_AVX512_INLINE TERRACE_AVX512 inline __attribute__((always_inline))

constexpr size_t kChannels = 32;  // at a time

// A channel's coefficients as bytes; of those with more low bits than fit, noise.
TERRACE_AVX512_INLINE __m256i Coefficients(__m256i symbols, const LowBits& low) {
  const int32_t base = (15 << low.bits) + ((1 << low.bits) >> 1);
  // No bit leaves its byte.
  __m256i values = _mm256_sll_epi16(symbols, _mm_cvtsi32_si128(static_cast<int>(low.bits)));
  values = _mm256_sub_epi8(values, _mm256_set1_epi8(static_cast<char>(base)));
  for (uint32_t b = 0; b < low.bits; ++b) {
    uint32_t plane;
    std::memcpy(&plane, low.planes + b * sizeof plane, sizeof plane);
    values =
        _mm256_mask_add_epi8(values, plane, values, _mm256_set1_epi8(static_cast<char>(1 << b)));
  }
  return values;
}

template <bool kWithLow>
TERRACE_AVX512_INLINE __m512i LoadTwo(const SymbolRounds& rounds, size_t first, size_t second) {
  const __m256i low =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rounds.symbols + first * rounds.stride));
  const __m256i high =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rounds.symbols + second * rounds.stride));
  if constexpr (kWithLow) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(Coefficients(low, rounds.low[first])),
                              Coefficients(high, rounds.low[second]), 1);
  }
  return _mm512_sub_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1),
                         _mm512_set1_epi8(15));
}

TERRACE_AVX512_INLINE void StoreRow(__m256i row, __mmask32 mask, int8_t* to) {
  if (mask == 0xffffffff) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), row);
  } else {
    _mm256_mask_storeu_epi8(to, mask, row);
  }
}
TERRACE_AVX512_INLINE void StoreRow(__m256i row, __mmask32 mask, int16_t* to) {
  const __m512i words = _mm512_cvtepi8_epi16(row);
  if (mask == 0xffffffff) {
    _mm512_storeu_si512(to, words);
  } else {
    _mm512_mask_storeu_epi16(to, mask, words);
  }
}

// Transposes the 16 x 16 bytes in each quarter of the registers: four perfect shuffles of registers
// and bytes.
TERRACE_AVX512_INLINE void Transpose(__m512i (&rows)[16]) {
  __m512i next[16];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    next[2 * i] = _mm512_unpacklo_epi8(rows[i], rows[i + 8]);
    next[2 * i + 1] = _mm512_unpackhi_epi8(rows[i], rows[i + 8]);
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) rows[i] = next[i];
}

template <bool kWithLow, typename T>
TERRACE_AVX512_INLINE void UnpackBlock(const SymbolRounds& rounds, size_t first, size_t count,
                                       size_t row_stride, T* rows) {
  __m512i channels[16];
  const size_t last = first + count - 1;
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) {
    channels[i] =
        LoadTwo<kWithLow>(rounds, std::min(first + i, last), std::min(first + 16 + i, last));
  }
  Transpose(channels);
  Transpose(channels);
  Transpose(channels);
  Transpose(channels);
  // Quarters: lane i of channels 0 .. 15, lane 16 + i of them, the same of channels 16 .. 31.
  const __m512i by_lane = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
  const auto mask = static_cast<__mmask32>((uint64_t{1} << count) - 1);
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) {
    const __m512i both = _mm512_permutexvar_epi64(by_lane, channels[i]);
    StoreRow(_mm512_castsi512_si256(both), mask, rows + i * row_stride + first);
    StoreRow(_mm512_extracti64x4_epi64(both, 1), mask, rows + (16 + i) * row_stride + first);
  }
}

template <bool kWithLow, typename T>
TERRACE_AVX512 void UnpackAll(const SymbolRounds& rounds, size_t row_stride, T* rows) {
  for (size_t c = 0; c < rounds.channels; c += kChannels) {
    UnpackBlock<kWithLow>(rounds, c, std::min(kChannels, rounds.channels - c), row_stride, rows);
  }
}

template <typename T>
void Unpack(const SymbolRounds& rounds, size_t row_stride, T* rows) {
  if (rounds.low == nullptr) return UnpackAll<false>(rounds, row_stride, rows);
  UnpackAll<true>(rounds, row_stride, rows);
  UnpackWideChannels(rounds, row_stride, rows);
}

}  // namespace

void UnpackAvx512(const SymbolRounds& rounds, size_t row_stride, int8_t* rows) {
  Unpack(rounds, row_stride, rows);
}
void UnpackAvx512(const SymbolRounds& rounds, size_t row_stride, int16_t* rows) {
  Unpack(rounds, row_stride, rows);
}

}  // namespace terrace::kernels::coefficient_rows

#endif  // __x86_64__
