#include "tiers/extent_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(ExtentAllocator, SplitsAndCoalesces) {
  ExtentAllocator allocator;
  EXPECT_FALSE(allocator.Allocate(1).has_value());
  allocator.Grow(16 * kPage);
  const auto a = allocator.Allocate(1), b = allocator.Allocate(5 * kPage),
             c = allocator.Allocate(10 * kPage);
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(allocator.used_bytes(), 16 * kPage);
  EXPECT_EQ(allocator.largest_free_bytes(), 0u);
  EXPECT_FALSE(allocator.Allocate(1).has_value());
  allocator.Free(a->block);
  allocator.Free(c->block);
  EXPECT_EQ(allocator.largest_free_bytes(), 10 * kPage);
  allocator.Free(b->block);
  EXPECT_EQ(allocator.largest_free_bytes(), 16 * kPage);
  EXPECT_TRUE(allocator.Allocate(16 * kPage).has_value());
}

TEST(ExtentAllocator, GrowthExtendsAFreeEnd) {
  ExtentAllocator allocator;
  allocator.Grow(4 * kPage);
  allocator.Grow(4 * kPage);
  EXPECT_EQ(allocator.largest_free_bytes(), 8 * kPage);
  const auto all = allocator.Allocate(8 * kPage);
  allocator.Grow(2 * kPage);
  EXPECT_EQ(allocator.largest_free_bytes(), 2 * kPage);
  allocator.Free(all->block);
  EXPECT_EQ(allocator.largest_free_bytes(), 10 * kPage);
}

TEST(ExtentAllocatorDeathTest, FreeingTwiceIsCaught) {
  ExtentAllocator allocator;
  allocator.Grow(kMiB);
  const auto a = allocator.Allocate(kPage);
  allocator.Free(a->block);
  EXPECT_DEATH(allocator.Free(a->block), "not allocated");
}

// Against a model: no two allocations overlap, accounting is exact, and freeing everything leaves
// one run.
TEST(ExtentAllocator, RandomUseKeepsRunsDisjoint) {
  std::mt19937_64 random(20261123);
  ExtentAllocator allocator;
  allocator.Grow(64 * kMiB);
  std::map<uint64_t, std::pair<uint64_t, uint32_t>> live;  // offset -> {bytes, block}
  uint64_t used = 0;
  for (int step = 0; step < 40000; ++step) {
    if (live.empty() || random() % 5 < 3) {
      const uint64_t bytes = (1 + random() % 200) * kPage;
      const auto got = allocator.Allocate(bytes);
      if (!got) {
        ASSERT_LT(allocator.largest_free_bytes(), bytes + bytes / 16);
        continue;
      }
      const auto next = live.lower_bound(got->offset);
      if (next != live.end()) {
        ASSERT_LE(got->offset + bytes, next->first);
      }
      if (next != live.begin()) {
        const auto& previous = *std::prev(next);
        ASSERT_LE(previous.first + previous.second.first, got->offset);
      }
      live[got->offset] = {bytes, got->block};
      used += bytes;
    } else {
      auto victim = std::next(live.begin(), random() % live.size());
      allocator.Free(victim->second.second);
      used -= victim->second.first;
      live.erase(victim);
    }
    ASSERT_EQ(allocator.used_bytes(), used);
    ASSERT_EQ(allocator.allocation_count(), live.size());
  }
  for (const auto& [offset, entry] : live) allocator.Free(entry.second);
  EXPECT_EQ(allocator.largest_free_bytes(), 64 * kMiB);
}

