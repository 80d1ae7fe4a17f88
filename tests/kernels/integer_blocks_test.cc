#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/tile_math.h"

namespace terrace::kernels {
namespace {

// The sum as it is defined, in 64 bits and cut to 32.
std::vector<int32_t> Defined(const std::vector<int16_t>& matrix, size_t channels, size_t block,
                             const std::vector<int16_t>& in) {
  std::vector<int32_t> out(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    const size_t token = i / channels, j = i % channels, first = j / block * block;
    uint64_t sum = 0;
    for (size_t k = 0; k < block; ++k) {
      sum += static_cast<uint64_t>(int64_t{matrix[(first + k) * block + j - first]} *
                                   in[token * channels + first + k]);
    }
    out[i] = static_cast<int32_t>(static_cast<uint32_t>(sum));
  }
  return out;
}

TEST(IntegerBlocks, EveryImplementationGivesTheDefinedSums) {
  std::mt19937 random(4);
  for (size_t block : {1, 2, 3, 8, 15, 16, 17, 24, 33, 64, 80, 97, 128}) {
    for (size_t tokens : {1, 3, 4, 9, 40}) {
      const size_t channels = 3 * block;
      std::vector<int16_t> matrix(channels * block), in(tokens * channels);
      const bool extreme = tokens == 3;  // sums that wrap
      for (int16_t& m : matrix) m = static_cast<int16_t>(extreme ? -32768 : random());
      for (int16_t& q : in) {
        q = static_cast<int16_t>(extreme ? -32768 : random() % 3 != 0 ? 0 : random());
      }
      std::vector<int16_t> pairs(PairedSize(channels, block));
      PairRows(matrix.data(), channels, block, pairs.data());
      const auto wanted = Defined(matrix, channels, block, in);
      for (auto apply : {ApplyIntegerBlocks, ApplyIntegerBlocksAvx2, ApplyIntegerBlocksScalar}) {
        std::vector<int32_t> out(in.size(), 7);
        apply(pairs.data(), channels, block, in.data(), tokens, out.data());
        EXPECT_EQ(out, wanted) << block << " " << tokens;
      }
    }
  }
}

}  // namespace
}  // namespace terrace::kernels
