// The integer transforms of kernels/tile_math.h.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/tile_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define TERRACE_AVX512 __attribute__((target("avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vnni")))
#define TERRACE_AVX512_INLINE TERRACE_AVX512 inline __attribute__((always_inline))
#define TERRACE_AVX2 __attribute__((target("avx2,bmi")))
#define TERRACE_AVX2_INLINE TERRACE_AVX2 inline __attribute__((always_inline))
#endif

namespace terrace::kernels {
namespace {

constexpr size_t kPanel = 32;         // columns of which a matrix has all rows next to each other
constexpr size_t kMostTokens = 32;    // that share a load of a panel from afar
constexpr size_t kMostBlock = 16384;  // larger ones are left to the scalar path

// One block of one token.
void ScalarColumns(const int16_t* pairs, size_t block, const int16_t* in, int32_t* out) {
  std::fill(out, out + block, 0);
  for (size_t k = 0; k < block; ++k) {
    const int32_t a = in[k];
    for (size_t j = 0; j < block && a != 0; ++j) {
      const auto product = static_cast<uint32_t>(a * pairs[PairedIndex(block, k, j)]);
      out[j] = static_cast<int32_t>(static_cast<uint32_t>(out[j]) + product);
    }
  }
}

#if defined(__x86_64__)

// One block of up to kMostTokens tokens.
struct Block {
  const int16_t* pairs;
  size_t size;
  const int16_t* in;  // of the first token
  int32_t* out;
  size_t stride;  // between tokens, of both
  size_t tokens;

  size_t whole_pairs() const { return size / 2; }
  const int16_t* panel(size_t first_column) const {
    return pairs + first_column * 2 * ((size + 1) / 2);
  }
};

// Which pairs of coefficients are not 0 for all of some tokens.
struct Pairs {
  size_t count = 0;
  std::array<uint16_t, kMostBlock / 2 + kPanel> place;
};

// Coefficients 2 p and 2 p + 1 of a token; what is past an odd block counts as 0.
inline int32_t PairAt(const Block& block, size_t token, size_t p) {
  const int16_t* const in = block.in + token * block.stride + 2 * p;
  int32_t both;
  if (2 * p + 1 == block.size) return static_cast<uint16_t>(*in);
  std::memcpy(&both, in, sizeof both);
  return both;
}

constexpr size_t kAvx512Tokens = 8;

TERRACE_AVX512_INLINE __m512i Broadcast(const int16_t* pair) {
  int32_t both;
  std::memcpy(&both, pair, sizeof both);
  return _mm512_set1_epi32(both);
}

TERRACE_AVX512 void FindPairsAvx512(const Block& block, size_t first, size_t tokens, Pairs* pairs) {
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  pairs->count = 0;
  for (size_t p = 0; p < block.whole_pairs(); p += 16) {
    const size_t left = std::min<size_t>(block.whole_pairs() - p, 16);
    const auto mask = static_cast<__mmask16>((1u << left) - 1);
    __m512i any = _mm512_setzero_si512();
    for (size_t t = first; t < first + tokens; ++t) {
      any =
          _mm512_or_si512(any, _mm512_maskz_loadu_epi32(mask, block.in + t * block.stride + 2 * p));
    }
    const __mmask16 set = _mm512_test_epi32_mask(any, any);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs->place.data() + pairs->count),
                        _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(set, place)));
    pairs->count += static_cast<size_t>(__builtin_popcount(set));
    place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
  }
}

