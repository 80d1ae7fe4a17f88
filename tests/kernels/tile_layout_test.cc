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

}  // namespace
}  // namespace terrace::kernels
