// What a store gives back after a restart: everything durable when the files are whole, misses and
// never wrong bytes when they are not.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>

#include "tests/tiers/nvme/nvme_fixture.h"
#include "tiers/nvme/record.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBlock = nvme::kBlockBytes;

class RecoveryTest : public NvmeTierTest {
 protected:
  // Some objects in one segment, durable, and the tier closed.
  void StoreAndClose(int count) {
    Open();
    for (int i = 0; i < count; ++i) {
      objects_.push_back(MakeObject(i + 1, 4, 50'000));
      MustWrite(objects_.back());
    }
    tier_.reset();
  }

  // Where the record of an object begins in the only segment.
  uint64_t OffsetOf(size_t index) const {
    return kBlock + index * nvme::RecordBytes(objects_[index].meta.payload_bytes);
  }

  void Overwrite(const std::filesystem::path& path, uint64_t offset, uint64_t bytes) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    std::string text(bytes, '\0');
    file.read(text.data(), static_cast<std::streamsize>(bytes));
    for (char& c : text) c = static_cast<char>(c ^ 0x5a);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(text.data(), static_cast<std::streamsize>(bytes));
    ASSERT_TRUE(file.good());
  }

  // All but `lost` are there, whole.
  void ExpectAllBut(std::vector<size_t> lost) {
    for (size_t i = 0; i < objects_.size(); ++i) {
      const RecordId id = IdOf(objects_[i].meta.key);
      if (std::find(lost.begin(), lost.end(), i) == lost.end()) {
        ASSERT_NE(id, kNoRecord) << i;
        ExpectStored(id, objects_[i]);
      } else {
        EXPECT_EQ(id, kNoRecord) << i;
      }
    }
  }

  absl::Status OpenStatus() { return NvmeTier::Open(options_, loop_.post()).status(); }

  std::vector<TestObject> objects_;
};

TEST_F(RecoveryTest, EveryFieldComesBack) {
  StoreAndClose(3);
  Open();
  ExpectAllBut({});
  const auto records = Records();
  ASSERT_EQ(records.size(), 3u);
  for (const auto& [id, meta] : records) {
    const RecordMeta& stored = objects_[meta.cost_us - 1].meta;
    EXPECT_EQ(meta.key, stored.key);
    EXPECT_EQ(meta.parent, stored.parent);
    EXPECT_EQ(meta.fingerprint, stored.fingerprint);
    EXPECT_EQ(meta.kind, stored.kind);
    EXPECT_EQ(meta.tenant_id, stored.tenant_id);
    EXPECT_EQ(meta.token_count, stored.token_count);
    EXPECT_EQ(meta.grain_count, stored.grain_count);
    EXPECT_EQ(meta.payload_bytes, stored.payload_bytes);
    EXPECT_EQ(meta.grain_filters, stored.grain_filters);
  }
  // And a store that was reopened goes on.
  objects_.push_back(MakeObject(9, 2, 9000));
  MustWrite(objects_.back());
  Reopen();
  ExpectAllBut({});
}

TEST_F(RecoveryTest, ALostIndexIsRebuiltFromTheSegments) {
  StoreAndClose(5);
  std::filesystem::remove_all(options_.directory + "/index");
  Open();
  ExpectAllBut({});
  EXPECT_EQ(tier_->Stats().corrupt_records, 0u);
}

TEST_F(RecoveryTest, ADamagedIndexIsMovedAsideAndRebuilt) {
  StoreAndClose(5);
  for (const auto& entry : std::filesystem::directory_iterator(options_.directory + "/index")) {
    if (entry.path().filename().string().starts_with("MANIFEST")) Overwrite(entry.path(), 0, 32);
  }
  Open();
  ExpectAllBut({});
  EXPECT_TRUE(std::filesystem::exists(options_.directory + "/index.corrupt-1"));
}

TEST_F(RecoveryTest, FlippedPayloadIsAMissAndCounted) {
  StoreAndClose(4);
  Overwrite(SegmentFiles()[0], OffsetOf(2) + kBlock + 70'000, 1);
  Open();
  const RecordId damaged = IdOf(objects_[2].meta.key);
  ASSERT_NE(damaged, kNoRecord);
  ReadResult read = Read(damaged, objects_[2].meta);
  EXPECT_TRUE(absl::IsDataLoss(read.meta.status())) << read.meta.status();
  EXPECT_THAT(std::string(read.meta.status().message()), HasSubstr("checksum of part 2"));
  EXPECT_EQ(tier_->Stats().corrupt_records, 1u);
  ExpectAllBut({2});
  Reopen();
  ExpectAllBut({2});
}

TEST_F(RecoveryTest, FlippedHeaderIsAMiss) {
  StoreAndClose(4);
  Overwrite(SegmentFiles()[0], OffsetOf(1) + 60, 1);
  Open();
  ReadResult read = Read(IdOf(objects_[1].meta.key), objects_[1].meta);
  EXPECT_TRUE(absl::IsDataLoss(read.meta.status())) << read.meta.status();
  ExpectAllBut({1});
  // The same without an index: nothing names it.
  tier_.reset();
  std::filesystem::remove_all(options_.directory + "/index");
  Open();
  ExpectAllBut({1});
}

TEST_F(RecoveryTest, ADamagedSegmentHeaderLosesNothing) {
  StoreAndClose(4);
  Overwrite(SegmentFiles()[0], 0, 64);
  Open();
  ExpectAllBut({});
  tier_.reset();
  std::filesystem::remove_all(options_.directory + "/index");
  Open();
  ExpectAllBut({});
}

TEST_F(RecoveryTest, ATruncatedSegmentLosesItsTailOnly) {
  StoreAndClose(4);
  std::filesystem::resize_file(SegmentFiles()[0], OffsetOf(3) + 2 * kBlock);
  Open();
  ExpectAllBut({3});
  EXPECT_EQ(tier_->Stats().corrupt_records, 1u);
}

TEST_F(RecoveryTest, AMissingSegmentLosesItsRecordsOnly) {
  StoreAndClose(4);
  Open();  // earlier segments are not appended to: this record gets a file of its own
  objects_.push_back(MakeObject(77, 2, 9000));
  MustWrite(objects_.back());
  tier_.reset();
  auto files = SegmentFiles();
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 2u);
  std::filesystem::remove(files[0]);
  Open();
  ExpectAllBut({0, 1, 2, 3});
  EXPECT_EQ(tier_->Stats().corrupt_records, 4u);
}

TEST_F(RecoveryTest, ATornTailIsNotVisible) {
  StoreAndClose(3);
  // What a power cut leaves of a write that was never acknowledged: a header and half a payload.
  std::filesystem::remove_all(options_.directory + "/index");
  std::filesystem::resize_file(SegmentFiles()[0], OffsetOf(2) + kBlock + 100 * 1024);
  Open();
  ExpectAllBut({2});
}

TEST_F(RecoveryTest, OtherFilesAreLeftAlone) {
  StoreAndClose(2);
  const std::string stranger = options_.directory + "/segments/notes.txt";
  std::ofstream(stranger) << "mine";
  Open();
  ExpectAllBut({});
  EXPECT_TRUE(std::filesystem::exists(stranger));
}

TEST_F(RecoveryTest, ADamagedOrLaterSuperblockIsRefusedAndNothingChanges) {
  StoreAndClose(2);
  const std::string path = options_.directory + "/superblock";
  const auto copy = path + ".copy";
  std::filesystem::copy_file(path, copy);
  Overwrite(path, 20, 1);
  absl::Status status = OpenStatus();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("superblock: checksum"));

