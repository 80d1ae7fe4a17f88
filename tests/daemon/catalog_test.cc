#include "daemon/catalog.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace terrace {
namespace {

constexpr Salt kSalt{7};

std::vector<ObjectKey> Chain(uint32_t grains, uint32_t diverge_at, uint32_t variant) {
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < grains * kGrainTokens; ++i) {
    tokens.push_back(i / kGrainTokens >= diverge_at ? i + 1000 * variant : i);
  }
  return GrainKeys(kSalt, RootKey(kSalt, Fingerprint{}), tokens);
}

ObjectId Add(Catalog& catalog, const ObjectKey& parent, const std::vector<ObjectKey>& grains) {
  const ObjectId id = catalog.Insert(grains.back());
  Entry& entry = catalog.at(id);
  entry.parent_head = parent.Head64();
  entry.fingerprint = catalog.InternFingerprint(Fingerprint{});
  entry.grain_count = grains.size();
  entry.token_count = grains.size() * kGrainTokens;
  if (grains.size() > 1) {
    entry.grain_filters = std::make_unique<GrainFilter[]>(grains.size() - 1);
    for (size_t i = 0; i + 1 < grains.size(); ++i) {
      entry.grain_filters[i] = FilterOf(grains[i]);
    }
  }
  catalog.LinkToParent(id);
  return id;
}

TEST(Catalog, FindsWhatWasInsertedAndForgetsWhatWasFreed) {
  Catalog catalog;
  std::vector<ObjectId> ids;
  const auto keys = Chain(5000, 0, 0);
  for (const ObjectKey& key : keys) ids.push_back(catalog.Insert(key));
  for (size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(catalog.Find(keys[i]), ids[i]);
  for (size_t i = 0; i < keys.size(); i += 2) catalog.Free(ids[i]);
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(catalog.Find(keys[i]), i % 2 == 0 ? kNoObject : ids[i]);
  }
  // Freed slots are used again before the slab grows.
  const ObjectId slots = catalog.slot_count();
  catalog.Insert(keys[0]);
  EXPECT_EQ(catalog.slot_count(), slots);
}

TEST(Catalog, ReservedEntriesAreNotVisibleAndDeadOnesNotFindable) {
  Catalog catalog;
  const auto grains = Chain(1, 0, 0);
  const ObjectId id = catalog.Insert(grains[0]);
  EXPECT_FALSE(catalog.at(id).visible());
  EXPECT_EQ(catalog.visible_count(), 0u);
  catalog.LinkToParent(id);
  EXPECT_EQ(catalog.visible_count(), 1u);
  catalog.Unindex(id);
  EXPECT_EQ(catalog.Find(grains[0]), kNoObject);
  EXPECT_EQ(catalog.at(id).state, EntryState::kDead);
  EXPECT_EQ(catalog.visible_count(), 0u);
  catalog.Free(id);
}

TEST(Catalog, BestTailIsTheChildWithTheLongestCommonGrains) {
  Catalog catalog;
  const ObjectKey parent = RootKey(kSalt, Fingerprint{});
  const ObjectId four = Add(catalog, parent, Chain(16, 4, 1));
  const ObjectId nine = Add(catalog, parent, Chain(12, 9, 2));
  const ObjectId none = Add(catalog, parent, Chain(16, 0, 3));
  const auto query = Chain(16, 16, 0);
  auto best = catalog.BestTail(parent, 0, 0, query);
  ASSERT_TRUE(best.has_value());
  EXPECT_EQ(best->id, nine);
  EXPECT_EQ(best->matched_grains, 9u);

  catalog.Unindex(nine);
  best = catalog.BestTail(parent, 0, 0, query);
  ASSERT_TRUE(best.has_value());
  EXPECT_EQ(best->id, four);
  EXPECT_EQ(best->matched_grains, 4u);

  catalog.Unindex(four);
  EXPECT_FALSE(catalog.BestTail(parent, 0, 0, query).has_value());
  catalog.Unindex(none);
  EXPECT_FALSE(catalog.BestTail(parent, 0, 0, query).has_value());
}

TEST(Catalog, BestTailKeepsTenantsFingerprintsAndParentsApart) {
  Catalog catalog;
  const ObjectKey parent = RootKey(kSalt, Fingerprint{});
  const auto grains = Chain(8, 8, 0);
  Add(catalog, parent, grains);
  const uint32_t other = catalog.InternFingerprint(Fingerprint{1});
  EXPECT_TRUE(catalog.BestTail(parent, 0, 0, grains).has_value());
  EXPECT_FALSE(catalog.BestTail(parent, other, 0, grains).has_value());
  EXPECT_FALSE(catalog.BestTail(parent, 0, 1, grains).has_value());
  EXPECT_FALSE(catalog.BestTail(grains[0], 0, 0, grains).has_value());
}

// The last grain is compared in full, with the object's own key.
TEST(Catalog, AWholeShortTailMatchesInFull) {
  Catalog catalog;
  const ObjectKey parent = RootKey(kSalt, Fingerprint{});
  const ObjectId tail = Add(catalog, parent, Chain(3, 3, 0));
  const auto best = catalog.BestTail(parent, 0, 0, Chain(16, 16, 0));
  ASSERT_TRUE(best.has_value());
  EXPECT_EQ(best->id, tail);
  EXPECT_EQ(best->matched_grains, 3u);
}

}  // namespace
}  // namespace terrace
