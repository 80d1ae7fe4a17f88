#include "kernels/host_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace terrace::kernels {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<uint8_t> RandomBytes(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> out(bytes);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(random());
  return out;
}

void Expect(Device& device, CopyDirection direction, std::vector<DeviceCopy> copies) {
  device.Copy(direction, copies, [](absl::Status status) { EXPECT_TRUE(status.ok()) << status; });
}

TEST(HostDevice, BytesGoUpAndComeBack) {
  const auto device = NewHostDevice({.capacity_bytes = 1 << 20});
  const auto memory = device->Allocate(300'000);
  ASSERT_TRUE(memory.ok()) << memory.status();
  std::vector<uint8_t> out = RandomBytes(300'000, 1), back(300'000);
  // Three runs up out of order, in one transfer; back in two.
  Expect(*device, CopyDirection::kToDevice,
         {{out.data() + 200'000, *memory + 200'000, 100'000},
          {out.data(), *memory, 4096},
          {out.data() + 4096, *memory + 4096, 195'904}});
  device->Synchronize();
  Expect(*device, CopyDirection::kFromDevice, {{back.data() + 7, *memory + 7, 299'993}});
  Expect(*device, CopyDirection::kFromDevice, {{back.data(), *memory, 7}});
  device->Synchronize();
  EXPECT_EQ(back, out);
}

TEST(HostDevice, ADirectionKeepsItsOrder) {
  const auto device = NewHostDevice({.capacity_bytes = 1 << 20, .latency_us = 100});
  const auto memory = device->Allocate(4096);
  ASSERT_TRUE(memory.ok());
  std::vector<uint8_t> bytes(4096);
  std::vector<int> order;  // written on one thread, read behind Synchronize
  for (int i = 0; i < 5; ++i) {
    const DeviceCopy copy{bytes.data(), *memory, 4096};
    device->Copy(CopyDirection::kToDevice, {&copy, 1},
                 [&order, i](absl::Status) { order.push_back(i); });
  }
  device->Synchronize();
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3, 4));
}

TEST(HostDevice, TheThrottleIsNeverFasterThanItSays) {
  constexpr uint64_t kBytes = 1 << 20;
  const auto device =
      NewHostDevice({.capacity_bytes = kBytes, .bytes_per_s = 100.0 * kBytes, .latency_us = 1000});
  const auto memory = device->Allocate(kBytes);
  ASSERT_TRUE(memory.ok());
  std::vector<uint8_t> bytes(kBytes), other(kBytes);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) {
    Expect(*device, CopyDirection::kToDevice, {{bytes.data(), *memory, kBytes}});
  }
  device->Synchronize();
  // Five of 10 ms and a latency of 1 ms each.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(55));
}

TEST(HostDevice, MemoryIsWhatItIsSaidToBe) {
  const auto device = NewHostDevice({.capacity_bytes = 10'000});
  EXPECT_EQ(device->capacity_bytes(), 10'000u);
  EXPECT_EQ(device->Allocate(0).status().code(), absl::StatusCode::kInvalidArgument);
  const auto first = device->Allocate(6'000);
  ASSERT_TRUE(first.ok());
  const auto second = device->Allocate(6'000);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("4000 of 10000 are free"));
  device->Free(*first);
  const auto third = device->Allocate(10'000);
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(*third % 4096, 0u);
}

TEST(HostDevice, WhatIsNotAllocatedIsNotTouched) {
  const auto device = NewHostDevice({.capacity_bytes = 1 << 20});
  const auto memory = device->Allocate(4096);
  ASSERT_TRUE(memory.ok());
  std::vector<uint8_t> ones(4096, 1), twos(4096, 2), back(4096);
  Expect(*device, CopyDirection::kToDevice, {{ones.data(), *memory, 4096}});
  for (const DeviceCopy& wrong :
       {DeviceCopy{twos.data(), *memory + 1, 4096}, DeviceCopy{twos.data(), *memory - 1, 1},
        DeviceCopy{twos.data(), 0, 1}, DeviceCopy{twos.data(), *memory, ~uint64_t{0}}}) {
    const std::vector<DeviceCopy> copies = {{twos.data(), *memory, 4096}, wrong};
    std::atomic<int> refused = 0;
    device->Copy(CopyDirection::kToDevice, copies, [&refused](absl::Status status) {
      refused += status.code() == absl::StatusCode::kInvalidArgument ? 1 : 0;
    });
    device->Synchronize();
    EXPECT_EQ(refused, 1);
  }
  Expect(*device, CopyDirection::kFromDevice, {{back.data(), *memory, 4096}});
  device->Synchronize();
  EXPECT_EQ(back, ones);
}

TEST(HostDevice, EndsWithItsCopiesDone) {
  std::atomic<int> done = 0;
  std::vector<uint8_t> up(4096), down(4096);  // the two directions run side by side
  {
    const auto device = NewHostDevice({.capacity_bytes = 8192, .latency_us = 500});
    const auto written = device->Allocate(4096), read = device->Allocate(4096);
    ASSERT_TRUE(written.ok() && read.ok());
    const DeviceCopy to{up.data(), *written, 4096}, from{down.data(), *read, 4096};
    const auto count = [&done](absl::Status status) { done += status.ok() ? 1 : 0; };
    for (int i = 0; i < 4; ++i) {
      device->Copy(CopyDirection::kToDevice, {&to, 1}, count);
      device->Copy(CopyDirection::kFromDevice, {&from, 1}, count);
    }
  }
  EXPECT_EQ(done, 8);
}

}  // namespace
}  // namespace terrace::kernels
