// Who gives way when the store is full, what is written once more, and what that costs.
#include <deque>
#include <set>

#include "gmock/gmock.h"
#include "tests/tiers/nvme/nvme_fixture.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// Eight objects of half a MiB fill a segment; the store has twelve.
class ReclaimTest : public NvmeTierTest {
 protected:
  ReclaimTest() { options_.capacity_bytes = 12 * options_.segment_bytes; }

  static TestObject Object(uint64_t seed) { return MakeObject(seed, 1, 500 * kKiB); }

  // Writes so many objects that are never wanted again, all at once.
  void WriteOthers(int count) {
    std::deque<TestObject> objects;
    size_t durable = 0;
    for (int i = 0; i < count; ++i) {
      const TestObject& object = objects.emplace_back(Object(next_other_++));
      tier_->Write({object.meta, object.payload.data(), IoPriority::kBackground,
                    [&, meta = object.meta](absl::StatusOr<RecordId> id) {
                      ASSERT_TRUE(id.ok()) << id.status();
                      records_.emplace_back(*id, meta);
                      ++durable;
                    }});
    }
    ASSERT_TRUE(loop_.RunUntil([&] { return durable == objects.size(); }));
  }

  uint64_t BytesOnDisk() const {
    uint64_t bytes = 0;
    for (const auto& file : SegmentFiles()) bytes += std::filesystem::file_size(file);
    return bytes;
  }

  // Until nothing gives way any longer.
  void Settle() {
    uint64_t before = 0;
    do {
      before = tier_->Stats().device_written_bytes;
      loop_.RunUntil([] { return false; }, std::chrono::seconds(1));
    } while (tier_->Stats().device_written_bytes != before);
  }

  uint64_t next_other_ = 1'000'000;
};

TEST_F(ReclaimTest, WhatWasUsedIsWrittenOnceMoreUnderTheSameId) {
  Open();
  std::vector<TestObject> used;
  std::vector<RecordId> ids;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    used.push_back(Object(seed));
    ids.push_back(MustWrite(used.back()));
    tier_->Touch(ids.back());
    WriteOthers(3);
  }
  for (int i = 0; i < 60; ++i) {
    WriteOthers(4);
    for (RecordId id : ids) tier_->Touch(id);
  }
  EXPECT_GT(tier_->Stats().reinserted_bytes, 0u);
  EXPECT_GT(tier_->Stats().reclaimed_segments, 10u);
  for (size_t i = 0; i < used.size(); ++i) ExpectStored(ids[i], used[i]);
  Reopen();
  for (const TestObject& object : used) ExpectStored(IdOf(object.meta.key), object);
}

TEST_F(ReclaimTest, WritingOnceMoreIsBounded) {
  Open();
  for (int i = 0; i < 100; ++i) {
    WriteOthers(4);
    // All are wanted: more than there is room for.
    for (const auto& [id, meta] : Records()) tier_->Touch(id);
  }
  const NvmeStats stats = tier_->Stats();
  EXPECT_GT(stats.reinserted_bytes, 0u);
  EXPECT_LE(stats.device_written_bytes, stats.written_bytes * 110 / 100);
}

TEST_F(ReclaimTest, InOrderOfArrivalNothingIsWrittenTwice) {
  options_.reclaim = ReclaimPolicy::kFifo;
  Open();
  std::vector<ObjectKey> written;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const TestObject object = Object(seed);
    tier_->Touch(MustWrite(object));
    written.push_back(object.meta.key);
  }
  ASSERT_GT(dropped_.size(), 100u);
  // A segment goes whole, the oldest first.
  std::set<ObjectKey> oldest(written.begin(), written.begin() + dropped_.size());
  EXPECT_EQ(std::set<ObjectKey>(dropped_.begin(), dropped_.end()), oldest);
  EXPECT_EQ(tier_->Stats().reinserted_bytes, 0u);
}

TEST_F(ReclaimTest, PinnedRecordsMoveAndStay) {
  Open();
  const TestObject pinned = Object(1);
  const RecordId id = MustWrite(pinned);
  tier_->SetPinned(id, true);
  WriteOthers(300);
  ExpectStored(id, pinned);
  EXPECT_GT(tier_->Stats().reinserted_bytes, 0u) << "or a segment was kept for its sake";
  Reopen();
  ExpectStored(IdOf(pinned.meta.key), pinned);
  WriteOthers(200);
  ExpectStored(IdOf(pinned.meta.key), pinned);
}

TEST_F(ReclaimTest, SegmentsAreReadyBeforeTheyAreNeeded) {
  Open();
  WriteOthers(150);
  Settle();
  const NvmeStats stats = tier_->Stats();
  const uint64_t unused = (stats.capacity_bytes - stats.used_bytes) / options_.segment_bytes;
  EXPECT_GE(stats.clean_segments + unused, 2u);
  EXPECT_GE(stats.clean_segments, 1u);
  EXPECT_LE(tier_->Stats().used_bytes, options_.capacity_bytes);
  EXPECT_LE(BytesOnDisk(), options_.capacity_bytes);
}

