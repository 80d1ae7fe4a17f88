#include "daemon/recompute_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "daemon/catalog.h"

namespace terrace {
namespace {

// 20 us a token, and 1 us more for every 1,000 tokens it attends to.
double Cost(uint32_t position, uint32_t tokens, double factor = 1) {
  return factor * (20.0 * tokens + tokens * (position + tokens / 2.0) / 1000 + 300);
}

class RecomputeModelTest : public ::testing::Test {
 protected:
  void Report(int reports, double factor = 1, double noise = 0) {
    std::lognormal_distribution<double> off(0, noise);
    for (int i = 0; i < reports; ++i) {
      const uint32_t position = random_() % 64 * 256;
      const uint32_t tokens = random_() % 4 == 0 ? 16 * (1 + random_() % 15) : 256;
      const double cost = Cost(position, tokens, factor) * (noise > 0 ? off(random_) : 1);
      model_.Observe(position, tokens, static_cast<uint32_t>(cost));
    }
  }
  void ExpectFits(double factor, double tolerance) {
    for (const uint32_t position : {0u, 1024u, 12'800u, 64'000u}) {
      for (const uint32_t tokens : {64u, 256u}) {
        const double expected = Cost(position, tokens, factor);
        EXPECT_NEAR(model_.Estimate(position, tokens), expected, tolerance * expected)
            << tokens << " tokens at " << position;
      }
    }
  }

  std::mt19937 random_{3};
  RecomputeModel model_;
};

TEST_F(RecomputeModelTest, SaysNothingBeforeItKnows) {
  EXPECT_EQ(model_.Estimate(0, 256), 0u);
  for (int i = 0; i < 1000; ++i) model_.Observe(0, 256, 0);  // an engine that does not say
  EXPECT_EQ(model_.Estimate(0, 256), 0u);
}

TEST_F(RecomputeModelTest, FindsWhatATokenAndItsContextCost) {
  Report(200);
  ExpectFits(1, 0.02);
}

TEST_F(RecomputeModelTest, NoiseAndHiccupsMoveItLittle) {
  Report(400, 1, 0.2);
  for (int i = 0; i < 300; ++i) {
    Report(1, 1, 0.2);
    if (i % 50 == 0) model_.Observe(1024, 256, 2'000'000'000);  // the engine was stopped
    if (i % 50 == 25) model_.Observe(1024, 256, 1);
  }
  ExpectFits(1, 0.25);
}

TEST_F(RecomputeModelTest, FollowsAnEngineThatBecameSlower) {
  Report(500);
  Report(2000, 20);
  ExpectFits(20, 0.05);
}

TEST_F(RecomputeModelTest, ReportsOfOneKindDoNotMakeItNegative) {
  for (int i = 0; i < 100; ++i) model_.Observe(512, 256, 5000 + i % 3);
  EXPECT_NEAR(model_.Estimate(512, 256), 5000, 50);
  EXPECT_GT(model_.Estimate(0, 16), 0u);
  EXPECT_LE(model_.Estimate(0, 16), 5003u);
  EXPECT_GE(model_.Estimate(100'000, 256), 4990u);
}

TEST_F(RecomputeModelTest, AFallingCostIsNotExtrapolatedBelowZero) {
  for (int i = 0; i < 200; ++i) {
    const uint32_t position = i % 20 * 256;
    model_.Observe(position, 256, 10'000 - position);  // no model of ours
  }
  EXPECT_GT(model_.Estimate(100'000, 256), 0u);
}

TEST_F(RecomputeModelTest, AnUnknownPositionIsTheUsualOne) {
  Report(300);
  const uint32_t unknown = model_.Estimate(kUnknownPosition, 256);
  EXPECT_GT(unknown, model_.Estimate(0, 256));
  EXPECT_LT(unknown, model_.Estimate(64 * 256, 256));
}

}  // namespace
}  // namespace terrace
