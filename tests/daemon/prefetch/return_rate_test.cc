#include "daemon/prefetch/return_rate.h"

#include <gtest/gtest.h>

namespace terrace {
namespace {

TEST(ReturnRate, WhatReturnsWithinTheHorizonCounts) {
  ReturnRate rate;
  EXPECT_DOUBLE_EQ(rate.rate(), 0.25);
  for (uint64_t key = 0; key < 2000; ++key) {  // every second comes back
    rate.Evicted(key, 4);
    if (key % 2 == 0) rate.Demanded(key);
    rate.Demanded(key + 1'000'000);  // was never here
  }
  EXPECT_NEAR(rate.rate(), 0.5, 0.02);
  for (uint64_t key = 0; key < 5000; ++key) {  // comes back too late
    rate.Evicted(key, 4);
    if (key >= 4) rate.Demanded(key - 4);
  }
  EXPECT_LT(rate.rate(), 0.02);
}

TEST(ReturnRate, LeavingTwiceIsOneGhost) {
  ReturnRate rate;
  rate.Evicted(1, 2);
  rate.Evicted(1, 2);
  rate.Demanded(1);
  rate.Demanded(1);
  const double once = rate.rate();
  EXPECT_DOUBLE_EQ(once, 3.0 / 9);
  rate.Evicted(2, 2);
  rate.Evicted(3, 2);
  rate.Evicted(4, 2);
  EXPECT_LT(rate.rate(), once);
}

}  // namespace
}  // namespace terrace
