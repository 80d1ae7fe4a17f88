#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace terrace::kernels {
namespace {

TEST(Rope, ARotationRoundsTheProductsWithTheSineOnly) {
  const float c = 0x1.000002p0f, s = 0.5f, x = 0x1.000002p0f, y = 0x1.000004p1f;
  const float turned_x = __builtin_fmaf(x, c, -(y * s)), turned_y = __builtin_fmaf(y, c, x * s);
  EXPECT_NE(turned_x, x * c - y * s);
  for (RopePairing pairing : {RopePairing::kHalf, RopePairing::kInterleaved}) {
    for (size_t pairs : {1, 7, 16, 33}) {
      const std::vector<float> cosines(pairs, c), sines(pairs, s);
      std::vector<float> head(2 * pairs), wanted(2 * pairs);
      for (size_t i = 0; i < pairs; ++i) {
        const bool half = pairing == RopePairing::kHalf;
        const size_t first = half ? i : 2 * i, second = half ? i + pairs : 2 * i + 1;
        head[first] = x, head[second] = y;
        wanted[first] = turned_x, wanted[second] = turned_y;
      }
      Rotate(head.data(), 1, 2 * pairs, 2 * pairs, pairing, {cosines.data(), sines.data()}, false);
      EXPECT_EQ(head, wanted) << pairs;
    }
  }
}

TEST(Rope, TurnsOfARunAreThoseOfItsPhases) {
  const std::vector<uint64_t> frequencies = {
      0, 1, 0x123456789abcdef, uint64_t{1} << 61, 0x7fffffffffffffff, 0xfedcba9876543210, 77};
  const size_t pairs = frequencies.size(), positions = 40;
  const uint64_t first = 0xffffffff12345678;
  std::vector<float> cosines(pairs * positions), sines(cosines.size());
  FillTurns(frequencies.data(), pairs, first, positions, cosines.data(), sines.data());
  for (size_t i = 0; i < cosines.size(); ++i) {
    const uint64_t phase = (first + i / pairs) * frequencies[i % pairs];
    const Turn turn = TurnOfPhase(phase);
    EXPECT_EQ(cosines[i], turn.cosine);
    EXPECT_EQ(sines[i], turn.sine);
    const double angle = static_cast<double>(phase) * 0x1p-64 * 6.283185307179586;
    EXPECT_NEAR(turn.cosine, std::cos(angle), 1e-7);
    EXPECT_NEAR(turn.sine, std::sin(angle), 1e-7);
  }
}

}  // namespace
}  // namespace terrace::kernels
