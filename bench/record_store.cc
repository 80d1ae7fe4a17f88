#include "bench/record_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/bench.h"
#include "daemon/tenant.h"
#include "kernels/checksum.h"
#include "kernels/shared_memory.h"
#include "tests/support/test_loop.h"
#include "tiers/nvme/nvme_tier.h"
#include "tiers/nvme/segment_format.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kSlots = 16384;  // records on their way to the device
constexpr uint64_t kProgressRecords = 100'000;
constexpr size_t kSampleKeys = 256;
constexpr std::chrono::seconds kTimeout{900};

ObjectKey RandomKey(std::mt19937_64& random) {
  ObjectKey key;
  for (size_t at = 0; at < key.bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::memcpy(key.bytes.data() + at, &value, sizeof value);
  }
  return key;
}

class RecordWriter {
 public:
  absl::Status Open(const std::string& directory, uint64_t capacity_bytes);
  absl::Status Write(uint64_t count);
  std::vector<ObjectKey> TakeSample() { return std::move(sample_); }

 private:
  void Submit(uint8_t* slot);

  kernels::SharedMemory memory_;
  std::vector<uint8_t*> free_slots_;
  RecordMeta common_;  // of every record
  std::mt19937_64 random_{20240607};
  std::vector<ObjectKey> sample_;
  uint64_t submitted_ = 0, durable_ = 0;
  absl::Status failure_;
  TestLoop loop_;
  std::unique_ptr<NvmeTier> tier_;
};

absl::Status RecordWriter::Open(const std::string& directory, uint64_t capacity_bytes) {
  const ObjectLayout layout = RecordGeometry().Layout();
  if (layout.PayloadBytes(kRecordTokens, kRecordGrains) != kRecordPayloadBytes) {
    return absl::InternalError("a record is not of 4 KiB");
  }
  auto memory = kernels::SharedMemory::Create("terrace-bench", kSlots * kRecordPayloadBytes);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  absl::Status status = memory_.Populate(0, memory_.size_bytes());
  if (!status.ok()) return status;
  for (uint64_t at = 0; at < memory_.size_bytes(); at += sizeof(uint64_t)) {
    // The same for every record; identity parts are replaced.
    const uint64_t value = at % kRecordPayloadBytes * 0x9e3779b97f4a7c15;
    std::memcpy(memory_.data() + at, &value, sizeof value);
  }
  for (uint64_t i = 0; i < kSlots; ++i) {
    free_slots_.push_back(memory_.data() + i * kRecordPayloadBytes);
  }
  common_.fingerprint = layout.fingerprint;
  common_.tenant_id = StoredTenantId("default");
  common_.token_count = kRecordTokens;
  common_.grain_count = kRecordGrains;
  common_.payload_bytes = kRecordPayloadBytes;
  for (const PartSpan& part : layout.Parts(kRecordTokens, kRecordGrains)) {
    common_.part_ends.push_back(part.offset + part.bytes);
    common_.part_crcs.push_back(kernels::Crc32c(memory_.data() + part.offset, part.bytes));
  }
  NvmeOptions options;
  options.directory = directory;
  options.capacity_bytes = capacity_bytes;
  auto tier = NvmeTier::Open(options, loop_.post());
  if (!tier.ok()) return tier.status();
  tier_ = *std::move(tier);
  return tier_->Recover([](uint64_t) {}, [](RecordId, const RecordMeta&) {});
}

void RecordWriter::Submit(uint8_t* slot) {
  WriteRequest request;
  request.meta = common_;
  request.meta.key = RandomKey(random_);
  for (uint32_t grain = 0; grain + 1 < kRecordGrains; ++grain) {
    const ObjectKey key = RandomKey(random_);
    std::memcpy(slot + grain * sizeof key, &key, sizeof key);
    request.meta.grain_filters.push_back(FilterOf(key));
  }
  request.meta.part_crcs[0] = kernels::Crc32c(slot, IdentityBytes(kRecordGrains));
  request.payload = slot;
  if (sample_.size() < kSampleKeys) {
    sample_.push_back(request.meta.key);
  } else if (random_() % (submitted_ + 1) < kSampleKeys) {
    sample_[random_() % kSampleKeys] = request.meta.key;
  }
  request.done = [this, slot](const absl::StatusOr<RecordId>& record) {
    failure_.Update(record.status());
    free_slots_.push_back(slot);
    if (++durable_ % kProgressRecords == 0) {
      Progress(absl::StrFormat("restart: %d records written", durable_));
    }
  };
  ++submitted_;
  tier_->Write(std::move(request));
}

