// A store on a real file system with O_DIRECT, and objects whose every byte follows from a seed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/buffer.h"
#include "kernels/checksum.h"
#include "tests/support/test_loop.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;

// A fresh directory on a disk (TMPDIR, else /var/tmp), gone with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const char* parent = std::getenv("TMPDIR");
    path_ = std::string(parent != nullptr ? parent : "/var/tmp") + "/terrace-nvme-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct TestObject {
  RecordMeta meta;
  kernels::AlignedBuffer payload;
};

// A KV object with an identity part of two grains and `parts` more of `part_bytes` each.
inline TestObject MakeObject(uint64_t seed, uint32_t parts, uint64_t part_bytes) {
  std::mt19937_64 random(seed);
  TestObject object;
  RecordMeta& meta = object.meta;
  for (uint8_t& byte : meta.key.bytes) byte = static_cast<uint8_t>(random());
  for (uint8_t& byte : meta.parent.bytes) byte = static_cast<uint8_t>(random());
  meta.fingerprint.fill(7);
  meta.token_count = 48;
  meta.grain_count = 3;
  meta.tenant_id = 11;
  meta.cost_us = static_cast<uint32_t>(seed);
  uint64_t end = IdentityBytes(meta.grain_count);
  meta.part_ends.push_back(end);
  for (uint32_t i = 0; i < parts; ++i) {
    end = AlignUp(end, kPartAlignment) + part_bytes;
    meta.part_ends.push_back(end);
  }
  meta.payload_bytes = AlignUp(end, kPartAlignment);
  object.payload = kernels::AlignedBuffer(meta.payload_bytes);
  for (uint64_t at = 0; at < object.payload.size_bytes(); at += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::memcpy(object.payload.data() + at, &value, sizeof value);
  }
  uint64_t begin = 0;
  for (uint64_t part_end : meta.part_ends) {
    meta.part_crcs.push_back(kernels::Crc32c(object.payload.data() + begin, part_end - begin));
    begin = AlignUp(part_end, kPartAlignment);
  }
  for (uint32_t grain = 0; grain + 1 < meta.grain_count; ++grain) {
    ObjectKey key;
    std::memcpy(key.bytes.data(), object.payload.data() + grain * sizeof key, sizeof key);
    meta.grain_filters.push_back(FilterOf(key));
  }
  return object;
}

class NvmeTierTest : public testing::Test {
 protected:
  NvmeTierTest() {
    options_.directory = scratch_.path() + "/nvme";
    options_.capacity_bytes = 64 * kMiB;
    options_.segment_bytes = 4 * kMiB;
    options_.piece_bytes = 128 * kKiB;
  }

  // Opens the tier or fails the test.
  void Open() {
    absl::StatusOr<std::unique_ptr<NvmeTier>> tier = NvmeTier::Open(options_, loop_.post());
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
    records_.clear();
    tier_->OnDropped([this](RecordId, const ObjectKey& key) {
      Forget(key);
      dropped_.push_back(key);
    });
    absl::Status status = tier_->Recover(
        [](uint64_t) {},
        [this](RecordId id, const RecordMeta& meta) { records_.emplace_back(id, meta); });
    ASSERT_TRUE(status.ok()) << status;
  }

  void Reopen() {
    tier_.reset();
    Open();
  }

  absl::StatusOr<RecordId> Write(const TestObject& object) {
    std::optional<absl::StatusOr<RecordId>> result;
    tier_->Write({object.meta, object.payload.data(), IoPriority::kBackground,
                  [&](absl::StatusOr<RecordId> record) { result = std::move(record); }});
    EXPECT_TRUE(loop_.RunUntil([&] { return result.has_value(); }));
    if (result.has_value() && result->ok()) records_.emplace_back(**result, object.meta);
    return result.value_or(absl::InternalError("done was never called"));
  }

  void Erase(RecordId record) {
    std::erase_if(records_, [&](const auto& entry) { return entry.first == record; });
    tier_->Erase(record);
  }

  // The record's id, or a failed test.
  RecordId MustWrite(const TestObject& object) {
    absl::StatusOr<RecordId> record = Write(object);
    EXPECT_TRUE(record.ok()) << record.status();
    return record.value_or(kNoRecord);
  }

  struct ReadResult {
    absl::StatusOr<RecordMeta> meta = absl::InternalError("done was never called");
    std::vector<uint32_t> progress;
    kernels::AlignedBuffer payload;
  };

  ReadRequest Request(RecordId record, const RecordMeta& meta, uint8_t* destination) {
    ReadRequest request;
    request.record = record;
    request.key = meta.key;
    request.fingerprint = meta.fingerprint;
    request.destination = destination;
    return request;
  }

  ReadResult Read(RecordId record, const RecordMeta& meta) {
    ReadResult result;
    result.payload = kernels::AlignedBuffer(meta.payload_bytes);
    bool done = false;
    ReadRequest request = Request(record, meta, result.payload.data());
    request.on_progress = [&](uint32_t ready) { result.progress.push_back(ready); };
    request.done = [&](absl::StatusOr<RecordMeta> read) {
      result.meta = std::move(read);
      done = true;
    };
    tier_->Read(std::move(request));
    EXPECT_TRUE(loop_.RunUntil([&] { return done; }));
    if (absl::IsDataLoss(result.meta.status())) Forget(meta.key);
    return result;
  }

  // Reads the record and compares every byte and field.
  void ExpectStored(RecordId record, const TestObject& object) {
    ReadResult result = Read(record, object.meta);
    ASSERT_TRUE(result.meta.ok()) << result.meta.status();
    EXPECT_EQ(std::memcmp(result.payload.data(), object.payload.data(), object.meta.payload_bytes),
              0);
    EXPECT_EQ(result.meta->parent, object.meta.parent);
    EXPECT_EQ(result.meta->token_count, object.meta.token_count);
    EXPECT_EQ(result.meta->cost_us, object.meta.cost_us);
    EXPECT_EQ(result.meta->part_ends, object.meta.part_ends);
    EXPECT_EQ(result.meta->part_crcs, object.meta.part_crcs);
    EXPECT_EQ(result.meta->grain_filters, object.meta.grain_filters);
    ASSERT_FALSE(result.progress.empty());
    EXPECT_EQ(result.progress.back(), object.meta.part_ends.size());
  }

  // What should be there: recovered or written, and neither erased nor dropped since.
  const std::vector<std::pair<RecordId, RecordMeta>>& Records() const { return records_; }

  void Forget(const ObjectKey& key) {
    std::erase_if(records_, [&](const auto& entry) { return entry.second.key == key; });
  }

  RecordId IdOf(const ObjectKey& key) {
    RecordId found = kNoRecord;
    for (const auto& [id, meta] : Records()) {
      if (meta.key == key) found = id;
    }
    return found;
  }

  std::vector<std::filesystem::path> SegmentFiles() const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry :
         std::filesystem::directory_iterator(options_.directory + "/segments")) {
      files.push_back(entry.path());
    }
    return files;
  }

  TemporaryDirectory scratch_;
  NvmeOptions options_;
  TestLoop loop_;
  std::unique_ptr<NvmeTier> tier_;
  std::vector<std::pair<RecordId, RecordMeta>> records_;
  std::vector<ObjectKey> dropped_;  // in order
};

}  // namespace terrace
