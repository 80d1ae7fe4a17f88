#include "kernels/tile_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace terrace::kernels {
namespace {

std::vector<float> Normal(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

float DefinedSum(const std::vector<float>& a, const std::vector<float>& b) {
  float sums[16] = {};
  for (size_t i = 0; i < a.size(); ++i) sums[i % 16] = std::fma(a[i], b[i], sums[i % 16]);
  for (size_t half = 8; half != 0; half /= 2) {
    for (size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

TEST(TileMath, RowsAreSummedInTheDefinedOrder) {
  for (size_t count : {1, 15, 16, 17, 100, 1024}) {
    const auto row = Normal(count, 1), a = Normal(count, 2), b = Normal(count, 3);
    const RowSums sums = SumRow(row.data(), a.data(), b.data(), count);
    EXPECT_EQ(sums.squares, DefinedSum(row, row));
    EXPECT_EQ(sums.a, DefinedSum(row, a));
    EXPECT_EQ(sums.b, DefinedSum(row, b));
  }
}

TEST(TileMath, BlocksAreSummedInTheOrderOfChannels) {
  for (size_t block : {1, 3, 16, 31, 33, 64, 80}) {
    for (size_t tokens : {1, 7, 8, 11}) {
      const size_t channels = 2 * block;
      const auto matrix = Normal(channels * block, 1), in = Normal(tokens * channels, 2);
      std::vector<float> wanted(in.size()), out(in.size()), plain(in.size());
      for (size_t i = 0; i < wanted.size(); ++i) {
        const size_t k = i % block, first = i - k, row = i % channels - k;
        for (size_t j = 0; j < block; ++j) {
          wanted[i] = std::fma(matrix[(row + j) * block + k], in[first + j], wanted[i]);
        }
      }
      ApplyBlocks(matrix.data(), channels, block, in.data(), tokens, out.data());
      ApplyBlocksPlain(matrix.data(), channels, block, in.data(), tokens, plain.data());
      EXPECT_EQ(out, wanted) << block;
      EXPECT_EQ(plain, wanted) << block;
    }
  }
}

TEST(TileMath, QuantisingRoundsToEvenAndSaysWhatDoesNotFit) {
  const std::vector<float> row = {0.25f, 0.75f, -0.25f, -1.25f, 16383.5f, -16383.5f, 1e-30f};
  std::vector<int16_t> out(row.size());
  EXPECT_EQ(Quantise(row.data(), 2, row.size(), out.data()), 2u + 2u + 2 * 32767u);
  EXPECT_EQ(out, (std::vector<int16_t>{0, 2, 0, -2, 32767, -32767, 0}));
  for (float bad : {16384.0f, -1e30f, std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> with(40, 1);
    with[33] = bad;
    out.resize(with.size());
    EXPECT_EQ(Quantise(with.data(), 2, with.size(), out.data()), kTooLarge) << bad;
  }
}

}  // namespace
}  // namespace terrace::kernels
