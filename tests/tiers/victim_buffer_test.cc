#include "tiers/victim_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Entry = VictimBuffer::Entry;

std::vector<uint64_t> Keys(const std::vector<Entry>& entries) {
  std::vector<uint64_t> keys;
  for (const Entry& entry : entries) keys.push_back(entry.key_head);
  return keys;
}

class VictimBufferTest : public ::testing::Test {
 protected:
  bool Put(uint64_t key, uint64_t due, uint64_t bytes = 10) {
    return buffer_.Put({key, bytes, due}, &dropped_);
  }
  std::vector<uint64_t> TakeDue(uint64_t now) {
    const auto bucket = buffer_.TakeDue(now, /*per_byte=*/1, /*latency=*/5);
    return bucket ? Keys(bucket->entries) : std::vector<uint64_t>{};
  }

  VictimBuffer buffer_{{.capacity_bytes = 50, .bucket_span = 100}};
  std::vector<Entry> dropped_;
};

TEST_F(VictimBufferTest, ABucketMovesAsOneBeforeItsTime) {
  EXPECT_TRUE(Put(1, 1090));
  EXPECT_TRUE(Put(2, 1010));
  EXPECT_TRUE(Put(3, 1200));
  EXPECT_EQ(buffer_.NextMove(1, 5), 975u);
  EXPECT_THAT(TakeDue(974), IsEmpty());  // 20 bytes and the latency: 25 before 1000
  const auto bucket = buffer_.TakeDue(975, 1, 5);
  ASSERT_TRUE(bucket.has_value());
  EXPECT_EQ(bucket->begin, 1000u);
  EXPECT_EQ(bucket->bytes, 20u);
  EXPECT_THAT(Keys(bucket->entries), ElementsAre(2, 1));
  EXPECT_FALSE(buffer_.Holds(1));
  EXPECT_EQ(buffer_.held_bytes(), 10u);
  EXPECT_THAT(TakeDue(5000), ElementsAre(3));  // late, but still
  EXPECT_THAT(TakeDue(9000), IsEmpty());
  EXPECT_FALSE(buffer_.NextMove(1, 5).has_value());
}

TEST_F(VictimBufferTest, TheFurthestGivesWayAndTheFurtherIsRefused) {
  for (uint64_t i = 1; i <= 5; ++i) EXPECT_TRUE(Put(i, i * 100));
  EXPECT_FALSE(Put(6, 550));  // the same bucket as the furthest
  EXPECT_FALSE(Put(7, 900));
  EXPECT_THAT(dropped_, IsEmpty());
  EXPECT_TRUE(Put(8, 250, 20));
  EXPECT_THAT(Keys(dropped_), ElementsAre(5, 4));
  // Not enough lies behind it: nobody is dropped for nothing.
  EXPECT_FALSE(Put(9, 210, 30));
  EXPECT_EQ(buffer_.held(), 4u);
  EXPECT_FALSE(Put(10, 0, 51));
  EXPECT_EQ(buffer_.held_bytes(), 50u);
}

TEST_F(VictimBufferTest, WhatIsTakenOrRescheduledIsWhereItBelongs) {
  EXPECT_TRUE(Put(1, 110));
  EXPECT_TRUE(Put(2, 120));
  EXPECT_TRUE(Put(3, 130));
  EXPECT_EQ(buffer_.Take(1)->due, 110u);
  EXPECT_FALSE(buffer_.Take(1).has_value());
  buffer_.Reschedule(2, 700);
  buffer_.Reschedule(99, 700);
  EXPECT_THAT(TakeDue(100), ElementsAre(3));
  EXPECT_THAT(TakeDue(100), IsEmpty());
  EXPECT_THAT(TakeDue(700), ElementsAre(2));
  EXPECT_EQ(buffer_.held_bytes(), 0u);
}

TEST_F(VictimBufferTest, LessRoomDropsTheFurthest) {
  for (uint64_t i = 1; i <= 5; ++i) EXPECT_TRUE(Put(i, i * 100));
  buffer_.SetCapacity(25, &dropped_);
  EXPECT_THAT(Keys(dropped_), ElementsAre(5, 4, 3));
  buffer_.SetCapacity(0, &dropped_);
  EXPECT_EQ(buffer_.held(), 0u);
  EXPECT_FALSE(Put(6, 0));
}

TEST_F(VictimBufferTest, NothingIsLostOrCountedTwice) {
  std::mt19937_64 random(7);
  VictimBuffer buffer({.capacity_bytes = 4000, .bucket_span = 64});
  std::map<uint64_t, uint64_t> held;  // key -> bytes
  const auto forget = [&](const std::vector<Entry>& entries) {
    for (const Entry& entry : entries) {
      ASSERT_EQ(held.at(entry.key_head), entry.bytes);
      held.erase(entry.key_head);
    }
  };
  for (uint64_t now = 0; now < 20'000; ++now) {
    const uint64_t key = random() % 300, due = now + random() % 2000;
    std::vector<Entry> dropped;
    if (held.contains(key)) {
      if (random() % 2 != 0) {
        buffer.Reschedule(key, due);
      } else {
        forget({*buffer.Take(key)});
      }
    } else if (const Entry entry{key, 1 + random() % 100, due}; buffer.Put(entry, &dropped)) {
      held[key] = entry.bytes;
      forget(dropped);
    } else {
      EXPECT_THAT(dropped, IsEmpty());
    }
    if (const auto bucket = buffer.TakeDue(now, 0.1, 3)) {
      uint64_t bytes = 0;
      for (const Entry& entry : bucket->entries) bytes += entry.bytes;
      EXPECT_EQ(bytes, bucket->bytes);
      forget(bucket->entries);
    }
    uint64_t bytes = 0;
    for (const auto& [unused, size] : held) bytes += size;
    ASSERT_EQ(buffer.held_bytes(), bytes);
    ASSERT_LE(bytes, 4000u);
    ASSERT_EQ(buffer.held(), held.size());
  }
}

}  // namespace
}  // namespace terrace