// The sums of a panel for eight tokens, which stay in registers: fold expressions, as they are
// unrolled in every build that optimises. Of fewer tokens the last counts again.
template <bool kWhole, size_t... t>
TERRACE_AVX512_INLINE void PanelAvx512(const Block& block, size_t first, size_t tokens,
                                       const Pairs& pairs, size_t column,
                                       std::index_sequence<t...>) {
  const size_t width = kWhole ? kPanel : block.size - column;
  const auto columns = static_cast<uint32_t>((uint64_t{1} << width) - 1);
  const __mmask16 low = kWhole ? 0xffff : static_cast<__mmask16>(columns);
  const __mmask16 high = kWhole ? 0xffff : static_cast<__mmask16>(columns >> 16);
  const int16_t* const panel = block.panel(column);
  const int16_t* const in[] = {block.in + (first + std::min(t, tokens - 1)) * block.stride...};
  __m512i a[] = {(static_cast<void>(t), _mm512_setzero_si512())...};
  __m512i b[] = {(static_cast<void>(t), _mm512_setzero_si512())...};
  for (size_t i = 0; i < pairs.count; ++i) {
    const size_t p = pairs.place[i];
    const int16_t* const row = panel + p * 2 * width;
    const __m512i row_a = _mm512_maskz_loadu_epi32(low, row);
    const __m512i row_b = _mm512_maskz_loadu_epi32(high, row + 2 * 16);
    const __m512i both[] = {Broadcast(in[t] + 2 * p)...};
    ((a[t] = _mm512_dpwssd_epi32(a[t], row_a, both[t])), ...);
    ((b[t] = _mm512_dpwssd_epi32(b[t], row_b, both[t])), ...);
  }
  if (block.size % 2 != 0) {
    const int16_t* const row = panel + block.whole_pairs() * 2 * width;
    const __m512i row_a = _mm512_maskz_loadu_epi32(low, row);
    const __m512i row_b = _mm512_maskz_loadu_epi32(high, row + 2 * 16);
    const __m512i both[] = {_mm512_set1_epi32(static_cast<uint16_t>(in[t][block.size - 1]))...};
    ((a[t] = _mm512_dpwssd_epi32(a[t], row_a, both[t])), ...);
    ((b[t] = _mm512_dpwssd_epi32(b[t], row_b, both[t])), ...);
  }
  int32_t* const out = block.out + first * block.stride + column;
  ((t < tokens ? _mm512_mask_storeu_epi32(out + t * block.stride, low, a[t]) : void()), ...);
  ((t < tokens ? _mm512_mask_storeu_epi32(out + t * block.stride + 16, high, b[t]) : void()), ...);
}

TERRACE_AVX512 void BlockAvx512(const Block& block) {
  Pairs pairs[kMostTokens / kAvx512Tokens];
  for (size_t t = 0; t < block.tokens; t += kAvx512Tokens) {
    FindPairsAvx512(block, t, std::min(kAvx512Tokens, block.tokens - t), &pairs[t / kAvx512Tokens]);
  }
  for (size_t column = 0; column < block.size; column += kPanel) {
    for (size_t t = 0; t < block.tokens; t += kAvx512Tokens) {
      const size_t some = std::min(kAvx512Tokens, block.tokens - t);
      if (column + kPanel <= block.size) {
        PanelAvx512<true>(block, t, some, pairs[t / kAvx512Tokens], column,
                          std::make_index_sequence<kAvx512Tokens>());
      } else {
        PanelAvx512<false>(block, t, some, pairs[t / kAvx512Tokens], column,
                           std::make_index_sequence<kAvx512Tokens>());
      }
    }
  }
}

constexpr size_t kAvx2Tokens = 4;

// Also the pair that an odd block ends with.
TERRACE_AVX2 void FindPairsAvx2(const Block& block, size_t first, size_t tokens, Pairs* pairs) {
  pairs->count = 0;
  for (size_t p = 0; p < (block.size + 1) / 2; ++p) {
    int32_t any = 0;
    for (size_t t = first; t < first + tokens; ++t) any |= PairAt(block, t, p);
    pairs->place[pairs->count] = static_cast<uint16_t>(p);
    pairs->count += any != 0;
  }
}

