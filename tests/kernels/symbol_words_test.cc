#include "kernels/symbol_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <random>

namespace terrace::kernels {
namespace {

TEST(SymbolWords, WordsWithinTheCellsComeBackAndEveryPathAgrees) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 3000; ++trial) {
    WordCells cells;
    cells.sign = static_cast<WordSign>(random() % 4);
    cells.shift = random() % 15;
    cells.base = static_cast<uint16_t>(random() % (1u << (15 - cells.shift)));
    const uint32_t floor = trial % 2 * std::min<uint32_t>(8, cells.shift);
    uint16_t words[32], of_symbol[32], back[32], back_scalar[32];
    for (uint16_t& word : words) {
      const uint32_t cell = cells.base + random() % 33;
      word = static_cast<uint16_t>((random() & 0x8000) | (cell << cells.shift & 0x7fff) |
                                   (random() & ((1u << cells.shift) - 1)));
      word &= static_cast<uint16_t>(~((1u << floor) - 1));
    }
    uint8_t symbols[32], symbols_scalar[32];
    uint32_t planes[16] = {}, planes_scalar[16] = {};
    SymbolsOfWords(words, cells, floor, symbols, planes);
    SymbolsOfWordsScalar(words, cells, floor, symbols_scalar, planes_scalar);
    ASSERT_TRUE(std::equal(symbols, symbols + 32, symbols_scalar));
    ASSERT_TRUE(std::equal(planes, planes + 16, planes_scalar));
    FillWordsOfSymbols(cells, of_symbol);
    const auto* bytes = reinterpret_cast<const uint8_t*>(planes);
    WordsOfSymbols(symbols, of_symbol, bytes, KeptBits(cells, floor), back);
    WordsOfSymbolsScalar(symbols, of_symbol, bytes, KeptBits(cells, floor), back_scalar);
    ASSERT_TRUE(std::equal(back, back + 32, back_scalar));
    for (int lane = 0; lane < 32; ++lane) {
      if (symbols[lane] == kWordEscape) continue;
      ASSERT_EQ(back[lane], words[lane]);
    }
  }
}

TEST(SymbolWords, ACodedSignTakesFifteenCellsOfEach) {
  const WordCells exponents{WordSign::kCoded, 7, 120};
  const uint16_t words[32] = {120 << 7, 0x8000 | 120 << 7, 134 << 7 | 127, 135 << 7, 119 << 7};
  uint8_t symbols[32];
  uint32_t planes[8];
  SymbolsOfWords(words, exponents, 0, symbols, planes);
  EXPECT_EQ(symbols[0], 0);
  EXPECT_EQ(symbols[1], 15);
  EXPECT_EQ(symbols[2], 14);
  EXPECT_EQ(symbols[3], kWordEscape);
  EXPECT_EQ(symbols[4], kWordEscape);
  EXPECT_EQ(std::popcount(KeptBits(exponents, 0)), 7);
  EXPECT_EQ(planes[0], 4u);
}

}  // namespace
}  // namespace terrace::kernels
