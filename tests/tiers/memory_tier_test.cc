#include "tiers/memory_tier.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kernels/checksum.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"
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
      EXPECT_LE(extent->offset + kMiB, (*tier)->populated_bytes());
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

// From now on the kernel answers ENOMEM to this thread, and threads it starts, when they populate
// exactly `bytes`. Cannot be undone: for a child process.
bool RefuseToPopulate(uint32_t bytes) {
  constexpr auto kLow = [](int argument) {
    return static_cast<uint32_t>(offsetof(seccomp_data, args) + 8 * argument);
  };
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 5),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kLow(2)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_POPULATE_WRITE, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kLow(1)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, bytes, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter = {std::size(program), program};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

// Returns the line that failed, 0 when all is as it should be.
int RunOutOfMemoryAfter16MiB() {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("test"));
  if (!RefuseToPopulate(2 * kMiB)) return __LINE__;
  TestLoop loop;
  auto tier = MemoryTier::Create({"test", 18 * kMiB, 16 * kMiB}, loop.post());
  if (!tier.ok()) return __LINE__;
  // A page inside the piece that will fail, as a piece that fails half way leaves them.
  auto peer = kernels::SharedMemory::Attach(dup((*tier)->fd()), 18 * kMiB, true);
  if (!peer.ok()) return __LINE__;
  peer->data()[17 * kMiB] = 1;

  if (!loop.RunUntil([&] { return !(*tier)->growing(); })) return __LINE__;
  auto extent = (*tier)->Allocate(12 * kMiB);  // leaves less than the headroom: growth starts
  if (!extent.ok() || !(*tier)->growing()) return __LINE__;
  if (!loop.RunUntil([&] { return !(*tier)->growing(); })) return __LINE__;
  if ((*tier)->populated_bytes() != 16 * kMiB) return __LINE__;
  struct stat info;
  if (fstat((*tier)->fd(), &info) != 0) return __LINE__;
  if (info.st_blocks * 512 != static_cast<int64_t>(16 * kMiB)) return __LINE__;

  // What there is goes on working; what is not there is not waited for.
  if (!absl::IsResourceExhausted((*tier)->Allocate(8 * kMiB).status())) return __LINE__;
  if (!absl::IsInvalidArgument((*tier)->Allocate(18 * kMiB).status())) return __LINE__;
  if ((*tier)->growing()) return __LINE__;
  (*tier)->Free(*extent);
  return (*tier)->Allocate(16 * kMiB).ok() ? 0 : __LINE__;
}

TEST(MemoryTierDeathTest, StaysAtWhatThereIsWhenMemoryRunsOut) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        const int line = RunOutOfMemoryAfter16MiB();
        if (line != 0) fprintf(stderr, "failed at line %d\n", line);
        exit(line == 0 ? 0 : 1);
      },
      testing::ExitedWithCode(0), "host tier stays at 16777216 of 18874368 bytes");
}

TEST(MemoryTier, RefusesACapacityItCannotAddress) {
  TestLoop loop;
  for (uint64_t bytes : {uint64_t{0}, uint64_t{5000}, ExtentAllocator::kMaxBytes + 4096}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        MemoryTier::Create({"test", bytes, 8 * kMiB}, loop.post()).status()))
        << bytes;
  }
}

uint64_t MemoryOf(const MemoryTier& tier) {
  struct stat info;
  return fstat(tier.fd(), &info) == 0 ? static_cast<uint64_t>(info.st_blocks) * 512 : 0;
}

