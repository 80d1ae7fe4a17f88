#include "config/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A private tree standing in for /proc and /sys.
class Machine : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "machine_test." + std::to_string(getpid());
    Write("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(Machine, WithoutACgroupItIsTheMachinesMemory) {
  EXPECT_EQ(*MemoryLimitBytes(root_), 16 * kGiB);
}

TEST_F(Machine, TheTightestCgroup2AncestorCounts) {
  Write("/proc/self/cgroup", "0::/outer/inner\n");
  Write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  EXPECT_EQ(*MemoryLimitBytes(root_), 16 * kGiB);
  Write("/sys/fs/cgroup/outer/memory.max", "4294967296\n");
  EXPECT_EQ(*MemoryLimitBytes(root_), 4 * kGiB);
  Write("/sys/fs/cgroup/outer/inner/memory.max", "1073741824\n");
  EXPECT_EQ(*MemoryLimitBytes(root_), kGiB);
}

TEST_F(Machine, InsideAContainerTheMountIsTheGroup) {
  Write("/proc/self/cgroup", "0::/host/path/not/visible/here\n");
  Write("/sys/fs/cgroup/memory.max", "2147483648\n");
  EXPECT_EQ(*MemoryLimitBytes(root_), 2 * kGiB);
}

TEST_F(Machine, Cgroup1IsReadThroughItsMemoryController) {
  Write("/proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n");
  Write("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "3221225472\n");
  EXPECT_EQ(*MemoryLimitBytes(root_), 3 * kGiB);
}

TEST_F(Machine, ALimitAboveTheMachineIsNoLimit) {
  Write("/proc/self/cgroup", "4:memory:/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(*MemoryLimitBytes(root_), 16 * kGiB);
}

TEST_F(Machine, NoMemoryInformationIsAnError) {
  EXPECT_EQ(MemoryLimitBytes(root_ + "/nowhere").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(Machine, SpaceIsThatOfTheNearestExistingAncestor) {
  EXPECT_GT(*SpaceForDirectoryBytes(root_ + "/not/yet/there"), 0u);
  EXPECT_FALSE(SpaceForDirectoryBytes(root_ + "/proc/meminfo/below-a-file").ok());
}

// What the tier holds counts as space it may have: a restart must not shrink the tier. Other
// processes use the same file system, so only the sign of the difference is checked.
TEST_F(Machine, WhatTheDirectoryHoldsCounts) {
  constexpr size_t kHeldBytes = 8 << 20;
  fs::create_directories(root_ + "/held");
  const std::string payload(kHeldBytes, 'x');
  Write("/held/segment", payload);
  sync();
  const uint64_t with = *SpaceForDirectoryBytes(root_ + "/held");
  fs::create_directories(root_ + "/empty");
  const uint64_t without = *SpaceForDirectoryBytes(root_ + "/empty");
  EXPECT_GT(with, without);
}

}  // namespace
}  // namespace terrace
