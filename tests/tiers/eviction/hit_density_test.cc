// What hit density learns, and the default policy on the beginning of a real trace.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tiers/eviction/owner.h"
#include "tiers/eviction/reuse_times.h"

namespace terrace {
namespace {

using testing::Any;
using testing::MustMake;
using testing::Unit;

TEST(ReuseTimes, LevelsFollowEachOther) {
  EXPECT_EQ(ReuseTimes::LevelOf(0), 0);
  for (int level = 1; level < ReuseTimes::kLevels; ++level) {
    EXPECT_EQ(ReuseTimes::LevelOf(ReuseTimes::LevelStart(level)), level);
    EXPECT_EQ(ReuseTimes::LevelOf(ReuseTimes::LevelStart(level) - 1), level - 1);
  }
  EXPECT_EQ(ReuseTimes::LevelOf(~uint64_t{0}), ReuseTimes::kLevels - 1);
}

TEST(ReuseTimes, DensityPeaksBeforeTheUseAndFallsBehindIt) {
  ReuseTimes times(2);
  times.SetScale(1000);
  for (uint64_t now = 0; now < 20000; ++now) {
    times.Begin(0, now);
    times.Begin(1, now);
    if (now >= 100) times.End(0, now - 100, now);  // always after 100; class 1 never
  }
  std::vector<float> densities(2 * ReuseTimes::kLevels);
  times.Densities(20000, absl::MakeSpan(densities));
  const auto density = [&](int of, uint64_t age) {
    return densities[of * ReuseTimes::kLevels + ReuseTimes::LevelOf(age)];
  };
  EXPECT_NEAR(density(0, 0), 1.0 / 112, 0.1 / 112);  // the middle of 96 .. 127
  EXPECT_GT(density(0, 96), 4 * density(0, 0));
  EXPECT_LT(density(0, 130), 0.2 * density(0, 0));
  EXPECT_LT(density(1, 0), 0.1 * density(0, 0));
}

TEST(ReuseTimes, YoungLivesDoNotCountAgainstTheirClass) {
  ReuseTimes times(1);
  times.SetScale(1000);
  for (uint64_t now = 0; now < 20000; ++now) {
    times.Begin(0, now);
    if (now >= 5000) times.End(0, now - 5000, now);
  }
  std::vector<float> densities(ReuseTimes::kLevels);
  times.Densities(20000, absl::MakeSpan(densities));
  EXPECT_NEAR(densities[0], 1.0 / 5120, 0.2 / 5120);  // not a quarter less
}

TEST(HitDensity, KeepsAShareOfALoopThatDoesNotFit) {
  testing::Trace loop;
  for (PolicyId i = 0; i < 40000; ++i) loop.ids.push_back(i % 2000);
  PolicyContext context;
  context.capacity_bytes = 1000;
  EXPECT_EQ(Hits(loop, "lru", context), 0u);
  EXPECT_GT(Hits(loop, "hit-density", context), 10000u);
}

TEST(HitDensity, TheDearerForItsBytesStays) {
  PolicyContext context;
  context.capacity_bytes = 1000;
  auto policy = MustMake("hit-density", context);
  TrackInfo dear = Unit(0), cheap = Unit(1);
  dear.bytes = cheap.bytes = 1000;
  dear.cost_us = 4000;
  cheap.cost_us = 1000;
  policy->Track(0, dear);
  policy->Track(1, cheap);
  EXPECT_EQ(policy->Evict(Any), 1u);
}

TEST(HitDensity, RefusedOnesAreFoundWhenNothingElseIsThere) {
  PolicyContext context;
  context.capacity_bytes = 1000;
  auto policy = MustMake("hit-density", context);
  for (PolicyId id = 0; id < 50; ++id) policy->Track(id, Unit(id));
  EXPECT_EQ(policy->Evict([](PolicyId) { return false; }), std::nullopt);
  EXPECT_EQ(testing::Drain(*policy).size(), 50u);
}

// Requests of blocks, a prefix each.
std::vector<std::vector<PolicyId>> Conversation() {
  std::ifstream file(TERRACE_SOURCE_DIR "/tests/tiers/eviction/mooncake_conversation_3000.txt");
  std::vector<std::vector<PolicyId>> requests;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with('#')) continue;
    std::istringstream runs(line);
    requests.emplace_back();
    for (std::string run; runs >> run;) {
      const size_t dash = run.find('-');
      const int first = std::atoi(run.c_str());
      const int last = dash == std::string::npos ? first : std::atoi(run.c_str() + dash + 1);
      for (int id = first; id <= last; ++id) requests.back().push_back(id);
    }
  }
  return requests;
}

uint64_t PrefixHits(const std::vector<std::vector<PolicyId>>& requests, std::string_view name,
                    uint64_t capacity) {
  PolicyContext context;
  context.capacity_bytes = capacity;
  context.prefixes = true;
  auto policy = MustMake(name, context);
  std::vector<bool> here(100000);
  uint64_t used = 0, hits = 0;
  for (const auto& request : requests) {
    const auto missing =
        std::find_if(request.begin(), request.end(), [&](PolicyId block) { return !here[block]; });
    const auto hit = missing - request.begin();
    hits += hit;
    for (auto block = missing; block != request.begin();) policy->Touch(*--block);
    for (used += request.end() - missing; used > capacity; --used) {
      here[policy
               ->Evict(
                   [&](PolicyId id) { return std::find(request.begin(), missing, id) == missing; })
               .value()] = false;
    }
    for (size_t i = request.size(); i-- > static_cast<size_t>(hit);) {
      TrackInfo info = Unit(request[i], static_cast<uint16_t>(i));
      if (i > 0) info.parent = request[i - 1];
      policy->Track(request[i], info);
      here[request[i]] = true;
    }
  }
  return hits;
}

TEST(DefaultPolicy, BeatsRecencyOnConversations) {
  const auto requests = Conversation();
  ASSERT_EQ(requests.size(), 3000u);
  const auto gain = [&](uint64_t capacity) {
    return static_cast<double>(PrefixHits(requests, "default", capacity)) /
           static_cast<double>(PrefixHits(requests, "lru", capacity));
  };
  EXPECT_GT(gain(1000), 1.5);
  EXPECT_GT(gain(3000), 1.8);
  EXPECT_GT(gain(10000), 1.02);
}

}  // namespace
}  // namespace terrace