TEST(ExtentAllocator, HandsNothingOutAboveTheLimit) {
  ExtentAllocator allocator;
  allocator.Grow(16 * kPage);
  const auto a = allocator.Allocate(6 * kPage), b = allocator.Allocate(4 * kPage);
  ASSERT_TRUE(a && b);
  ASSERT_TRUE(allocator.Lower(8 * kPage, 100));  // through the middle of b
  EXPECT_EQ(allocator.limit_bytes(), 8 * kPage);
  EXPECT_EQ(allocator.used_above_bytes(), 2 * kPage);
  EXPECT_FALSE(allocator.Allocate(kPage).has_value());
  auto emptied = allocator.TakeEmptied();
  ASSERT_EQ(emptied.size(), 1u);
  EXPECT_EQ(emptied[0].offset, 10 * kPage);
  EXPECT_EQ(emptied[0].bytes, 6 * kPage);
  allocator.Free(b->block);
  emptied = allocator.TakeEmptied();
  ASSERT_EQ(emptied.size(), 1u);
  EXPECT_EQ(emptied[0].offset, 8 * kPage);
  EXPECT_EQ(emptied[0].bytes, 8 * kPage);  // with what is free around it
  EXPECT_EQ(allocator.largest_free_bytes(), 2 * kPage);
  allocator.Grow(4 * kPage);
  EXPECT_EQ(allocator.largest_free_bytes(), 6 * kPage);
  allocator.Free(a->block);
  allocator.Grow(8 * kPage);  // beyond where it has ever been
  EXPECT_EQ(allocator.largest_free_bytes(), 20 * kPage);
}

// The limit goes up and down under random use. What is reported as empty must be all that is free
// above the limit, and never what is in use.
TEST(ExtentAllocator, RandomLimitsKeepRunsDisjointAndTellWhatIsEmpty) {
  std::mt19937_64 random(20261126);
  ExtentAllocator allocator;
  constexpr uint64_t kPages = 4096;
  enum State : uint8_t { kUsable, kUsed, kEmptied };
  std::vector<State> pages(kPages, kEmptied);              // as the owner of the memory sees them
  std::map<uint64_t, std::pair<uint64_t, uint32_t>> live;  // first page -> {pages, block}
  uint64_t limit = 0, goal = 0;
  const auto mark = [&](uint64_t first, uint64_t count, State state) {
    std::fill_n(pages.begin() + static_cast<int64_t>(first), count, state);
  };
  for (int step = 0; step < 60000; ++step) {
    const uint64_t choice = random() % 100;
    if (choice == 0) goal = 1 + random() % kPages;
    if (limit > goal) {
      const bool done = allocator.Lower(goal * kPage, 1 + random() % 20);
      ASSERT_EQ(done, allocator.limit_bytes() == goal * kPage);
    } else if (limit < goal && choice < 50) {
      allocator.Grow(std::min<uint64_t>(goal - limit, 1 + random() % 300) * kPage);
      for (uint64_t page = limit; page < allocator.limit_bytes() / kPage; ++page) {
        if (pages[page] == kEmptied) pages[page] = kUsable;
      }
    }
    limit = allocator.limit_bytes() / kPage;
    if (live.empty() || random() % 5 < 3) {
      const uint64_t count = 1 + random() % 64;
      if (const auto got = allocator.Allocate(count * kPage)) {
        const uint64_t first = got->offset / kPage;
        ASSERT_LE(first + count, limit);
        for (uint64_t page = first; page < first + count; ++page) ASSERT_EQ(pages[page], kUsable);
        mark(first, count, kUsed);
        live[first] = {count, got->block};
      }
    } else {
      auto victim = std::next(live.begin(), static_cast<int64_t>(random() % live.size()));
      allocator.Free(victim->second.second);
      mark(victim->first, victim->second.first, kUsable);
      live.erase(victim);
    }
    for (const auto& [offset, bytes] : allocator.TakeEmptied()) {
      ASSERT_GE(offset, limit * kPage);
      for (uint64_t page = offset / kPage; page < (offset + bytes) / kPage; ++page) {
        ASSERT_NE(pages[page], kUsed);
        pages[page] = kEmptied;
      }
    }
    uint64_t used_above = 0;
    for (const auto& [first, entry] : live) {
      const uint64_t end = first + entry.first;
      used_above += end > limit ? end - std::max(first, limit) : 0;
    }
    ASSERT_EQ(allocator.used_above_bytes(), used_above * kPage);
    for (uint64_t page = limit; page < kPages; ++page) ASSERT_NE(pages[page], kUsable) << page;
  }
  for (const auto& [first, entry] : live) allocator.Free(entry.second);
  while (!allocator.Lower(kPage, 1000)) {
  }
  allocator.Grow((kPages - 1) * kPage);
  EXPECT_EQ(allocator.largest_free_bytes(), kPages * kPage);
}

