// Between words of sign and magnitude and what an entropy coder of 32 symbols takes: 32 words of
// one channel at a time (codec/channel_tables.h). Run-time dispatch on CPU features with a scalar
// reference that is always built and tested against; all give the same bytes. Raw pointers in,
// results out; allocates nothing. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace terrace::kernels {

inline constexpr size_t kWordLanes = 32;
inline constexpr uint8_t kWordEscape = 31;  // a word outside the channel's cells

// What becomes of a word's sign: coded with the cell, kept as a bit, or the same in all words.
enum class WordSign : uint8_t { kCoded = 0, kBit = 1, kPositive = 2, kNegative = 3 };

// A word is a sign (bit 15) and a magnitude; a *cell* is the magnitudes of equal bits from `shift`
// up. Symbol s is cell base + s, modulo 2^(15 - shift); with a coded sign there are 15 cells, the
// symbols 15 .. 29 being theirs with the sign set, else 31.
struct WordCells {
  WordSign sign = WordSign::kBit;
  uint8_t shift = 0;  // 0 .. 15
  uint16_t base = 0;  // below 2^(15 - shift)
};
inline size_t CellsOf(WordSign sign) { return sign == WordSign::kCoded ? 15 : 31; }

// The word of each symbol, its bits below the cell 0; anything for the escape.
void FillWordsOfSymbols(const WordCells& cells, uint16_t words[kWordLanes]);

// The bits of a word that are kept as they are: those from `floor` to the cell, and the sign if it
// is a bit.
uint32_t KeptBits(const WordCells& cells, uint32_t floor);

// symbols[lane], and planes[b], bit `lane` of which is the b-th kept bit, the lowest first. Bits of
// escapes are anything that a decoder may ignore.
void SymbolsOfWords(const uint16_t words[kWordLanes], const WordCells& cells, uint32_t floor,
                    uint8_t symbols[kWordLanes], uint32_t* planes);
void SymbolsOfWordsScalar(const uint16_t words[kWordLanes], const WordCells& cells, uint32_t floor,
                          uint8_t symbols[kWordLanes], uint32_t* planes);

// The reverse, of symbols below 32; `planes` are little-endian u32, at any alignment.
void WordsOfSymbols(const uint8_t symbols[kWordLanes], const uint16_t of_symbol[kWordLanes],
                    const uint8_t* planes, uint32_t kept_bits, uint16_t words[kWordLanes]);
void WordsOfSymbolsScalar(const uint8_t symbols[kWordLanes], const uint16_t of_symbol[kWordLanes],
                          const uint8_t* planes, uint32_t kept_bits, uint16_t words[kWordLanes]);

}  // namespace terrace::kernels
