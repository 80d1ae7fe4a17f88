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
#include "tiers/nvme/record_check.h"

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
    const RecordMeta& meta = objects_[index].meta;
    return kBlock +
           index * (nvme::HeaderBytes(meta.part_ends) + AlignUp(meta.payload_bytes, kBlock));
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

  // What a power cut leaves of a write that nobody was told of: a header and half of the payload.
  void WriteTornRecord(size_t index) {
    std::fstream file(SegmentFiles()[0], std::ios::in | std::ios::out | std::ios::binary);
    std::vector<uint8_t> block(kBlock);
    file.seekg(static_cast<std::streamoff>(OffsetOf(0)));
    file.read(reinterpret_cast<char*>(block.data()), kBlock);
    absl::StatusOr<nvme::RecordHeader> header = nvme::DecodeRecordHeader(block);
    ASSERT_TRUE(header.ok()) << header.status();
    header->sequence += index;
    header->piece_crcs.clear();
    header->meta = objects_[index].meta;
    nvme::RecordWrite record(*header, absl::MakeSpan(block), objects_[index].payload.data());
    ASSERT_TRUE(record.Advance(header->meta.payload_bytes).ok());
    file.seekp(static_cast<std::streamoff>(OffsetOf(index)));
    file.write(reinterpret_cast<const char*>(block.data()), kBlock);
    file.write(reinterpret_cast<const char*>(objects_[index].payload.data()),
               static_cast<std::streamsize>(objects_[index].meta.payload_bytes / 2));
    ASSERT_TRUE(file.good());
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

// Damages the files of the index that have the parameter in their name.
class DamagedIndexTest : public RecoveryTest, public testing::WithParamInterface<const char*> {};

TEST_P(DamagedIndexTest, IsMovedAsideAndRebuilt) {
  StoreAndClose(5);
  Open();  // moves the rows from the log into a table
  tier_.reset();
  int damaged = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options_.directory + "/index")) {
    if (entry.path().filename().string().find(GetParam()) == std::string::npos) continue;
    Overwrite(entry.path(), 0, std::min<uint64_t>(32, entry.file_size()));
    ++damaged;
  }
  ASSERT_GT(damaged, 0);
  Open();
  ExpectAllBut({});
  EXPECT_EQ(tier_->Stats().corrupt_records, 0u);
  EXPECT_TRUE(std::filesystem::exists(options_.directory + "/index.corrupt-1"));
  // The rebuilt one is complete: no second rebuild.
  Reopen();
  ExpectAllBut({});
  EXPECT_FALSE(std::filesystem::exists(options_.directory + "/index.corrupt-2"));
}

INSTANTIATE_TEST_SUITE_P(Files, DamagedIndexTest, testing::Values("CURRENT", "MANIFEST", ".sst"),
                         [](const auto& file) {
                           std::string name = file.param;
                           std::erase(name, '.');
                           return name;
                         });

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
  EXPECT_EQ(tier_->Stats().lost_records, 1u);
  EXPECT_THAT(tier_->lost(), testing::ElementsAre(objects_[3].meta.key));
  // And nothing that is written next runs into what is left of it.
  objects_.push_back(MakeObject(77, 2, 9000));
  MustWrite(objects_.back());
  Reopen();
  ExpectAllBut({3});
}

TEST_F(RecoveryTest, AMissingSegmentLosesItsRecordsOnly) {
  StoreAndClose(4);
  Open();
  objects_.push_back(MakeObject(77, 3, 1300 * kKiB));  // does not fit behind them
  MustWrite(objects_.back());
  tier_.reset();
  auto files = SegmentFiles();
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 2u);
  std::filesystem::remove(files[0]);
  Open();
  ExpectAllBut({0, 1, 2, 3});
  EXPECT_EQ(tier_->Stats().lost_records, 4u);
  EXPECT_EQ(tier_->lost().size(), 4u);
}

TEST_F(RecoveryTest, ATornTailIsNotVisible) {
  StoreAndClose(3);
  // What a power cut leaves of a file that did not keep its length.
  std::filesystem::remove_all(options_.directory + "/index");
  std::filesystem::resize_file(SegmentFiles()[0], OffsetOf(2) + kBlock + 100 * 1024);
  Open();
  ExpectAllBut({2});
}