  std::filesystem::copy_file(copy, path, std::filesystem::copy_options::overwrite_existing);
  Overwrite(path, 8, 1);
  status = OpenStatus();
  EXPECT_THAT(std::string(status.message()), HasSubstr("format version"));

  std::filesystem::remove(path);
  status = OpenStatus();
  EXPECT_THAT(std::string(status.message()), HasSubstr("no superblock"));

  std::filesystem::rename(copy, path);
  Open();
  ExpectAllBut({});
}

TEST_F(RecoveryTest, AStoreInUseIsRefusedByName) {
  Open();
  const absl::Status status = OpenStatus();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr(options_.directory), HasSubstr(std::to_string(getpid()))));
}

TEST_F(RecoveryTest, ADirectoryThatCannotBeUsedIsNamed) {
  options_.directory = "/proc/terrace-nvme";
  const absl::Status status = OpenStatus();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/proc/terrace-nvme"));
}

TEST_F(RecoveryTest, PinsAreRemembered) {
  StoreAndClose(3);
  Open();
  tier_->SetPinned(IdOf(objects_[1].meta.key), true);
  Reopen();
  for (const auto& [id, meta] : Records()) {
    EXPECT_EQ(meta.flags, meta.key == objects_[1].meta.key ? 1 : 0);
  }
  ExpectAllBut({});
  tier_->SetPinned(IdOf(objects_[1].meta.key), false);
  Reopen();
  for (const auto& [id, meta] : Records()) EXPECT_EQ(meta.flags, 0);
}

TEST_F(RecoveryTest, AFullDiskRefusesWritesAndGoesOnReading) {
  Open();
  objects_.push_back(MakeObject(1, 4, 50'000));
  const RecordId id = MustWrite(objects_[0]);
  // No file may grow beyond 1 MiB from here on: what a full disk looks like to a new segment.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  absl::Status refused;
  for (int i = 2; i < 40 && refused.ok(); ++i) {
    refused = Write(MakeObject(i, 4, 50'000)).status();
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(tier_->Stats().health, HasSubstr("read-only"));
  ExpectStored(id, objects_[0]);
  Reopen();
  ExpectStored(IdOf(objects_[0].meta.key), objects_[0]);
}

}  // namespace
}  // namespace terrace
