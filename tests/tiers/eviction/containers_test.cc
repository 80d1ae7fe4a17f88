// The shapes that policies are made of, against the standard library's.
#include <gtest/gtest.h>

#include <list>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "tiers/eviction/ghosts.h"
#include "tiers/eviction/id_heap.h"
#include "tiers/eviction/id_list.h"
#include "tiers/eviction/id_set.h"

namespace terrace {
namespace {

constexpr uint32_t kIds = 200;

uint32_t Id(std::mt19937_64& random) {  // of several chunks of a table
  return std::uniform_int_distribution<uint32_t>(0, kIds - 1)(random) * 331;
}

TEST(IdTable, EntriesStayWhereTheyAre) {
  IdTable<int> table;
  EXPECT_EQ(table.Find(5), nullptr);
  int* first = &table.At(5);
  *first = 7;
  table.At(4'000'000'000u) = 9;  // costs its own range alone
  EXPECT_EQ(table.Find(5), first);
  EXPECT_EQ(table[5], 7);
  EXPECT_EQ(table[4'000'000'000u], 9);
  EXPECT_EQ(table.Find(2'000'000'000u), nullptr);
}

TEST(IdList, KeepsOrder) {
  std::mt19937_64 random(1);
  IdTable<IdLink> entries;
  IdList<IdLink> list(&entries);
  std::list<uint32_t> expected;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t id = Id(random);
    entries.At(id);
    if (!Placed(entries, id)) {
      list.Append(id);
      expected.push_back(id);
    } else if (i % 3 == 0) {
      list.Remove(id);
      expected.remove(id);
    } else {
      list.MoveToNewest(id);
      expected.remove(id);
      expected.push_back(id);
    }
    ASSERT_EQ(list.empty(), expected.empty());
    if (i % 100 != 0) continue;
    std::list<uint32_t> got;
    for (uint32_t at = list.oldest(); at != kEndOfList; at = list.NewerThan(at)) got.push_back(at);
    ASSERT_EQ(got, expected);
    ASSERT_EQ(list.newest(), expected.empty() ? kEndOfList : expected.back());
  }
}

TEST(IdHeap, FindsTheLeastOfWhatIsAccepted) {
  std::mt19937_64 random(2);
  IdTable<IdPosition> entries;
  IdHeap<IdPosition, uint64_t> heap(&entries);
  std::map<uint32_t, uint64_t> expected;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t id = Id(random);
    const uint64_t key = random() % 1000;
    entries.At(id);
    if (!Placed(entries, id)) {
      heap.Push(id, key);
      expected[id] = key;
    } else if (i % 3 == 0) {
      heap.Remove(id);
      expected.erase(id);
    } else {
      heap.Update(id, key);
      expected[id] = key;
    }
    ASSERT_EQ(heap.size(), expected.size());
    const uint32_t modulus = 1 + i % 4;
    const auto accept = [modulus](uint32_t candidate) { return candidate % modulus == 0; };
    std::optional<uint64_t> least;
    for (const auto& [other, other_key] : expected) {
      if (accept(other) && (!least || other_key < *least)) least = other_key;
    }
    const auto found = heap.First(accept);
    ASSERT_EQ(found.has_value(), least.has_value());
    if (!found) continue;
    ASSERT_TRUE(accept(*found));
    ASSERT_EQ(heap.KeyOf(*found), *least);
  }
}

TEST(IdSet, DrawsEachOfTheAcceptedAboutAsOften) {
  std::mt19937_64 random(3);
  IdTable<IdPosition> entries;
  IdSet<IdPosition> set(&entries);
  for (uint32_t id = 0; id < 20; ++id) {
    entries.At(id);
    set.Add(id);
  }
  set.Remove(3);
  std::map<uint32_t, int> drawn;
  for (int i = 0; i < 9000; ++i) {
    const auto id = set.Draw(random, [](uint32_t candidate) { return candidate % 2 == 1; });
    ASSERT_TRUE(id.has_value());
    ++drawn[*id];
  }
  ASSERT_EQ(drawn.size(), 9u);
  for (const auto& [id, count] : drawn) {
    EXPECT_EQ(id % 2, 1u);
    EXPECT_NEAR(count, 1000, 150);
  }
  EXPECT_FALSE(set.Draw(random, [](uint32_t) { return false; }).has_value());
}

TEST(IdSet, MergesEitherWayRound) {
  for (const uint32_t first : {2u, 8u}) {
    IdTable<IdPosition> entries;
    IdSet<IdPosition> a(&entries), b(&entries);
    for (uint32_t id = 0; id < 10; ++id) {
      entries.At(id);
      (id < first ? a : b).Add(id);
    }
    a.Merge(b);
    EXPECT_EQ(a.size(), 10u);
    EXPECT_TRUE(b.empty());
    std::set<uint32_t> all;
    for (uint32_t i = 0; i < a.size(); ++i) {
      all.insert(a[i]);
      EXPECT_EQ(entries[a[i]].position, i);
    }
    EXPECT_EQ(all.size(), 10u);
  }
}

TEST(Ghosts, AreAQueueThatIsFoundByHead) {
  std::mt19937_64 random(4);
  Ghosts<uint32_t> ghosts;
  std::list<std::pair<uint64_t, std::pair<uint64_t, uint32_t>>> expected;  // head, bytes, value
  uint64_t bytes = 0;
  const auto take = [&](uint64_t head) -> std::optional<uint32_t> {
    for (auto at = expected.begin(); at != expected.end(); ++at) {
      if (at->first != head) continue;
      const uint32_t value = at->second.second;
      bytes -= at->second.first;
      expected.erase(at);
      return value;
    }
    return std::nullopt;
  };
  for (uint32_t i = 0; i < 20000; ++i) {
    const uint64_t head = random() % 500 << (i % 2 == 0 ? 0 : 40);
    if (i % 3 != 0) {
      const uint64_t size = random() % 100;
      ghosts.Add(head, size, i);
      if (head != 0) {
        take(head);
        expected.push_back({head, {size, i}});
        bytes += size;
      }
    } else {
      ASSERT_EQ(ghosts.Take(head), take(head));
    }
    if (expected.size() > 300) {
      ghosts.DropOldest();
      take(expected.front().first);
    }
    ASSERT_EQ(ghosts.size(), expected.size());
    ASSERT_EQ(ghosts.bytes(), bytes);
  }
  ghosts.TrimTo(1);
  EXPECT_EQ(ghosts.Take(expected.back().first), expected.back().second.second);
}

}  // namespace
}  // namespace terrace
