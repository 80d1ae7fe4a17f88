#include "kernels/tile_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace terrace::kernels {
namespace {

TEST(TileLayout, TransposesLikeTheScalarOne) {
  std::mt19937 random(5);
  for (size_t channels : {1, 7, 8, 9, 64, 100}) {
    for (size_t lanes = 1; lanes <= 32; ++lanes) {
      const size_t stride = 32 + 32 * (lanes % 3);
      std::vector<int16_t> rounds(channels * stride);
      for (int16_t& value : rounds) value = static_cast<int16_t>(random());
      std::vector<uint8_t> tokens(lanes);
      std::iota(tokens.begin(), tokens.end(), 0);
      std::shuffle(tokens.begin(), tokens.end(), random);
      std::vector<int16_t> fast(lanes * channels), slow(lanes * channels);
      TransposeLanes(rounds.data(), channels, stride, lanes, tokens.data(), fast.data());
      TransposeLanesScalar(rounds.data(), channels, stride, lanes, tokens.data(), slow.data());
      EXPECT_EQ(fast, slow);
      EXPECT_EQ(fast[tokens[lanes - 1] * channels], rounds[lanes - 1]);
    }
  }
}

TEST(TileLayout, CoefficientsAreSymbolsAndLowBits) {
  std::mt19937 random(6);
  for (uint32_t bits = 0; bits <= 9; ++bits) {
    uint8_t symbols[32];
    uint32_t planes[9] = {};
    int16_t wanted[32], out[32];
    for (uint32_t lane = 0; lane < 32; ++lane) {
      symbols[lane] = random() % 31;
      const int32_t low = random() % (1 << bits), half = (1 << bits) >> 1;
      for (uint32_t b = 0; b < bits; ++b) planes[b] |= (low >> b & 1u) << lane;
      wanted[lane] = static_cast<int16_t>((symbols[lane] - 15) * (1 << bits) - half + low);
    }
    CoefficientsOfSymbols(symbols, bits, planes, out);
    EXPECT_TRUE(std::equal(out, out + 32, wanted)) << bits;
  }
}

}  // namespace
}  // namespace terrace::kernels