using PageCountFn = uint64_t (*)(std::mt19937_64&);
// 64 KiB to 16 MiB.
uint64_t UniformPages(std::mt19937_64& random) { return 16 + random() % 4081; }
// As many of 64 KiB to 128 KiB as of 8 MiB to 16 MiB.
uint64_t SpreadPages(std::mt19937_64& random) {
  const uint64_t base = uint64_t{16} << random() % 8;
  return base + random() % base;
}

// Keeps the arena 85% used by replacing random objects, and checks after every store that an
// allocation of `bound_bytes` still succeeds.
void HoldAt85Percent(uint64_t arena_bytes, PageCountFn page_count, uint64_t bound_bytes,
                     uint64_t seed) {
  std::mt19937_64 random(seed);
  ExtentAllocator allocator;
  allocator.Grow(arena_bytes);
  std::vector<uint32_t> live;
  const auto drop_one = [&] {
    std::swap(live[random() % live.size()], live.back());
    allocator.Free(live.back());
    live.pop_back();
  };
  double first_failure = 0;
  uint64_t smallest_run = arena_bytes;
  for (int stored = 0; stored < 20000; ++stored) {
    const uint64_t bytes = page_count(random) * kPage;
    while (allocator.used_bytes() + bytes > arena_bytes / 100 * 85) drop_one();
    auto got = allocator.Allocate(bytes);
    while (!got) {
      ASSERT_GT(bytes, bound_bytes) << "store " << stored;
      if (first_failure == 0) {
        first_failure = static_cast<double>(allocator.used_bytes()) / arena_bytes;
      }
      drop_one();
      got = allocator.Allocate(bytes);
    }
    live.push_back(got->block);
    smallest_run = std::min(smallest_run, allocator.largest_free_bytes());
    const auto probe = allocator.Allocate(bound_bytes);
    ASSERT_TRUE(probe.has_value()) << "store " << stored;
    allocator.Free(probe->block);
  }
  std::cout << "arena " << arena_bytes / kMiB << " MiB, seed " << seed
            << ": largest free run never "
            << "below " << smallest_run / 1048576.0 << " MiB; first failure of any size at "
            << (first_failure == 0 ? "no" : std::to_string(first_failure)) << " utilisation\n";
}

// The bound at 85% used, sizes 64 KiB to 16 MiB: an allocation of up to 1/256 of the arena succeeds
// when sizes are uniform, of up to 1/512 when they spread over all scales. Larger ones may need
// eviction below 85%, because extents that clients have mapped cannot be moved.
TEST(ExtentAllocator, At85PercentUsedABoundedSizeAlwaysFits) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    for (uint64_t arena : {1024 * kMiB, 4096 * kMiB}) {
      HoldAt85Percent(arena, UniformPages, arena / 256, seed);
      HoldAt85Percent(arena, SpreadPages, arena / 512, seed);
    }
  }
}

// Fragmentation is bounded in practice: with chunk-like sizes (64 KiB to 4 MiB, uniform) replaced
// at random in a full arena, evicting one random object after another, the arena stays at least 85%
// used at the moments an allocation fails.
TEST(ExtentAllocator, FragmentationStaysBoundedUnderRandomReplacement) {
  std::mt19937_64 random(7);
  ExtentAllocator allocator;
  allocator.Grow(1024 * kMiB);
  std::vector<uint32_t> live;
  double worst = 1, sum = 0;
  int failures = 0;
  for (int stored = 0; stored < 20000;) {
    const uint64_t bytes = (16 + random() % 1008) * kPage;
    if (const auto got = allocator.Allocate(bytes)) {
      live.push_back(got->block);
      ++stored;
      continue;
    }
    const double used = static_cast<double>(allocator.used_bytes()) / allocator.limit_bytes();
    if (stored > 2000) {  // past the first fill
      worst = std::min(worst, used);
      sum += used;
      ++failures;
    }
    std::swap(live[random() % live.size()], live.back());
    allocator.Free(live.back());
    live.pop_back();
  }
  std::cout << "used when an allocation failed: mean " << sum / failures << ", worst " << worst
            << ", seed 7\n";
  EXPECT_GT(worst, 0.85);
}

}  // namespace
}  // namespace terrace
