#include "kernels/tile_math.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "kernels/rope.h"

namespace terrace::kernels {
namespace {

TEST(TileMath, AValueIsRoundedOnceAfterItsScale) {
  // 3 * (1 + 2^-23) - 3 is 3 * 2^-23; a product rounded by itself gives another value.
  const float step = 0x1.000002p0f, scale = 1, mean = -3;
  for (size_t count : {1, 15, 16, 17, 100}) {
    const std::vector<int16_t> shorts(count, 3);
    const std::vector<int32_t> ints(count, 3);
    const std::vector<float> scales(count, scale), means(count, mean);
    std::vector<float> of_shorts(count), of_ints(count);
    Dequantise(shorts.data(), count, step, scales.data(), means.data(), of_shorts.data());
    Dequantise(ints.data(), count, step, scales.data(), means.data(), of_ints.data());
    EXPECT_EQ(of_shorts, std::vector<float>(count, 0x3p-23f));
    EXPECT_EQ(of_ints, of_shorts);
  }
}

TEST(TileMath, ARotationRoundsTheProductsWithTheSineOnly) {
  const float c = 0x1.000002p0f, s = 0.5f, x = 0x1.000002p0f, y = 0x1.000004p1f;
  const float turned_x = __builtin_fmaf(x, c, -(y * s)), turned_y = __builtin_fmaf(y, c, x * s);
  EXPECT_NE(turned_x, x * c - y * s);
  for (RopePairing pairing : {RopePairing::kHalf, RopePairing::kInterleaved}) {
    for (size_t pairs : {1, 7, 16, 33}) {
      const std::vector<Turn> turns(pairs, Turn{c, s});
      std::vector<float> head(2 * pairs), wanted(2 * pairs);
      for (size_t i = 0; i < pairs; ++i) {
        const bool half = pairing == RopePairing::kHalf;
        const size_t first = half ? i : 2 * i, second = half ? i + pairs : 2 * i + 1;
        head[first] = x, head[second] = y;
        wanted[first] = turned_x, wanted[second] = turned_y;
      }
      Rotate(head.data(), 1, 2 * pairs, 2 * pairs, pairing, turns.data(), false);
      EXPECT_EQ(head, wanted) << pairs;
    }
  }
}

}  // namespace
}  // namespace terrace::kernels
