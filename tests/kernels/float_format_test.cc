#include "kernels/float_format.h"

#include <gtest/gtest.h>

#include <cmath>
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

TEST(FloatFormat, EveryHalfComesBack) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> floats(halves.size());
  FloatsOfF16(halves.data(), halves.size(), floats.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31), mantissa = static_cast<int>(i & 1023);
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(floats[i]));
      continue;
    }
    const float magnitude = exponent == 31  ? std::numeric_limits<float>::infinity()
                            : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                            : std::ldexp(1024.0f + mantissa, exponent - 25);
    EXPECT_EQ(floats[i], i < 32768 ? magnitude : -magnitude);
    EXPECT_EQ(F16OfFloat(floats[i]), i);
  }
}

}  // namespace
}  // namespace terrace::kernels