// Columns [column, column + 16) of four tokens, as far as there are.
TERRACE_AVX2_INLINE void ColumnsAvx2(const Block& block, size_t first, size_t tokens,
                                     const Pairs& pairs, size_t column) {
  const size_t in_panel = column % kPanel, panel_column = column - in_panel;
  const size_t width = std::min(kPanel, block.size - panel_column);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto left = static_cast<int>(std::min<size_t>(block.size - column, 16));
  const __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lanes);
  const __m256i high = _mm256_cmpgt_epi32(_mm256_set1_epi32(left - 8), lanes);
  const int16_t* const panel = block.panel(panel_column) + 2 * in_panel;
  __m256i sums[kAvx2Tokens][2] = {};
  for (size_t i = 0; i < pairs.count; ++i) {
    const size_t p = pairs.place[i];
    const auto* const row = reinterpret_cast<const int*>(panel + p * 2 * width);
    const __m256i a = _mm256_maskload_epi32(row, low), b = _mm256_maskload_epi32(row + 8, high);
#pragma GCC unroll 4
    for (size_t t = 0; t < kAvx2Tokens; ++t) {
      const __m256i both = _mm256_set1_epi32(PairAt(block, first + std::min(t, tokens - 1), p));
      sums[t][0] = _mm256_add_epi32(sums[t][0], _mm256_madd_epi16(a, both));
      sums[t][1] = _mm256_add_epi32(sums[t][1], _mm256_madd_epi16(b, both));
    }
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < kAvx2Tokens; ++t) {
    if (t >= tokens) break;
    int32_t* const out = block.out + (first + t) * block.stride + column;
    _mm256_maskstore_epi32(out, low, sums[t][0]);
    _mm256_maskstore_epi32(out + 8, high, sums[t][1]);
  }
}

TERRACE_AVX2 void BlockAvx2(const Block& block) {
  for (size_t t = 0; t < block.tokens; t += kAvx2Tokens) {
    const size_t some = std::min(kAvx2Tokens, block.tokens - t);
    Pairs pairs;
    FindPairsAvx2(block, t, some, &pairs);
    for (size_t column = 0; column < block.size; column += 16) {
      ColumnsAvx2(block, t, some, pairs, column);
    }
  }
}

template <auto ApplyBlock>
void ApplyAll(const int16_t* pairs, size_t channels, size_t block, const int16_t* in, size_t tokens,
              int32_t* out) {
  const size_t pairs_each = PairedSize(block, block);
  for (size_t c = 0; c < channels; c += block, pairs += pairs_each) {
    for (size_t t = 0; t < tokens; t += kMostTokens) {
      const size_t at = t * channels + c;
      ApplyBlock(
          Block{pairs, block, in + at, out + at, channels, std::min(kMostTokens, tokens - t)});
    }
  }
}

#endif

}  // namespace

size_t PairedSize(size_t channels, size_t block) {
  return channels / block * ((block + 1) / 2) * 2 * block;
}

size_t PairedIndex(size_t block, size_t k, size_t j) {
  const size_t panel = j / kPanel * kPanel, width = std::min(kPanel, block - panel);
  return panel * 2 * ((block + 1) / 2) + (k / 2 * width + j - panel) * 2 + k % 2;
}

void PairRows(const int16_t* matrix, size_t channels, size_t block, int16_t* pairs) {
  for (size_t b = 0; b < channels / block; ++b, pairs += PairedSize(block, block)) {
    for (size_t k = 0; k < block; ++k) {
      for (size_t j = 0; j < block; ++j) pairs[PairedIndex(block, k, j)] = *matrix++;
    }
    for (size_t j = 0; j < block && block % 2 != 0; ++j) pairs[PairedIndex(block, block, j)] = 0;
  }
}

void ApplyIntegerBlocksScalar(const int16_t* pairs, size_t channels, size_t block,
                              const int16_t* in, size_t tokens, int32_t* out) {
  const size_t pairs_each = PairedSize(block, block);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t b = 0; b < channels / block; ++b) {
      const size_t at = t * channels + b * block;
      ScalarColumns(pairs + b * pairs_each, block, in + at, out + at);
    }
  }
}

void ApplyIntegerBlocksAvx2(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                            size_t tokens, int32_t* out) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi");
  if (has && block <= kMostBlock) {
    return ApplyAll<BlockAvx2>(pairs, channels, block, in, tokens, out);
  }
#endif
  ApplyIntegerBlocksScalar(pairs, channels, block, in, tokens, out);
}

void ApplyIntegerBlocks(const int16_t* pairs, size_t channels, size_t block, const int16_t* in,
                        size_t tokens, int32_t* out) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512vnni");
  if (has && block <= kMostBlock) {
    return ApplyAll<BlockAvx512>(pairs, channels, block, in, tokens, out);
  }
#endif
  ApplyIntegerBlocksAvx2(pairs, channels, block, in, tokens, out);
}

}  // namespace terrace::kernels
