#include "kernels/symbol_words.h"

#include <bit>
#include <cstring>

#include "kernels/clones.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if !defined(__clang__)
// GCC's own intrinsics start from registers that they leave undefined on purpose (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace terrace::kernels {
namespace {

constexpr uint16_t kSignBit = 0x8000, kMagnitude = 0x7fff;

inline __attribute__((always_inline)) uint32_t NextPlane(const uint8_t** planes) {
  uint32_t plane;
  std::memcpy(&plane, *planes, sizeof plane);
  *planes += sizeof plane;
  return plane;
}

#if defined(__x86_64__)

bool HasAvx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}
const bool kHasAvx512 = HasAvx512();

#define TERRACE_AVX512 __attribute__((target("avx2,bmi,avx512f,avx512bw,avx512vl")))

TERRACE_AVX512 void WordsAvx512(const uint8_t* symbols, const uint16_t* of_symbol,
                                const uint8_t* planes, uint32_t kept_bits, uint16_t* words) {
  const __m512i at =
      _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(symbols)));
  __m512i result = _mm512_permutexvar_epi16(at, _mm512_loadu_si512(of_symbol));
  for (; kept_bits != 0; kept_bits &= kept_bits - 1) {
    const __m512i bit = _mm512_set1_epi16(static_cast<int16_t>(kept_bits & -kept_bits));
    result = _mm512_or_si512(result, _mm512_maskz_mov_epi16(NextPlane(&planes), bit));
  }
  _mm512_storeu_si512(words, result);
}

TERRACE_AVX512 void SymbolsAvx512(const uint16_t* words, const WordCells& cells, uint32_t kept_bits,
                                  uint8_t* symbols, uint32_t* planes) {
  const __m512i word = _mm512_loadu_si512(words);
  const __mmask32 negative = _mm512_movepi16_mask(word);
  __m512i cell =
      _mm512_srl_epi16(_mm512_and_si512(word, _mm512_set1_epi16(static_cast<int16_t>(kMagnitude))),
                       _mm_cvtsi32_si128(cells.shift));
  cell = _mm512_sub_epi16(cell, _mm512_set1_epi16(static_cast<int16_t>(cells.base)));
  __mmask32 within =
      _mm512_cmplt_epu16_mask(cell, _mm512_set1_epi16(static_cast<int16_t>(CellsOf(cells.sign))));
  if (cells.sign == WordSign::kCoded) {
    cell = _mm512_mask_add_epi16(cell, negative, cell, _mm512_set1_epi16(15));
  } else if (cells.sign == WordSign::kPositive) {
    within &= ~negative;
  } else if (cells.sign == WordSign::kNegative) {
    within &= negative;
  }
  cell = _mm512_mask_blend_epi16(within, _mm512_set1_epi16(kWordEscape), cell);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(symbols), _mm512_cvtepi16_epi8(cell));
  for (; kept_bits != 0; kept_bits &= kept_bits - 1) {
    const __m512i bit = _mm512_set1_epi16(static_cast<int16_t>(kept_bits & -kept_bits));
    *planes++ = _mm512_test_epi16_mask(word, bit);
  }
}

#endif

}  // namespace

void FillWordsOfSymbols(const WordCells& cells, uint16_t words[kWordLanes]) {
  const auto count = static_cast<uint32_t>(CellsOf(cells.sign));
  for (uint32_t s = 0; s < kWordLanes; ++s) {
    const bool coded = cells.sign == WordSign::kCoded;
    const uint32_t cell = cells.base + (coded ? s % count : s);
    const bool negative = coded ? s >= count : cells.sign == WordSign::kNegative;
    words[s] = static_cast<uint16_t>((cell << cells.shift & kMagnitude) |
                                     (negative ? uint32_t{kSignBit} : 0));
  }
}

uint32_t KeptBits(const WordCells& cells, uint32_t floor) {
  const uint32_t below = (uint32_t{1} << cells.shift) - 1;
  return (below & ~((uint32_t{1} << floor) - 1)) |
         (cells.sign == WordSign::kBit ? uint32_t{kSignBit} : 0);
}

void SymbolsOfWordsScalar(const uint16_t words[kWordLanes], const WordCells& cells, uint32_t floor,
                          uint8_t symbols[kWordLanes], uint32_t* planes) {
  for (size_t lane = 0; lane < kWordLanes; ++lane) {
    const bool negative = (words[lane] & kSignBit) != 0;
    const uint32_t cell =
        static_cast<uint32_t>((words[lane] & kMagnitude) >> cells.shift) - cells.base;
    const bool within = cell < CellsOf(cells.sign) &&
                        !(cells.sign == WordSign::kPositive && negative) &&
                        !(cells.sign == WordSign::kNegative && !negative);
    const uint32_t symbol = cell + (cells.sign == WordSign::kCoded && negative ? 15 : 0);
    symbols[lane] = within ? static_cast<uint8_t>(symbol) : kWordEscape;
  }
  for (uint32_t kept = KeptBits(cells, floor); kept != 0; kept &= kept - 1) {
    const int bit = std::countr_zero(kept);
    uint32_t plane = 0;
    for (size_t lane = 0; lane < kWordLanes; ++lane) {
      plane |= static_cast<uint32_t>(words[lane] >> bit & 1) << lane;
    }
    *planes++ = plane;
  }
}

TERRACE_CLONES
void WordsOfSymbolsScalar(const uint8_t symbols[kWordLanes], const uint16_t of_symbol[kWordLanes],
                          const uint8_t* planes, uint32_t kept_bits, uint16_t words[kWordLanes]) {
  for (size_t lane = 0; lane < kWordLanes; ++lane) words[lane] = of_symbol[symbols[lane]];
  for (; kept_bits != 0; kept_bits &= kept_bits - 1) {
    const int bit = std::countr_zero(kept_bits);
    const uint32_t plane = NextPlane(&planes);
    for (size_t lane = 0; lane < kWordLanes; ++lane) {
      words[lane] |= static_cast<uint16_t>((plane >> lane & 1) << bit);
    }
  }
}

void SymbolsOfWords(const uint16_t words[kWordLanes], const WordCells& cells, uint32_t floor,
                    uint8_t symbols[kWordLanes], uint32_t* planes) {
#if defined(__x86_64__)
  if (kHasAvx512) return SymbolsAvx512(words, cells, KeptBits(cells, floor), symbols, planes);
#endif
  SymbolsOfWordsScalar(words, cells, floor, symbols, planes);
}

void WordsOfSymbols(const uint8_t symbols[kWordLanes], const uint16_t of_symbol[kWordLanes],
                    const uint8_t* planes, uint32_t kept_bits, uint16_t words[kWordLanes]) {
#if defined(__x86_64__)
  if (kHasAvx512) return WordsAvx512(symbols, of_symbol, planes, kept_bits, words);
#endif
  WordsOfSymbolsScalar(symbols, of_symbol, planes, kept_bits, words);
}

}  // namespace terrace::kernels
