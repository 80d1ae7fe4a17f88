#include "kernels/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace terrace::kernels {
namespace {

TEST(SharedMemory, TwoMappingsShareBytes) {
  auto owner = SharedMemory::Create("test", 1 << 20);
  ASSERT_TRUE(owner.ok()) << owner.status();
  ASSERT_TRUE(owner->Populate(0, 1 << 20).ok());
  auto peer = SharedMemory::Attach(dup(owner->fd()), 1 << 20, true);
  ASSERT_TRUE(peer.ok()) << peer.status();
  PrefaultRead(peer->data(), 1 << 20);
  peer->data()[12345] = 42;
  EXPECT_EQ(owner->data()[12345], 42);
  ASSERT_TRUE(owner->Discard(0, 1 << 20).ok());
  EXPECT_EQ(peer->data()[12345], 0);
}

TEST(SharedMemory, RefusesWhatCouldRaiseSigbus) {
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(unsealed, 4096), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(SharedMemory::Attach(unsealed, 4096, true).status()));

  auto owner = SharedMemory::Create("test", 4096);
  ASSERT_TRUE(owner.ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition(SharedMemory::Attach(dup(owner->fd()), 8192, true).status()));

  const int not_memory = open("/dev/null", O_RDWR | O_CLOEXEC);
  EXPECT_TRUE(absl::IsFailedPrecondition(SharedMemory::Attach(not_memory, 4096, true).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SharedMemory::Create("test", 4095).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SharedMemory::Create("test", 0).status()));
}

TEST(SharedMemory, APageSealedAgainstFutureWritesCanOnlyBeRead) {
  auto owner = SharedMemory::Create("test", 4096);
  ASSERT_TRUE(owner.ok());
  ASSERT_TRUE(owner->SealFutureWrites().ok());
  EXPECT_FALSE(SharedMemory::Attach(dup(owner->fd()), 4096, true).ok());
  auto reader = SharedMemory::Attach(dup(owner->fd()), 4096, false);
  ASSERT_TRUE(reader.ok()) << reader.status();
  owner->data()[7] = 9;  // the creator's own mapping stays writable
  EXPECT_EQ(reader->data()[7], 9);
}

uint64_t AllocatedBytes(const SharedMemory& memory) {
  struct stat info;
  EXPECT_EQ(fstat(memory.fd(), &info), 0);
  return info.st_blocks * 512;
}

TEST(SharedMemory, PopulateTakesExactlyItsRangeAndDiscardGivesItBack) {
  auto memory = SharedMemory::Create("test", 1 << 20);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(AllocatedBytes(*memory), 0u);
  ASSERT_TRUE(memory->Populate(0, 1 << 20).ok());
  EXPECT_EQ(AllocatedBytes(*memory), 1u << 20);
  memory->data()[5000] = 1;
  ASSERT_TRUE(memory->Populate(0, 1 << 20).ok());  // again: the bytes stay
  EXPECT_EQ(memory->data()[5000], 1);
  ASSERT_TRUE(memory->Discard(4096, 8192).ok());
  EXPECT_EQ(AllocatedBytes(*memory), (1u << 20) - 4096);
  EXPECT_EQ(memory->data()[5000], 0);
}

TEST(SharedMemory, HugePagesNeverExceedWhatIsPopulated) {
  constexpr uint64_t kBytes = 8 << 20;
  auto memory = SharedMemory::Create("test", kBytes);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(memory->HugePageBytes(), 0u);  // nothing is populated
  ASSERT_TRUE(memory->Populate(0, kBytes).ok());
  EXPECT_LE(memory->HugePageBytes(), kBytes);
  EXPECT_EQ(memory->HugePageBytes() % (2 << 20), 0u);
}

}  // namespace
}  // namespace terrace::kernels
