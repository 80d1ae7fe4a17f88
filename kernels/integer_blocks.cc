// ApplyIntegerBlocks of kernels/tile_math.h.
#include <algorithm>
#include <cstring>

#include "kernels/tile_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define TERRACE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define TERRACE_AVX2 __attribute__((target("avx2")))
#endif

namespace terrace::kernels {
namespace {

constexpr size_t kTogether = 4;      // tokens that share a load of the matrix
constexpr size_t kMostPairs = 8192;  // of a block

// Coefficients 2 p and 2 p + 1 of a block's input.
inline int32_t PairAt(const int16_t* in, size_t block, size_t p) {
  int16_t pair[2] = {in[2 * p], 2 * p + 1 < block ? in[2 * p + 1] : int16_t{0}};
  int32_t both;
  std::memcpy(&both, pair, sizeof both);
  return both;
}

// Columns [first, block) of one block, for one token.
void ScalarColumns(const int16_t* pairs, size_t block, size_t first, const int16_t* in,
                   int32_t* out) {
  std::fill(out + first, out + block, 0);
  for (size_t p = 0; p < (block + 1) / 2; ++p) {
    const int32_t a = in[2 * p], b = 2 * p + 1 < block ? in[2 * p + 1] : 0;
    if (a == 0 && b == 0) continue;
    const int16_t* row = pairs + p * 2 * block;
    for (size_t j = first; j < block; ++j) {
      out[j] = static_cast<int32_t>(static_cast<uint32_t>(out[j]) +
                                    static_cast<uint32_t>(a * row[2 * j]) +
                                    static_cast<uint32_t>(b * row[2 * j + 1]));
    }
  }
}

#if defined(__x86_64__)
// What is not zero of up to four tokens' coefficients of a block.
struct Work {
  size_t tokens, count = 0;
  uint16_t place[kMostPairs];
  int32_t pair[kMostPairs][kTogether];

  Work(const int16_t* in, size_t channels, size_t block, size_t some) : tokens(some) {
    for (size_t p = 0; p < (block + 1) / 2; ++p) {
      int32_t any = 0;
      for (size_t t = 0; t < kTogether; ++t) {
        pair[count][t] = t < some ? PairAt(in + t * channels, block, p) : 0;
        any |= pair[count][t];
      }
      place[count] = static_cast<uint16_t>(p);
      count += any != 0;
    }
  }
};

TERRACE_AVX512 void ColumnsAvx512(const int16_t* pairs, size_t block, const Work& work,
                                  size_t channels, int32_t* out) {
  for (size_t j = 0; j < block; j += 16) {
    const size_t left = std::min<size_t>(block - j, 16);
    const auto mask = static_cast<__mmask16>((1u << left) - 1);
    __m512i sums[kTogether] = {};
    for (size_t i = 0; i < work.count; ++i) {
      const __m512i row = _mm512_maskz_loadu_epi32(mask, pairs + (work.place[i] * block + j) * 2);
      for (size_t t = 0; t < kTogether; ++t) {
        sums[t] = _mm512_dpwssd_epi32(sums[t], row, _mm512_set1_epi32(work.pair[i][t]));
      }
    }
    for (size_t t = 0; t < work.tokens; ++t) {
      _mm512_mask_storeu_epi32(out + t * channels + j, mask, sums[t]);
    }
  }
}

// Columns below the last multiple of eight.
TERRACE_AVX2 void ColumnsAvx2(const int16_t* pairs, size_t block, const Work& work, size_t channels,
                              int32_t* out) {
  for (size_t j = 0; j + 8 <= block; j += 8) {
    __m256i sums[kTogether] = {};
    for (size_t i = 0; i < work.count; ++i) {
      const __m256i row = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(pairs + (work.place[i] * block + j) * 2));
      for (size_t t = 0; t < kTogether; ++t) {
        sums[t] =
            _mm256_add_epi32(sums[t], _mm256_madd_epi16(row, _mm256_set1_epi32(work.pair[i][t])));
      }
    }
    for (size_t t = 0; t < work.tokens; ++t) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + t * channels + j), sums[t]);
    }
  }
}

void ApplyVectors(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                  size_t tokens, bool avx512, int32_t* out) {
  const size_t pairs_each = PairedSize(block, block);
  for (size_t b = 0; b < channels / block; ++b) {  // a block's matrix stays in the cache
    const int16_t* matrix = pairs + b * pairs_each;
    for (size_t t = 0; t < tokens; t += kTogether) {
      const size_t at = t * channels + b * block;
      const Work work(in + at, channels, block, std::min(kTogether, tokens - t));
      if (avx512) {
        ColumnsAvx512(matrix, block, work, channels, out + at);
        continue;
      }
      ColumnsAvx2(matrix, block, work, channels, out + at);
      for (size_t i = at; i < at + work.tokens * channels && block % 8 != 0; i += channels) {
        ScalarColumns(matrix, block, block / 8 * 8, in + i, out + i);
      }
    }
  }
}

bool HasAvx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vnni");
  return has;
}
#endif

}  // namespace

size_t PairedSize(size_t channels, size_t block) {
  return channels / block * ((block + 1) / 2) * 2 * block;
}

void PairRows(const int16_t* matrix, size_t channels, size_t block, int16_t* pairs) {
  for (size_t b = 0; b < channels / block; ++b) {
    const int16_t* rows = matrix + b * block * block;
    for (size_t p = 0; p < (block + 1) / 2; ++p) {
      for (size_t j = 0; j < block; ++j) {
        *pairs++ = rows[2 * p * block + j];
        *pairs++ = 2 * p + 1 < block ? rows[(2 * p + 1) * block + j] : int16_t{0};
      }
    }
  }
}

void ApplyIntegerBlocksScalar(const int16_t* pairs, size_t channels, size_t block,
                              const int16_t* in, size_t tokens, int32_t* out) {
  const size_t pairs_each = PairedSize(block, block);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t b = 0; b < channels / block; ++b) {
      const size_t at = t * channels + b * block;
      ScalarColumns(pairs + b * pairs_each, block, 0, in + at, out + at);
    }
  }
}

void ApplyIntegerBlocksAvx2(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                            size_t tokens, int32_t* out) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx2");
  if (has && block <= 2 * kMostPairs) {
    return ApplyVectors(pairs, channels, block, in, tokens, false, out);
  }
#endif
  ApplyIntegerBlocksScalar(pairs, channels, block, in, tokens, out);
}

void ApplyIntegerBlocks(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                        size_t tokens, int32_t* out) {
#if defined(__x86_64__)
  if (HasAvx512() && block <= 2 * kMostPairs) {
    return ApplyVectors(pairs, channels, block, in, tokens, true, out);
  }
#endif
  ApplyIntegerBlocksAvx2(pairs, channels, block, in, tokens, out);
}

}  // namespace terrace::kernels