TEST_F(RecoveryTest, AWriteThatWasNeverAcknowledgedIsNotVisible) {
  StoreAndClose(2);
  objects_.push_back(MakeObject(3, 4, 50'000));
  WriteTornRecord(2);
  Open();
  ExpectAllBut({2});
  EXPECT_EQ(tier_->Stats().corrupt_records, 0u);
}

TEST_F(RecoveryTest, WithoutAnIndexATornRecordIsNotVisibleEither) {
  StoreAndClose(2);
  objects_.push_back(MakeObject(3, 4, 50'000));
  WriteTornRecord(2);
  std::filesystem::remove_all(options_.directory + "/index");
  Open();
  EXPECT_EQ(tier_->Stats().torn_records, 1u);
  ExpectAllBut({2});
  // Its place is used again.
  MustWrite(objects_[2]);
  Reopen();
  ExpectAllBut({});
}

// Of a file that was used again, what still lies behind the new records is whole and yet forgotten,
// even when the index and the file's header are lost.
// Killed while it stopped: rows of open segments are written, and the superblock does not say so.
// Killed again when the segment was sealed, before its row was written. Then stopped in order.
TEST_F(RecoveryTest, RowsOfAStopThatDidNotEndAreNotBelievedLater) {
  namespace fs = std::filesystem;
  StoreAndClose(3);
  const fs::path directory = options_.directory, aside = scratch_.path() + "/aside";
  fs::create_directory(aside);
  fs::copy(directory / "index", aside / "index");
  Open();
  for (const char* name : {"superblock", "superblock.copy"}) {
    fs::copy_file(directory / name, aside / name);
  }
  while (tier_->Stats().sealed_segments == 0) {
    objects_.push_back(MakeObject(objects_.size() + 1, 4, 50'000));
    MustWrite(objects_.back());
  }
  tier_.reset();
  fs::remove_all(directory / "index");
  fs::copy(aside, directory, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  Open();
  Reopen();
  ExpectAllBut({});
}

TEST_F(RecoveryTest, RecordsOfAnEarlierGenerationStayForgotten) {
  options_.capacity_bytes = 2 * options_.segment_bytes;
  Open();
  for (uint64_t seed : {101, 102}) Erase(MustWrite(MakeObject(seed, 3, 500 * kKiB)));
  const auto first_file = SegmentFiles()[0];
  objects_.push_back(MakeObject(1, 6, 500 * kKiB));  // does not fit behind them
  objects_.push_back(MakeObject(2, 6, 200 * kKiB));  // nor this behind that: the first file again
  for (const TestObject& object : objects_) MustWrite(object);
  tier_.reset();
  ASSERT_EQ(SegmentFiles().size(), 2u);
  Overwrite(first_file, 0, 64);
  std::filesystem::remove_all(options_.directory + "/index");
  Open();
  EXPECT_EQ(Records().size(), objects_.size());
  EXPECT_EQ(tier_->Stats().corrupt_records, 0u);
  ExpectAllBut({});
}

// The disk lost the header that began a generation, and kept the records and rows that followed.
TEST_F(RecoveryTest, AHeaderOlderThanItsRowIsNotBelieved) {
  options_.capacity_bytes = 2 * options_.segment_bytes;
  Open();
  for (uint64_t seed : {101, 102}) Erase(MustWrite(MakeObject(seed, 3, 500 * kKiB)));
  const auto first_file = SegmentFiles()[0];
  std::vector<char> header(kBlock);
  std::ifstream(first_file).read(header.data(), kBlock);
  objects_.push_back(MakeObject(1, 6, 500 * kKiB));  // does not fit behind them
  objects_.push_back(MakeObject(2, 6, 200 * kKiB));  // nor this behind that: the first file again
  for (const TestObject& object : objects_) MustWrite(object);
  tier_.reset();
  std::fstream(first_file, std::ios::in | std::ios::out).write(header.data(), kBlock);
  for (int start = 0; start < 2; ++start) {
    Reopen();
    EXPECT_EQ(Records().size(), objects_.size());
    ExpectAllBut({});
  }
}

TEST_F(RecoveryTest, OtherFilesAreLeftAlone) {
  StoreAndClose(2);
  const std::string stranger = options_.directory + "/segments/notes.txt";
  std::ofstream(stranger) << "mine";
  Open();
  ExpectAllBut({});
  EXPECT_TRUE(std::filesystem::exists(stranger));
}

TEST_F(RecoveryTest, OneSuperblockIsEnough) {
  StoreAndClose(2);
  const std::string path = options_.directory + "/superblock";
  for (const std::string& copy : {path, path + ".copy"}) {
    Overwrite(copy, 20, 1);
    Reopen();
    ExpectAllBut({});
    tier_.reset();
    std::filesystem::remove(copy);
    Reopen();
    ExpectAllBut({});
    tier_.reset();
  }
}

TEST_F(RecoveryTest, WithoutSuperblocksTheSegmentsSayWhoseTheyAre) {
  StoreAndClose(2);
  const std::string path = options_.directory + "/superblock";
  Overwrite(path, 20, 1);
  std::filesystem::remove(path + ".copy");
  Open();
  ExpectAllBut({});
  Reopen();
  ExpectAllBut({});
}

// A superblock of another store loses to what the segments say, and the other way round segments
// of another store are left alone.
TEST_F(RecoveryTest, WhatIsOfAnotherStoreIsNotTouched) {
  StoreAndClose(2);
  const std::string mine = options_.directory;
  options_.directory = scratch_.path() + "/other";
  Open();
  const TestObject stranger = MakeObject(50, 2, 9000);
  MustWrite(stranger);
  tier_.reset();
  const auto overwrite = std::filesystem::copy_options::overwrite_existing;
  std::filesystem::copy_file(options_.directory + "/superblock", mine + "/superblock", overwrite);
  const std::string foreign = mine + "/segments/seg-00000099.tseg";
  std::filesystem::copy_file(SegmentFiles()[0], foreign);
  options_.directory = mine;
  Open();
  ExpectAllBut({});
  EXPECT_EQ(IdOf(stranger.meta.key), kNoRecord);
  for (uint64_t seed = 100; seed < 130; ++seed) MustWrite(MakeObject(seed, 3, kMiB));
  EXPECT_LE(tier_->Stats().used_bytes, options_.capacity_bytes);
  tier_.reset();
  EXPECT_TRUE(std::filesystem::exists(foreign));
}

TEST_F(RecoveryTest, ALaterVersionIsRefusedAndNothingChanges) {
  StoreAndClose(2);
  const std::string path = options_.directory + "/superblock";
  const auto before = path + ".before";
  std::filesystem::copy_file(path, before);
  Overwrite(path, 8, 1);
  const absl::Status status = OpenStatus();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("format version"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("Nothing was changed"));
  std::filesystem::rename(before, path);
  Open();
  ExpectAllBut({});
}

TEST_F(RecoveryTest, SegmentsThatNobodyOwnsAreRefused) {
  StoreAndClose(2);
  std::filesystem::remove(options_.directory + "/superblock");
  std::filesystem::remove(options_.directory + "/superblock.copy");
  Overwrite(SegmentFiles()[0], 0, 64);
  const absl::Status status = OpenStatus();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no segment says whose it is"));
}

TEST_F(RecoveryTest, AStoreInUseIsRefusedByName) {
  Open();
  const absl::Status status = OpenStatus();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr(options_.directory), HasSubstr(std::to_string(getpid()))));
}

TEST_F(RecoveryTest, ADirectoryThatCannotBeUsedIsNamed) {
  const std::string file = scratch_.path() + "/a-file";
  std::ofstream(file) << "not a directory";
  for (const std::string& directory : {std::string("/proc/terrace-nvme"), file, file + "/nvme"}) {
    options_.directory = directory;
    const absl::Status status = OpenStatus();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(directory));
  }
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

TEST_F(RecoveryTest, WhatIsPinnedIsNotReclaimedAfterARestartEither) {
  options_.capacity_bytes = 4 * options_.segment_bytes;
  Open();
  objects_.push_back(MakeObject(1, 3, kMiB));
  tier_->SetPinned(MustWrite(objects_[0]), true);
  const auto overwrite = [&] {
    for (uint64_t seed = 100; seed < 110; ++seed) MustWrite(MakeObject(seed, 3, kMiB));
  };
  overwrite();
  ExpectAllBut({});
  Reopen();
  overwrite();
  ExpectAllBut({});
  tier_->SetPinned(IdOf(objects_[0].meta.key), false);
  overwrite();
  ExpectAllBut({0});
}

TEST_F(RecoveryTest, WhenAllIsPinnedWritesAreRefusedAndCounted) {
  options_.capacity_bytes = 2 * options_.segment_bytes;
  Open();
  for (uint64_t seed : {1, 2}) {
    objects_.push_back(MakeObject(seed, 3, kMiB));
    tier_->SetPinned(MustWrite(objects_.back()), true);
  }
  const TestObject another = MakeObject(3, 3, kMiB);
  const absl::Status refused = Write(another).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(tier_->Stats().writes_rejected, 1u);
  ExpectAllBut({});
  // What is erased is not pinned any longer.
  Erase(IdOf(objects_[0].meta.key));
  MustWrite(another);
  ExpectAllBut({0});
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