absl::Status RecordWriter::Write(uint64_t count) {
  const bool in_time = loop_.RunUntil(
      [&] {
        while (failure_.ok() && submitted_ < count && !free_slots_.empty()) {
          uint8_t* slot = free_slots_.back();
          free_slots_.pop_back();
          Submit(slot);
        }
        return !failure_.ok() || durable_ == count;
      },
      kTimeout);
  if (!in_time) return absl::DeadlineExceededError("the records were not written in time");
  if (failure_.ok() && tier_->Stats().records != count) {
    return absl::InternalError(
        absl::StrCat(tier_->Stats().records, " records are left of ", count));
  }
  return failure_;
}

// The footer of a segment file: none of a file whose last block is not one.
absl::StatusOr<FileRange> FooterOf(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("open ", path));
  absl::Cleanup close_fd = [fd] { close(fd); };
  const off_t end = lseek(fd, 0, SEEK_END);
  std::array<uint8_t, nvme::kBlockBytes> block;
  const off_t at = end - static_cast<off_t>(block.size());
  if (at < 0 || pread(fd, block.data(), block.size(), at) != static_cast<ssize_t>(block.size())) {
    return absl::DataLossError(absl::StrCat(path, " is too short"));
  }
  const auto footer = nvme::DecodeFooterBlock({block.data(), block.size()});
  if (!footer.ok()) return FileRange{path, 0, 0};
  const uint64_t bytes = nvme::FooterBytes(footer->entries_bytes);
  return FileRange{path, static_cast<uint64_t>(end) - bytes, bytes};
}

}  // namespace

KvGeometry RecordGeometry() {
  KvGeometry geometry;
  geometry.model_id = "terrace-bench-restart";
  geometry.dtype = Dtype::kF8E4M3;
  geometry.layers = 1;
  geometry.kv_heads = 1;
  geometry.head_dim = 41;
  geometry.v_head_dim = 42;
  return geometry;
}

absl::StatusOr<std::vector<ObjectKey>> MakeRecordStore(const std::string& directory,
                                                       uint64_t capacity_bytes, uint64_t count) {
  RecordWriter writer;
  absl::Status status = writer.Open(directory, capacity_bytes);
  if (status.ok()) status = writer.Write(count);
  if (!status.ok()) return status;
  return writer.TakeSample();
}

absl::StatusOr<std::vector<FileRange>> FootersOf(const std::string& directory) {
  std::vector<FileRange> footers;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory + "/segments", error)) {
    auto footer = FooterOf(entry.path());
    if (!footer.ok()) return footer.status();
    if (footer->bytes > 0) footers.push_back(*std::move(footer));
  }
  if (footers.empty()) return absl::NotFoundError(absl::StrCat(directory, " has no footers"));
  std::sort(footers.begin(), footers.end(),
            [](const FileRange& a, const FileRange& b) { return a.path < b.path; });
  return footers;
}

std::string IndexOf(const std::string& directory) { return directory + "/index"; }

absl::StatusOr<uint64_t> DropIndexFromCache(const std::string& directory) {
  uint64_t bytes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(IndexOf(directory), error)) {
    const int fd = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("open ", entry.path().string()));
    absl::Cleanup close_fd = [fd] { close(fd); };
    fdatasync(fd);  // what is not written yet cannot be forgotten
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    bytes += static_cast<uint64_t>(std::max<off_t>(lseek(fd, 0, SEEK_END), 0));
  }
  if (bytes == 0) return absl::NotFoundError(absl::StrCat(directory, " has no index"));
  return bytes;
}

}  // namespace terrace::bench