TEST_F(ReclaimTest, LifetimeClassesLieApart) {
  Open();
  for (Lifetime lifetime : {Lifetime::kImmutable, Lifetime::kHot, Lifetime::kCold}) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      TestObject object = Object(10 * static_cast<uint64_t>(lifetime) + seed);
      object.meta.lifetime = lifetime;
      MustWrite(object);
    }
  }
  EXPECT_EQ(SegmentFiles().size(), 3u);
  // And go on lying apart after a restart.
  Reopen();
  TestObject another = Object(77);
  another.meta.lifetime = Lifetime::kImmutable;
  MustWrite(another);
  EXPECT_EQ(SegmentFiles().size(), 3u);
}

TEST_F(ReclaimTest, ALongRecordGetsTheRoomOfSeveralSegments) {
  Open();
  WriteOthers(150);
  const TestObject large = MakeObject(1, 3, 4 * kMiB);
  const RecordId id = MustWrite(large);
  EXPECT_LE(tier_->Stats().used_bytes, options_.capacity_bytes);
  WriteOthers(20);
  ExpectStored(id, large);
  WriteOthers(200);  // it goes in its turn, and so does its file
  EXPECT_EQ(IdOf(large.meta.key), kNoRecord);
  Settle();
  EXPECT_LE(BytesOnDisk(), options_.capacity_bytes);
}

TEST_F(ReclaimTest, ASmallerCapacityIsKeptFromTheStart) {
  Open();
  WriteOthers(80);
  tier_.reset();
  options_.capacity_bytes = 8 * options_.segment_bytes;
  Open();
  EXPECT_LE(tier_->Stats().used_bytes, options_.capacity_bytes);
  EXPECT_GT(dropped_.size(), 0u);
  for (const auto& [id, meta] : Records()) ExpectStored(id, Object(meta.cost_us));
  WriteOthers(20);
  Settle();
  EXPECT_LE(BytesOnDisk(), options_.capacity_bytes);
}

TEST_F(ReclaimTest, TheCapacityChangesWhileServing) {
  Open();
  const TestObject pinned = Object(1);
  const RecordId pinned_id = MustWrite(pinned);
  tier_->SetPinned(pinned_id, true);
  WriteOthers(80);
  Settle();
  ASSERT_GT(tier_->Stats().used_bytes, 10 * options_.segment_bytes);
  EXPECT_TRUE(absl::IsInvalidArgument(tier_->SetCapacity(2 * options_.segment_bytes - 1)));

  // Down to where there is one class of segments only, with writes on their way.
  for (uint64_t segments : {9, 4}) {
    const uint64_t bytes = segments * options_.segment_bytes;
    ASSERT_TRUE(tier_->SetCapacity(bytes).ok());
    EXPECT_EQ(tier_->Stats().capacity_bytes, bytes);
    WriteOthers(6);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (tier_->Stats().used_bytes > bytes && std::chrono::steady_clock::now() < deadline) {
      const uint64_t reclaimed = tier_->Stats().reclaimed_segments;
      tier_->Tick();
      EXPECT_LE(tier_->Stats().reclaimed_segments, reclaimed + 4);  // a few at a time
      loop_.RunUntil([] { return false; }, std::chrono::seconds(0));
    }
    EXPECT_LE(tier_->Stats().used_bytes, bytes);
    ExpectStored(pinned_id, pinned);
    for (const auto& [id, meta] : Records()) {
      if (id != pinned_id) ExpectStored(id, Object(meta.cost_us));
    }
    WriteOthers(40);
    EXPECT_LE(tier_->Stats().used_bytes, bytes);
  }
  Settle();
  EXPECT_LE(BytesOnDisk(), tier_->Stats().capacity_bytes);

  ASSERT_TRUE(tier_->SetCapacity(16 * options_.segment_bytes).ok());
  const size_t before = dropped_.size();
  WriteOthers(70);
  EXPECT_EQ(dropped_.size(), before);  // there is room again
  ExpectStored(pinned_id, pinned);
  options_.capacity_bytes = 16 * options_.segment_bytes;
  Reopen();
  ExpectStored(IdOf(pinned.meta.key), pinned);
}

TEST_F(ReclaimTest, TheWriteBudgetIsKeptAcrossRestarts) {
  options_.write_budget_bytes_per_day = 40 * kMiB;
  Open();
  absl::Status refused;
  int written = 0;
  for (; written < 100 && refused.ok(); ++written) refused = Write(Object(written)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("write budget"));
  EXPECT_LE(tier_->Stats().device_written_bytes, 10 * kMiB);  // a quarter of a day's, at once
  EXPECT_GT(tier_->Stats().device_written_bytes, 8 * kMiB);
  EXPECT_EQ(tier_->Stats().budget_rejected, 1u);
  ExpectStored(IdOf(Object(0).meta.key), Object(0));
  Reopen();
  EXPECT_TRUE(absl::IsResourceExhausted(Write(Object(500)).status()));
}

TEST_F(ReclaimTest, APayloadThatChangedIsNotWritten) {
  Open();
  TestObject object = MakeObject(1, 3, 3 * kMiB / 2);  // parts of two pieces
  object.payload.data()[2 * kMiB] ^= 1;
  const absl::Status status = Write(object).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("part 2 is not what its checksum says"));
  object.payload.data()[2 * kMiB] ^= 1;
  ExpectStored(MustWrite(object), object);
  Reopen();
  ExpectStored(IdOf(object.meta.key), object);
}

}  // namespace
}  // namespace terrace
