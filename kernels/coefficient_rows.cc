#include "kernels/coefficient_rows.h"

#include <algorithm>

#include "kernels/clones.h"
#include "kernels/coefficient_rows_simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace terrace::kernels {
namespace {

using coefficient_rows::kLanes;

template <typename T>
void UnpackScalar(const SymbolRounds& rounds, size_t row_stride, T* rows) {
  for (size_t c = 0; c < rounds.channels; ++c) {
    coefficient_rows::UnpackChannel(rounds.symbols + c * rounds.stride,
                                    coefficient_rows::LowOf(rounds, c), row_stride, rows + c);
  }
}

#if defined(__SSE2__)
// Transposes 16 x 16 bytes: four perfect shuffles of registers and bytes.
inline void Transpose(__m128i (&rows)[16]) {
  for (size_t times = 0; times < 4; ++times) {
    __m128i next[16];
    for (size_t i = 0; i < 8; ++i) {
      next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
      next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    std::copy(next, next + 16, rows);
  }
}

inline void StoreRow(__m128i row, int8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), row);
}
inline void StoreRow(__m128i row, int16_t* to) {
  auto* const words = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(words, _mm_srai_epi16(_mm_unpacklo_epi8(row, row), 8));
  _mm_storeu_si128(words + 1, _mm_srai_epi16(_mm_unpackhi_epi8(row, row), 8));
}

// 32 coefficients of a channel as bytes; of those with more low bits than fit, noise.
inline void LoadChannel(const SymbolRounds& rounds, size_t channel, __m128i halves[2]) {
  alignas(16) int8_t values[kLanes];
  const uint8_t* symbols = rounds.symbols + channel * rounds.stride;
  if (coefficient_rows::LowOf(rounds, channel).bits != 0) {
    coefficient_rows::UnpackChannel(symbols, rounds.low[channel], 1, values);
  } else {
    for (size_t i = 0; i < kLanes; ++i) values[i] = static_cast<int8_t>(symbols[i] - 15);
  }
  for (size_t i = 0; i < 2; ++i) {
    halves[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(values + 16 * i));
  }
}

template <typename T>
void UnpackSse2(const SymbolRounds& rounds, size_t row_stride, T* rows) {
  size_t c = 0;
  for (; c + 16 <= rounds.channels; c += 16) {
    __m128i channels[2][16];
    for (size_t i = 0; i < 16; ++i) {
      __m128i halves[2];
      LoadChannel(rounds, c + i, halves);
      channels[0][i] = halves[0];
      channels[1][i] = halves[1];
    }
    for (size_t half = 0; half < 2; ++half) {
      Transpose(channels[half]);
      for (size_t i = 0; i < 16; ++i) {
        StoreRow(channels[half][i], rows + (16 * half + i) * row_stride + c);
      }
    }
  }
  for (; c < rounds.channels; ++c) {
    coefficient_rows::UnpackChannel(rounds.symbols + c * rounds.stride,
                                    coefficient_rows::LowOf(rounds, c), row_stride, rows + c);
  }
  coefficient_rows::UnpackWideChannels(rounds, row_stride, rows);
}
#else
template <typename T>
void UnpackSse2(const SymbolRounds& rounds, size_t row_stride, T* rows) {
  UnpackScalar(rounds, row_stride, rows);
}
#endif

template <typename T>
void Unpack(const SymbolRounds& rounds, size_t row_stride, T* rows) {
#if defined(__x86_64__)
  static const bool avx512 = __builtin_cpu_supports("avx512f") &&
                             __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl");
  if (avx512) return coefficient_rows::UnpackAvx512(rounds, row_stride, rows);
#endif
  UnpackSse2(rounds, row_stride, rows);
}

}  // namespace

void UnpackRows(const SymbolRounds& rounds, size_t row_stride, int8_t* rows) {
  Unpack(rounds, row_stride, rows);
}
void UnpackRows(const SymbolRounds& rounds, size_t row_stride, int16_t* rows) {
  Unpack(rounds, row_stride, rows);
}
void UnpackRowsScalar(const SymbolRounds& rounds, size_t row_stride, int8_t* rows) {
  UnpackScalar(rounds, row_stride, rows);
}
void UnpackRowsScalar(const SymbolRounds& rounds, size_t row_stride, int16_t* rows) {
  UnpackScalar(rounds, row_stride, rows);
}
void UnpackRowsSse2(const SymbolRounds& rounds, size_t row_stride, int8_t* rows) {
  UnpackSse2(rounds, row_stride, rows);
}
void UnpackRowsSse2(const SymbolRounds& rounds, size_t row_stride, int16_t* rows) {
  UnpackSse2(rounds, row_stride, rows);
}

TERRACE_CLONES
size_t CountSymbol(const uint8_t* symbols, size_t count, uint8_t symbol) {
  size_t found = 0;
  while (count > 0) {  // counts of bytes, which do not overflow in 255 rows of 64
    const size_t some = std::min<size_t>(count, 255 * 64);
    uint8_t counts[64] = {};
    size_t i = 0;
    for (; i + 64 <= some; i += 64) {
      for (size_t k = 0; k < 64; ++k) counts[k] += symbols[i + k] == symbol;
    }
    for (; i < some; ++i) found += symbols[i] == symbol;
    for (uint8_t of_column : counts) found += of_column;
    symbols += some;
    count -= some;
  }
  return found;
}

}  // namespace terrace::kernels
