#include "daemon/codec_choice.h"

#include <gtest/gtest.h>

#include <vector>

namespace terrace {
namespace {

constexpr uint64_t kBytes = uint64_t{32} << 20;
constexpr uint32_t kLayers = 32;

enum : size_t { kRaw, kLosslessFast, kLossless, kFast, kArchive };
const std::vector<CodecCost> kCosts = {
    {true, 1, 0}, {true, 0.75, 8e9}, {true, 0.65, 1.5e9}, {false, 0.11, 7e9}, {false, 0.07, 0.4e9}};

size_t At(double read_bytes_per_s, uint32_t threads = 1) {
  return ChooseCodec(kCosts, {read_bytes_per_s, 0, threads}, kBytes, kLayers);
}

TEST(CodecChoice, TheSlowerTheLinkTheSmallerTheForm) {
  EXPECT_EQ(At(20e9), kRaw);
  EXPECT_EQ(At(2e9), kFast);
  EXPECT_EQ(At(0.02e9), kArchive);
  // More threads decode more: what a single one is too slow for pays.
  EXPECT_EQ(At(0.06e9, 1), kFast);
  EXPECT_EQ(At(0.06e9, 8), kArchive);
}

TEST(CodecChoice, ALosslessFormIsTakenWhereItIsFree) {
  const std::vector<CodecCost> costs = {{true, 1, 0}, {true, 0.75, 50e9}, {false, 0.745, 50e9}};
  EXPECT_EQ(ChooseCodec(costs, {1e9, 0, 1}, kBytes, kLayers), 1u);
  // Of equally fast ones the smaller.
  const std::vector<CodecCost> equal = {{true, 1, 0}, {true, 0.99, 1e12}};
  EXPECT_EQ(ChooseCodec(equal, {10e9, 0, 1}, kBytes, kLayers), 1u);
}

TEST(CodecChoice, TheChoiceIsWithinItsToleranceOfTheBestAtEveryBandwidth) {
  for (double link = 1e6; link < 1e11; link *= 1.1) {
    for (uint32_t threads : {1u, 2u, 16u}) {
      const LinkState state{link, 0, threads};
      const double chosen = ExpectedSeconds(kCosts[ChooseCodec(kCosts, state, kBytes, kLayers)],
                                            state, kBytes, kLayers);
      for (const CodecCost& cost : kCosts) {
        EXPECT_LE(chosen, 1.02 * ExpectedSeconds(cost, state, kBytes, kLayers)) << link;
      }
    }
  }
}

TEST(CodecChoice, WhatIsQueuedComesFirstAndOneLayerIsNotOverlapped) {
  const CodecCost cost{false, 0.5, 1e9};
  const LinkState idle{1e9, 0, 1}, busy{1e9, kBytes, 1};
  const double whole = static_cast<double>(kBytes) / 1e9;
  EXPECT_NEAR(ExpectedSeconds(cost, idle, kBytes, kLayers), whole + whole * 0.5 / kLayers, 1e-9);
  EXPECT_NEAR(ExpectedSeconds(cost, busy, kBytes, kLayers),
              ExpectedSeconds(cost, idle, kBytes, kLayers) + whole, 1e-9);
}

}  // namespace
}  // namespace terrace
