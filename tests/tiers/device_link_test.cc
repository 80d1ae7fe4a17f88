#include "tiers/device_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <vector>

#include "kernels/checksum.h"
#include "kernels/host_device.h"
#include "tests/support/test_loop.h"
#include "tiers/device_tier.h"

namespace terrace {
namespace {

using kernels::CopyDirection;
using testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// An object in host memory: an empty part, a small one, and one of several pieces.
struct Object {
  explicit Object(uint64_t seed, uint64_t large_bytes = 3 * kMiB + 64) {
    parts = {{0, 0}, {0, 4096}, {4096, large_bytes}};
    std::mt19937_64 random(seed);
    bytes.resize(4096 + large_bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    for (const PartSpan& part : parts) {
      crcs.push_back(kernels::Crc32c(bytes.data() + part.offset, part.bytes));
    }
  }
  std::vector<uint8_t> bytes;
  std::vector<PartSpan> parts;
  std::vector<uint32_t> crcs;
};

class DeviceLinkTest : public testing::Test {
 protected:
  void Start(double bytes_per_s) {
    device_ = kernels::NewHostDevice({.capacity_bytes = 32 * kMiB, .bytes_per_s = bytes_per_s});
    auto tier = DeviceTier::Create(device_.get(), 32 * kMiB);
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
    link_ = std::make_unique<DeviceLink>(device_.get(), loop_.post());
  }
  void TearDown() override {
    link_.reset();
    tier_.reset();
  }

  // Its end is appended to `ended_` under this number.
  DeviceLink::Ticket Move(int number, CopyDirection direction, Object& object, const Extent& at,
                          bool demand = true) {
    DeviceMove move;
    move.direction = direction;
    move.host = object.bytes.data();
    move.device = tier_->At(at);
    move.parts = object.parts;
    move.part_crcs = object.crcs;
    move.demand = demand;
    move.progress = [this](uint32_t parts) { progress_.push_back(parts); };
    move.done = [this, number](absl::Status status) {
      ended_.push_back(number);
      status_.Update(status);
    };
    return link_->Start(std::move(move));
  }
  void WaitFor(size_t ends) {
    ASSERT_TRUE(loop_.RunUntil([&] { return ended_.size() >= ends; }));
  }

  TestLoop loop_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<DeviceTier> tier_;
  std::unique_ptr<DeviceLink> link_;
  std::vector<int> ended_;
  std::vector<uint32_t> progress_;
  absl::Status status_;
};

TEST_F(DeviceLinkTest, WhatGoesUpComesBackPartAfterPart) {
  Start(0);
  Object object(1);
  const std::vector<uint8_t> before = object.bytes;
  const Extent at = *tier_->Allocate(object.bytes.size());
  Move(1, CopyDirection::kToDevice, object, at);
  EXPECT_EQ(link_->pending_bytes(CopyDirection::kToDevice), object.bytes.size());
  WaitFor(1);
  EXPECT_TRUE(status_.ok()) << status_;
  ASSERT_FALSE(progress_.empty());
  EXPECT_EQ(progress_.front(), 2u);  // the small parts came with the first piece
  EXPECT_EQ(link_->pending_bytes(CopyDirection::kToDevice), 0u);
  std::fill(object.bytes.begin(), object.bytes.end(), 0);
  Move(2, CopyDirection::kFromDevice, object, at);
  WaitFor(2);
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(object.bytes, before);
}

TEST_F(DeviceLinkTest, WrongBytesAreDataLossBothWays) {
  Start(0);
  Object object(1), other(2);
  const Extent at = *tier_->Allocate(object.bytes.size());
  object.bytes[2 * kMiB] ^= 1;
  Move(1, CopyDirection::kToDevice, object, at);
  WaitFor(1);
  EXPECT_TRUE(absl::IsDataLoss(status_)) << status_;
  EXPECT_THAT(std::string(status_.message()), HasSubstr("part 2"));
  status_ = absl::OkStatus();
  Move(2, CopyDirection::kToDevice, other, at);
  WaitFor(2);
  ASSERT_TRUE(status_.ok());
  Move(3, CopyDirection::kFromDevice, object, at);  // which is not what lies there
  WaitFor(3);
  EXPECT_TRUE(absl::IsDataLoss(status_)) << status_;
  EXPECT_EQ(link_->pending_bytes(CopyDirection::kFromDevice), 0u);
}

TEST_F(DeviceLinkTest, DemandOvertakesAndWhatIsHastenedIsDemand) {
  Start(200.0 * kMiB);
  std::vector<Object> objects;
  std::vector<DeviceLink::Ticket> tickets;
  for (int i = 0; i < 5; ++i) objects.emplace_back(i);
  for (int i = 0; i < 4; ++i) {
    tickets.push_back(Move(i, CopyDirection::kToDevice, objects[i],
                           *tier_->Allocate(objects[i].bytes.size()), false));
  }
  Move(4, CopyDirection::kToDevice, objects[4], *tier_->Allocate(objects[4].bytes.size()));
  link_->Hasten(tickets[3]);
  WaitFor(5);
  EXPECT_TRUE(status_.ok());
  EXPECT_THAT(ended_, testing::ElementsAre(4, 3, 0, 1, 2));
}

TEST_F(DeviceLinkTest, WhatComesToTheSamePlaceWaitsForWhatLeavesIt) {
  Start(100.0 * kMiB);
  Object old_object(1), new_object(2);
  const std::vector<uint8_t> before = old_object.bytes;
  const Extent at = *tier_->Allocate(old_object.bytes.size());
  Move(1, CopyDirection::kToDevice, old_object, at);
  WaitFor(1);
  std::fill(old_object.bytes.begin(), old_object.bytes.end(), 0);
  Move(2, CopyDirection::kFromDevice, old_object, at);
  Move(3, CopyDirection::kToDevice, new_object, at);
  WaitFor(3);
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_THAT(ended_, testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(old_object.bytes, before);
}

TEST_F(DeviceLinkTest, ItsEndWaitsForCopiesAndCallsNobody) {
  Start(100.0 * kMiB);
  Object object(1);
  Move(1, CopyDirection::kToDevice, object, *tier_->Allocate(object.bytes.size()));
  link_.reset();
  loop_.RunUntil([] { return false; }, std::chrono::seconds(0));
  EXPECT_TRUE(ended_.empty());
}

}  // namespace
}  // namespace terrace
