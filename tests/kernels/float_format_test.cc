#include "kernels/float_format.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace terrace::kernels {
namespace {

uint16_t ByRows(float value) {
  const std::vector<float> values(37, value);
  std::vector<uint16_t> halves(values.size());
  Bf16sOfFloat(values.data(), values.size(), halves.data());
  for (uint16_t half : halves) EXPECT_EQ(half, Bf16OfFloat(value));
  return halves[0];
}

TEST(FloatFormat, BfloatsRoundToNearestEvenAndKeepNans) {
  EXPECT_EQ(ByRows(1.0f), 0x3f80);
  EXPECT_EQ(ByRows(0x1.01p0f), 0x3f80);  // a tie, to even
  EXPECT_EQ(ByRows(0x1.03p0f), 0x3f82);  // a tie, to even
  EXPECT_EQ(ByRows(0x1.0100p0f + 0x1p-23f), 0x3f81);
  EXPECT_EQ(ByRows(-std::numeric_limits<float>::max()), 0xff80);
  EXPECT_EQ(ByRows(std::bit_cast<float>(0xff812345)), 0xffc1);
}

TEST(FloatFormat, BfloatsBelowTheSmallestNormalFloatAreZero) {
  EXPECT_EQ(ByRows(0x1p-126f), 0x0080);
  EXPECT_EQ(ByRows(0x1.fffffcp-127f), 0x0000);  // would round up to 2^-126
  EXPECT_EQ(ByRows(-0x1p-127f), 0x8000);
  EXPECT_EQ(ByRows(-0.0f), 0x8000);
}

}  // namespace
}  // namespace terrace::kernels