// Runs what is posted, and steps of a shrink, until the tier has the size it should have.
bool ShrinkUntil(MemoryTier& tier, TestLoop& loop, absl::FunctionRef<bool()> done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (std::chrono::steady_clock::now() < deadline) {
    tier.Shrink();
    if (loop.RunUntil(done, std::chrono::seconds(0))) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

TEST(MemoryTier, GivesMemoryBackAroundWhatIsInUseAndGrowsOverIt) {
  TestLoop loop;
  MemoryTierOptions options{"test", 64 * kMiB, 8 * kMiB, 96 * kMiB};
  auto created = MemoryTier::Create(options, loop.post());
  ASSERT_TRUE(created.ok()) << created.status();
  MemoryTier& tier = **created;
  EXPECT_EQ(tier.max_capacity_bytes(), 96 * kMiB);
  std::vector<Extent> extents;
  while (extents.size() < 64) {
    auto extent = tier.Allocate(kMiB);
    if (extent.ok()) {
      extents.push_back(*extent);
    } else {
      ASSERT_TRUE(loop.RunUntil([&] { return tier.largest_free_bytes() >= kMiB; }));
    }
  }
  EXPECT_EQ(MemoryOf(tier), 64 * kMiB);
  const Extent stray = extents[50];
  std::memset(tier.At(stray), 0x5a, kMiB);

  ASSERT_TRUE(tier.SetCapacity(16 * kMiB).ok());
  EXPECT_EQ(tier.capacity_bytes(), 16 * kMiB);
  EXPECT_TRUE(absl::IsInvalidArgument(tier.Allocate(17 * kMiB).status()));
  for (const Extent& extent : extents) {
    if (extent.offset != stray.offset) tier.Free(extent);
  }
  ASSERT_TRUE(ShrinkUntil(tier, loop, [&] { return MemoryOf(tier) == 17 * kMiB; }));
  EXPECT_EQ(tier.excess_bytes(), kMiB);
  EXPECT_TRUE(tier.Strays(stray, kMiB));
  for (uint64_t i = 0; i < kMiB; ++i) ASSERT_EQ(tier.At(stray)[i], 0x5a);
  for (int i = 0; i < 16; ++i) {
    auto extent = tier.Allocate(kMiB);
    ASSERT_TRUE(extent.ok());
    ASSERT_LE(extent->offset, 15 * kMiB);
    extents[i] = *extent;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(tier.Allocate(kMiB).status()));

  // Growing again passes over what stayed.
  ASSERT_TRUE(tier.SetCapacity(96 * kMiB).ok());
  int grown = 0;
  while (grown < 79) {
    auto extent = tier.Allocate(kMiB);
    if (!extent.ok()) {
      ASSERT_TRUE(loop.RunUntil([&] { return tier.largest_free_bytes() >= kMiB; })) << grown;
      continue;
    }
    ASSERT_NE(extent->offset, stray.offset);
    ++grown;
  }
  EXPECT_EQ(tier.excess_bytes(), 0u);
  EXPECT_EQ(tier.used_bytes(), 96 * kMiB);
  for (uint64_t i = 0; i < kMiB; ++i) ASSERT_EQ(tier.At(stray)[i], 0x5a);
  EXPECT_TRUE(absl::IsInvalidArgument(tier.SetCapacity(96 * kMiB + 4096)));
  EXPECT_TRUE(absl::IsInvalidArgument(tier.SetCapacity(0)));
  EXPECT_EQ(tier.capacity_bytes(), 96 * kMiB);
}

TEST(MemoryTier, CopiesPartsAndTellsTheirChecksums) {
  TestLoop loop;
  auto tier = MemoryTier::Create({"test", 16 * kMiB, 8 * kMiB}, loop.post());
  ASSERT_TRUE(tier.ok());
  ASSERT_TRUE(loop.RunUntil([&] { return (*tier)->populated_bytes() >= 8 * kMiB; }));
  auto from = (*tier)->Allocate(300000), to = (*tier)->Allocate(300000);
  ASSERT_TRUE(from.ok() && to.ok());
  for (int i = 0; i < 300000; ++i) (*tier)->At(*from)[i] = static_cast<uint8_t>(i * 7 + i / 256);
  std::vector<uint32_t> crcs;
  (*tier)->Copy(*from, *to, {{0, 1000}, {1024, 298000}},
                [&](std::vector<uint32_t> part_crcs) { crcs = std::move(part_crcs); });
  ASSERT_TRUE(loop.RunUntil([&] { return !crcs.empty(); }));
  ASSERT_EQ(crcs.size(), 2u);
  EXPECT_EQ(crcs[0], kernels::Crc32c((*tier)->At(*from), 1000));
  EXPECT_EQ(crcs[1], kernels::Crc32c((*tier)->At(*from) + 1024, 298000));
  EXPECT_EQ(std::memcmp((*tier)->At(*to) + 1024, (*tier)->At(*from) + 1024, 298000), 0);
}

// Stores, frees and capacities at random, with every byte of what is in use checked.
TEST(MemoryTier, NothingInUseChangesWhileTheCapacityDoes) {
  TestLoop loop;
  std::mt19937_64 random(7);
  auto created =
      MemoryTier::Create(MemoryTierOptions{"test", 32 * kMiB, 4 * kMiB, 64 * kMiB}, loop.post());
  ASSERT_TRUE(created.ok());
  MemoryTier& tier = **created;
  struct Stored {
    Extent extent;
    uint64_t bytes;
    uint64_t seed;
  };
  std::vector<Stored> live;
  const auto words = [&](const Stored& stored) {
    return reinterpret_cast<uint64_t*>(tier.At(stored.extent));
  };
  const auto check = [&](const Stored& stored) {
    for (uint64_t i = 0; i < stored.bytes / 8; ++i) {
      if (words(stored)[i] != stored.seed * (i + 1)) return false;
    }
    return true;
  };
  for (int step = 0; step < 6000; ++step) {
    if (step % 60 == 0) {
      ASSERT_TRUE(tier.SetCapacity((1 + random() % 16) * 4 * kMiB).ok());
    }
    tier.Shrink();
    loop.RunUntil([] { return false; }, std::chrono::seconds(0));
    if (live.empty() || random() % 3 > 0) {
      Stored stored{{}, (1 + random() % 128) * 4096, random()};
      if (auto extent = tier.Allocate(stored.bytes); extent.ok()) {
        stored.extent = *extent;
        for (uint64_t i = 0; i < stored.bytes / 8; ++i) words(stored)[i] = stored.seed * (i + 1);
        live.push_back(stored);
        continue;
      }
    }
    if (live.empty()) continue;
    std::swap(live[random() % live.size()], live.back());
    ASSERT_TRUE(check(live.back())) << step;
    tier.Free(live.back().extent);
    live.pop_back();
  }
  for (const Stored& stored : live) ASSERT_TRUE(check(stored));
  for (const Stored& stored : live) tier.Free(stored.extent);
  ASSERT_TRUE(tier.SetCapacity(4 * kMiB).ok());
  EXPECT_TRUE(ShrinkUntil(tier, loop, [&] { return MemoryOf(tier) <= 4 * kMiB; }))
      << MemoryOf(tier);
  EXPECT_EQ(tier.excess_bytes(), 0u);
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
