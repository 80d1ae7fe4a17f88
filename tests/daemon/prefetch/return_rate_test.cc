#include "daemon/prefetch/return_rate.h"

#include <gtest/gtest.h>

namespace terrace {
namespace {

TEST(ReturnRate, WhatReturnsWithinTheHorizonCounts) {
  ReturnRate rate(/*horizon=*/4);
  EXPECT_DOUBLE_EQ(rate.rate(), 0.25);
  for (uint64_t key = 0; key < 2000; ++key) {  // every second comes back
    rate.Evicted(key);
    if (key % 2 == 0) rate.Demanded(key);
    rate.Demanded(key + 1'000'000);  // was never here
  }
  EXPECT_NEAR(rate.rate(), 0.5, 0.02);
  for (uint64_t key = 0; key < 5000; ++key) {  // comes back too late
    rate.Evicted(key);
    if (key >= 4) rate.Demanded(key - 4);
  }
  EXPECT_LT(rate.rate(), 0.02);
}

TEST(ReturnRate, LeavingTwiceIsOneGhost) {
  ReturnRate rate(/*horizon=*/2);
  rate.Evicted(1);
  rate.Evicted(1);
  rate.Demanded(1);
  rate.Demanded(1);
  const double once = rate.rate();
  EXPECT_DOUBLE_EQ(once, 3.0 / 9);
  rate.Evicted(2);
  rate.Evicted(3);
  rate.Evicted(4);
  EXPECT_LT(rate.rate(), once);
}

}  // namespace
}  // namespace terrace
