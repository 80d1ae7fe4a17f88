#include "daemon/load_or_compute.h"

#include <gtest/gtest.h>

#include <vector>

namespace terrace {
namespace {

size_t Worth(const std::vector<PrefixStep>& steps) { return StepsWorthLoading(steps); }

TEST(LoadOrCompute, TheFasterOfTheTwoAndTheBestOfBoth) {
  EXPECT_EQ(Worth({}), 0u);
  EXPECT_EQ(Worth({{10, 100}, {20, 100}, {30, 100}}), 3u);
  EXPECT_EQ(Worth({{1000, 100}, {2000, 100}, {3000, 100}}), 0u);
  // The first two are in host memory, the third is slow to read.
  EXPECT_EQ(Worth({{0, 100}, {0, 100}, {1000, 100}}), 2u);
  // Reading the second is slow, but the third comes almost for nothing with it.
  EXPECT_EQ(Worth({{0, 100}, {150, 100}, {151, 100}}), 3u);
  EXPECT_EQ(Worth({{100, 100}, {200, 100}}), 2u);  // equal: loaded
}

TEST(LoadOrCompute, WhatHasNoKnownCostIsLoaded) {
  EXPECT_EQ(Worth({{1000, 0}}), 1u);
  EXPECT_EQ(Worth({{1000, 100}, {2000, 0}, {3000, 100}}), 2u);
}

}  // namespace
}  // namespace terrace
