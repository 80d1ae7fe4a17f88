#include "tiers/eviction/miss_ratio_curve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/exact_stack_distance.h"

namespace terrace {
namespace {

struct Use {
  uint64_t key;
  uint64_t bytes;
};

// A line a request, "id" or "id:size" an object; lines that begin with # are comments.
std::vector<Use> ReadTrace(const std::string& name, uint64_t bytes_a_unit) {
  std::ifstream file(std::string(TERRACE_TRACES) + "/" + name);
  std::vector<Use> uses;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with('#')) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const size_t colon = word.find(':');
      const uint64_t units = colon == std::string::npos ? 1 : std::stoull(word.substr(colon + 1));
      uses.push_back({std::stoull(word), units * bytes_a_unit});
    }
  }
  return uses;
}

struct Errors {
  double accesses = 0;  // mean absolute, over sizes up to all there is
  double bytes = 0;
};

Errors Compare(const MissRatioCurve& curve, ExactStackDistance& exact) {
  constexpr int kSizes = 200;
  Errors errors;
  for (int i = 1; i <= kSizes; ++i) {
    const uint64_t size = exact.FootprintBytes() * i / kSizes;
    errors.accesses += std::abs(curve.MissRatio(size) - exact.MissRatio(size)) / kSizes;
    errors.bytes += std::abs(curve.ByteMissRatio(size) - exact.MissRatio(size, true)) / kSizes;
  }
  return errors;
}

Errors Replay(const std::vector<Use>& uses, MissRatioCurve& curve) {
  ExactStackDistance exact(uses.size());
  for (const Use& use : uses) {
    curve.Access(use.key, use.bytes);
    exact.Access(use.key, use.bytes);
  }
  return Compare(curve, exact);
}

TEST(MissRatioCurve, IsExactWhileEverythingFits) {
  // Distances in whole buckets: 1, 2 and 3 objects of a byte.
  MissRatioCurve curve(1000);
  for (uint64_t key : {1, 2, 3, 3, 2, 1}) curve.Access(key, 1);
  EXPECT_EQ(curve.accesses(), 6);
  EXPECT_EQ(curve.sampling_rate(), 1);
  EXPECT_DOUBLE_EQ(curve.MissRatio(0), 1);
  EXPECT_DOUBLE_EQ(curve.MissRatio(1), 5. / 6);
  EXPECT_DOUBLE_EQ(curve.MissRatio(2), 4. / 6);
  EXPECT_DOUBLE_EQ(curve.MissRatio(3), 3. / 6);
  EXPECT_DOUBLE_EQ(curve.MissRatio(1000), 3. / 6);
}

TEST(MissRatioCurve, CountsBytesOfDifferentObjects) {
  MissRatioCurve curve(1000);
  curve.Access(1, 20);
  curve.Access(2, 4);
  curve.Access(1, 20);  // 24 bytes
  curve.Access(2, 4);   // 24 bytes
  curve.Access(2, 4);   // 4 bytes
  EXPECT_DOUBLE_EQ(curve.MissRatio(3), 1);
  EXPECT_DOUBLE_EQ(curve.MissRatio(4), 4. / 5);
  EXPECT_DOUBLE_EQ(curve.MissRatio(24), 2. / 5);
  EXPECT_DOUBLE_EQ(curve.ByteMissRatio(4), 48. / 52);
  EXPECT_DOUBLE_EQ(curve.ByteMissRatio(24), 24. / 52);
}

TEST(MissRatioCurve, ASizeThatIsLearnedLaterCounts) {
  MissRatioCurve curve(1000);
  curve.Access(1, 10);
  curve.Access(2, 10);
  curve.SetBytes(2, 5);
  curve.SetBytes(77, 5);  // unknown: ignored
  curve.Access(1, 10);
  EXPECT_DOUBLE_EQ(curve.MissRatio(14), 1);
  EXPECT_DOUBLE_EQ(curve.MissRatio(15), 2. / 3);
}

TEST(MissRatioCurve, BeforeTheFirstAccessEverythingMisses) {
  MissRatioCurve curve(1000);
  EXPECT_EQ(curve.MissRatio(1000), 1);
  EXPECT_EQ(curve.ByteMissRatio(1000), 1);
  EXPECT_EQ(curve.sampled_accesses(), 0);
}

