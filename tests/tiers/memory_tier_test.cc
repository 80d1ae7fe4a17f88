#include "tiers/memory_tier.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <vector>

#include "tests/support/test_loop.h"

namespace terrace {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(MemoryTier, GrowsOffTheLoopAndOnlyHandsOutPopulatedMemory) {
  TestLoop loop;
  auto tier = MemoryTier::Create({"test", 40 * kMiB, 8 * kMiB}, loop.post());
  ASSERT_TRUE(tier.ok()) << tier.status();
  EXPECT_EQ((*tier)->populated_bytes(), 0u);
  EXPECT_TRUE((*tier)->growing());
  EXPECT_TRUE(absl::IsResourceExhausted((*tier)->Allocate(kMiB).status()));

  std::vector<Extent> extents;
  ASSERT_TRUE(loop.RunUntil([&] {
    while (true) {
      auto extent = (*tier)->Allocate(kMiB);
      if (!extent.ok()) break;
      EXPECT_LE(extent->offset + extent->bytes, (*tier)->populated_bytes());
      extents.push_back(*extent);
    }
    return extents.size() == 40;
  }));
  EXPECT_EQ((*tier)->populated_bytes(), 40 * kMiB);
  EXPECT_FALSE((*tier)->growing());
  EXPECT_EQ((*tier)->used_bytes(), 40 * kMiB);
  (*tier)->Free(extents[3]);
  auto again = (*tier)->Allocate(kMiB);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->offset, extents[3].offset);
}

TEST(MemoryTier, AnExtentIsTheSameBytesInAnotherMapping) {
  TestLoop loop;
  auto tier = MemoryTier::Create({"test", 16 * kMiB, 8 * kMiB}, loop.post());
  ASSERT_TRUE(tier.ok());
  ASSERT_TRUE(loop.RunUntil([&] { return (*tier)->populated_bytes() > 0; }));
  auto extent = (*tier)->Allocate(10000);
  ASSERT_TRUE(extent.ok());
  auto client = kernels::SharedMemory::Attach(dup((*tier)->fd()), 16 * kMiB, true);
  ASSERT_TRUE(client.ok());
  client->data()[extent->offset + 9999] = 77;
  EXPECT_EQ((*tier)->At(*extent)[9999], 77);
}

TEST(MemoryTier, RefusesWhatCanNeverFit) {
  TestLoop loop;
  auto tier = MemoryTier::Create({"test", 16 * kMiB, 8 * kMiB}, loop.post());
  ASSERT_TRUE(tier.ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*tier)->Allocate(16 * kMiB + 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*tier)->Allocate(0).status()));
}

TEST(MemoryTier, MayGoWhileAStepIsUnderWay) {
  TestLoop loop;
  for (int round = 0; round < 20; ++round) {
    auto tier = MemoryTier::Create({"test", 64 * kMiB, 8 * kMiB}, loop.post());
    ASSERT_TRUE(tier.ok());
  }
  // Steps posted by tiers that are gone must do nothing.
  bool ran = false;
  loop.post()([&ran] { ran = true; });
  EXPECT_TRUE(loop.RunUntil([&ran] { return ran; }));
}

}  // namespace
}  // namespace terrace
