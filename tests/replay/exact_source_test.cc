#include "replay/exact_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "tests/replay/made_up_trace.h"
#include "tiers/eviction/registry.h"

namespace terrace::replay {
namespace {

using ::testing::ElementsAre;
using testing::Keys;
using testing::Made;

std::vector<uint64_t> Numbers(NumberFile& file) {
  std::vector<uint64_t> numbers;
  for (uint64_t i = 0; i < file.size(); ++i) numbers.push_back(*file.At(i));
  return numbers;
}

NumberFile UsesOf(const Keys& keys) {
  const auto reader = Made(keys);
  auto uses = ExactNextUses(*reader);
  EXPECT_TRUE(uses.ok()) << uses.status();
  return *std::move(uses);
}

uint64_t MinHits(const Keys& keys, const SimulatorOptions& options) {
  const auto simulator = Simulator::Create(
      options, [](const PolicyContext& context) { return NewPolicy("min", context); });
  const auto source = NewExactSource(Made(keys), UsesOf(keys));
  KnownRequest request;
  while (*source->Next(request)) EXPECT_TRUE((*simulator)->Serve(request).ok());
  return (*simulator)->counts().hits;
}

// The most hits that any choice of victims gives.
uint64_t BestHits(const std::vector<uint64_t>& keys, size_t at, std::set<uint64_t> held,
                  size_t capacity) {
  uint64_t hits = 0;
  for (; at < keys.size() && held.count(keys[at]) != 0; ++at) ++hits;
  if (at == keys.size()) return hits;
  if (held.size() < capacity) {
    held.insert(keys[at]);
    return hits + BestHits(keys, at + 1, held, capacity);
  }
  uint64_t best = 0;
  for (const uint64_t victim : held) {
    std::set<uint64_t> rest = held;
    rest.erase(victim);
    rest.insert(keys[at]);
    best = std::max(best, BestHits(keys, at + 1, rest, capacity));
  }
  return hits + best;
}

TEST(ExactNextUses, CountAccesses) {
  NumberFile uses = UsesOf({{1, 2}, {2}, {3, 1}});
  EXPECT_THAT(Numbers(uses), ElementsAre(4, 2, kNeverUsed, kNeverUsed, kNeverUsed));
}

TEST(ExactSource, MinIsAsGoodAsTryingEverything) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    std::vector<uint64_t> accesses(14);
    for (uint64_t& key : accesses) key = random() % 6;
    Keys keys;
    for (size_t i = 0; i < accesses.size(); i += 2) keys.push_back({accesses[i], accesses[i + 1]});
    for (const size_t capacity : {1, 2, 3, 4}) {
      EXPECT_EQ(MinHits(keys, {.capacity = capacity}), BestHits(accesses, 0, {}, capacity));
    }
  }
}

TEST(ExactSource, NoticesATraceThatGrew) {
  const auto source = NewExactSource(Made({{1}, {2}}), UsesOf({{1}}));
  KnownRequest request;
  EXPECT_TRUE(*source->Next(request));
  EXPECT_EQ(source->Next(request).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(DiscardBits, AreWhatMinEvictsBeforeItsUse) {
  // Two fit. At access 2 MIN drops 1 or 2, whichever comes back later: 2. Then 3, never wanted.
  const Keys keys = {{1}, {2}, {3}, {1}, {2}};
  auto bits = DiscardBits(NewExactSource(Made(keys), UsesOf(keys)), {.capacity = 2}, {});
  ASSERT_TRUE(bits.ok());
  const auto numbers = Numbers(*bits);
  EXPECT_EQ(numbers[0], kUnknownUse);
  EXPECT_EQ(numbers[1], kNeverUsed);
  EXPECT_EQ(numbers[4], kUnknownUse);  // still there at the end
  auto flipped =
      DiscardBits(NewExactSource(Made(keys), UsesOf(keys)), {.capacity = 2}, {.flip = 1});
  EXPECT_EQ(*flipped->At(0), kNeverUsed);
  EXPECT_EQ(*flipped->At(1), kUnknownUse);
}

TEST(DiscardBits, AShareOfThemIsTurnedRound) {
  Keys keys;
  for (uint64_t i = 0; i < 20000; ++i) keys.push_back({i % 5});
  const SimulatorOptions all_fit = {.capacity = 5};
  auto bits =
      DiscardBits(NewExactSource(Made(keys), UsesOf(keys)), all_fit, {.flip = 0.1, .seed = 3});
  const auto numbers = Numbers(*bits);
  const auto wrong = std::count(numbers.begin(), numbers.end(), kNeverUsed);
  EXPECT_GT(wrong, 1800);
  EXPECT_LT(wrong, 2200);
}

TEST(PhaseBits, SayWhatTheNextPhaseDoesNotWant) {
  // Two fit: phases are {1 2 1}, {3 1}, {2 2}.
  const Keys keys = {{1, 2, 1}, {3, 1}, {2, 2}};
  NumberFile numbers = UsesOf(keys);
  const auto reader = Made(keys);
  ASSERT_TRUE(PhaseBits(*reader, {.capacity = 2}, {}, numbers).ok());
  EXPECT_THAT(Numbers(numbers), ElementsAre(kUnknownUse, kNeverUsed, kUnknownUse,  //
                                            kNeverUsed, kNeverUsed,                //
                                            kUnknownUse, kNeverUsed));
}

}  // namespace
}  // namespace terrace::replay