TEST(MissRatioCurve, AnEighthOfTheObjectsIsEnoughOnAChatTrace) {
  const std::vector<Use> uses = ReadTrace("mooncake_blocks.txt", uint64_t{512} << 17);
  ASSERT_GT(uses.size(), 20'000u);
  MissRatioCurve curve(uint64_t{1} << 50, 2048);
  const Errors errors = Replay(uses, curve);
  EXPECT_LT(curve.sampling_rate(), 0.2);
  EXPECT_LT(errors.accesses, 0.02);
  EXPECT_LT(errors.bytes, 0.02);
}

TEST(MissRatioCurve, AQuarterOfTheObjectsIsEnoughOnARetrievalTrace) {
  const std::vector<Use> uses = ReadTrace("ragpulse_passages.txt", uint64_t{1} << 17);
  ASSERT_GT(uses.size(), 10'000u);
  MissRatioCurve curve(uint64_t{1} << 50, 512);
  const Errors errors = Replay(uses, curve);
  EXPECT_LT(curve.sampling_rate(), 0.35);
  EXPECT_LT(errors.accesses, 0.02);
  EXPECT_LT(errors.bytes, 0.02);
}

TEST(MissRatioCurve, MemoryIsBoundedAndTakenAtOnce) {
  MissRatioCurve curve(uint64_t{1} << 50);
  const uint64_t at_first = curve.MemoryBytes();
  EXPECT_LE(at_first, uint64_t{1} << 20);
  for (uint64_t key = 0; key < 300'000; ++key) curve.Access(key, 4096);
  EXPECT_EQ(curve.MemoryBytes(), at_first);
}

// Objects that come once and never again must not push what is in use out of the sample.
TEST(MissRatioCurve, FollowsWhatIsInUseThroughMillionsOfOthers) {
  constexpr uint64_t kWorkingSet = 1000, kTier = 4000;
  MissRatioCurve curve(kTier, 512);
  std::mt19937_64 random(7);
  uint64_t fresh = 1'000'000;
  const auto run = [&](int accesses) {
    for (int i = 0; i < accesses; ++i) {
      curve.Access(i % 2 == 0 ? random() % kWorkingSet : ++fresh, 1);
    }
  };
  run(2'000'000);
  EXPECT_GT(curve.sampling_rate(), 0.05);
  curve.Decay(0);
  run(200'000);
  EXPECT_NEAR(curve.MissRatio(kTier), 0.5 + 0.5 * std::exp(-2.0), 0.06);
  EXPECT_NEAR(curve.MissRatio(kTier / 400), 1 - 0.5 * 5. / kWorkingSet, 0.01);
}

// Sampling gets finer again when fewer objects are in use, without taking those it has not watched
// before for new ones.
TEST(MissRatioCurve, TheRateRisesWithoutAWave) {
  MissRatioCurve curve(64000, 4096);
  uint64_t fresh = 1'000'000;
  const auto sweep = [&](uint64_t objects, int rounds) {
    for (int round = 0; round < rounds; ++round) {
      for (uint64_t key = 0; key < objects; ++key) {
        curve.Access(key, 1);
        curve.Access(++fresh, 1);
      }
    }
  };
  sweep(32000, 5);
  const double coarse = curve.sampling_rate();
  EXPECT_LT(coarse, 0.1);
  curve.SetMaxBytes(8000);
  sweep(2400, 1);
  for (int i = 0; i < 300; ++i) {
    curve.Decay(0);
    sweep(2400, 1);
    EXPECT_NEAR(curve.MissRatio(8000), 0.5, 0.12) << "at round " << i;
  }
  EXPECT_GT(curve.sampling_rate(), 3 * coarse);
}

TEST(MissRatioCurve, WhatFadedCountsForLittle) {
  MissRatioCurve curve(1000);
  for (int i = 0; i < 1000; ++i) curve.Access(1, 10);
  EXPECT_NEAR(curve.MissRatio(10), 0.001, 1e-9);
  curve.Decay(0.001);
  for (uint64_t key = 100; key < 199; ++key) curve.Access(key, 10);
  EXPECT_NEAR(curve.accesses(), 100, 0.01);
  EXPECT_NEAR(curve.MissRatio(1000), 0.99, 0.001);
}

}  // namespace
}  // namespace terrace
