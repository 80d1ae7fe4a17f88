#include "bench/tier_driver.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "bench/bench.h"
#include "kernels/checksum.h"

namespace terrace::bench {
namespace {

constexpr uint64_t kPartBytes = 64 << 10;
constexpr uint64_t kPayloads = 16;  // that differ, so that not every write is of the same bytes
constexpr uint64_t kHugePageBytes = 2 << 20;
constexpr std::chrono::seconds kTimeout{300};

}  // namespace

absl::StatusOr<std::unique_ptr<TierDriver>> TierDriver::Open(NvmeOptions options,
                                                             uint64_t object_bytes,
                                                             uint32_t reads) {
  auto driver = std::unique_ptr<TierDriver>(new TierDriver);
  driver->object_bytes_ = object_bytes;
  driver->max_pending_bytes_ = options.max_pending_write_bytes;
  const uint64_t bytes = AlignUp((kPayloads + reads) * object_bytes, kHugePageBytes);
  auto memory = kernels::SharedMemory::Create("terrace-bench", bytes);
  if (!memory.ok()) return memory.status();
  driver->memory_ = *std::move(memory);
  driver->read_buffers_ = driver->memory_.data() + kPayloads * object_bytes;
  absl::Status status = driver->memory_.Populate(0, bytes);
  if (status.ok()) status = driver->MakePayloads();
  if (!status.ok()) return status;
  auto tier = NvmeTier::Open(std::move(options), driver->loop_.post());
  if (!tier.ok()) return tier.status();
  driver->tier_ = *std::move(tier);
  driver->tier_->OnDropped([driver = driver.get()](RecordId record, const ObjectKey&) {
    const auto found = driver->index_of_.find(record);
    if (found == driver->index_of_.end()) return;
    const size_t index = found->second;
    driver->objects_[index] = driver->objects_.back();
    driver->index_of_[driver->objects_[index].record] = index;
    driver->objects_.pop_back();
    driver->index_of_.erase(record);
  });
  status = driver->tier_->Recover([](uint64_t) {}, [](RecordId, const RecordMeta&) {});
  if (!status.ok()) return status;
  return driver;
}

TierDriver::~TierDriver() = default;

absl::Status TierDriver::MakePayloads() {
  if (object_bytes_ % kPartBytes != 0 || object_bytes_ / kPartBytes >= kMaxParts) {
    return absl::InternalError(absl::StrCat("objects of ", object_bytes_, " bytes"));
  }
  for (uint64_t payload = 0; payload < kPayloads; ++payload) {
    uint8_t* data = memory_.data() + payload * object_bytes_;
    for (uint64_t at = 0; at < object_bytes_; at += sizeof(uint64_t)) {
      const uint64_t value = random_();
      std::memcpy(data + at, &value, sizeof value);
    }
    RecordMeta meta;
    meta.fingerprint.fill(7);
    meta.token_count = 256;
    meta.payload_bytes = object_bytes_;
    meta.part_ends.push_back(0);  // no identity part
    meta.part_crcs.push_back(0);
    for (uint64_t at = 0; at < object_bytes_; at += kPartBytes) {
      meta.part_ends.push_back(at + kPartBytes);
      meta.part_crcs.push_back(kernels::Crc32c(data + at, kPartBytes));
    }
    payload_metas_.push_back(std::move(meta));
  }
  return absl::OkStatus();
}

void TierDriver::SubmitWrite() {
  const uint64_t payload = next_payload_++ % kPayloads;
  WriteRequest request;
  request.meta = payload_metas_[payload];
  for (size_t at = 0; at < request.meta.key.bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t value = random_();
    std::memcpy(request.meta.key.bytes.data() + at, &value, sizeof value);
  }
  request.payload = memory_.data() + payload * object_bytes_;
  request.done = [this, key = request.meta.key](absl::StatusOr<RecordId> record) {
    pending_bytes_ -= object_bytes_;
    if (!record.ok()) {
      failure_.Update(record.status());
      return;
    }
    index_of_[*record] = objects_.size();
    objects_.push_back({*record, key});
  };
  pending_bytes_ += object_bytes_;
  tier_->Write(std::move(request));
}

void TierDriver::TopUp(uint64_t& left) {
  while (left > 0 && failure_.ok() && pending_bytes_ + object_bytes_ <= max_pending_bytes_) {
    SubmitWrite();
    --left;
  }
}

void TierDriver::SubmitRead(const StoredObject& object, uint8_t* destination,
                            std::function<void()> done) {
  ReadRequest request;
  request.record = object.record;
  request.key = object.key;
  request.fingerprint = payload_metas_[0].fingerprint;
  request.destination = destination;
  request.batch = ++batch_;
  request.done = [this, done = std::move(done)](const absl::StatusOr<RecordMeta>& meta) {
    failure_.Update(meta.status());
    done();
  };
  tier_->Read(std::move(request));
}

absl::Status TierDriver::RunUntil(absl::FunctionRef<bool()> done) {
  if (!loop_.RunUntil([&] { return !failure_.ok() || done(); }, kTimeout)) {
    return absl::DeadlineExceededError("the NVMe tier did not answer");
  }
  return failure_;
}

absl::Status TierDriver::Write(uint64_t count) {
  return RunUntil([&] {
    TopUp(count);
    return count == 0 && pending_bytes_ == 0;
  });
}

absl::Status TierDriver::Read(absl::Span<const StoredObject> objects, uint32_t in_flight) {
  size_t next = 0, finished = 0;
  std::vector<uint8_t*> idle;
  for (uint32_t i = 0; i < in_flight; ++i) idle.push_back(read_buffers_ + i * object_bytes_);
  return RunUntil([&] {
    while (!idle.empty() && next < objects.size()) {
      uint8_t* buffer = idle.back();
      idle.pop_back();
      SubmitRead(objects[next++], buffer, [&idle, &finished, buffer] {
        idle.push_back(buffer);
        ++finished;
      });
    }
    return finished == objects.size();
  });
}

absl::StatusOr<std::vector<double>> TierDriver::ReadUnderWrites(uint64_t count, double seconds) {
  std::vector<double> latencies;
  const double start = NowSeconds();
  double submitted = 0;
  bool reading = false;
  const absl::Status status = RunUntil([&] {
    uint64_t many = UINT64_MAX;
    TopUp(many);
    if (reading) return false;
    if (latencies.size() >= count && NowSeconds() - start >= seconds) return true;
    reading = true;
    submitted = NowSeconds();
    SubmitRead(objects_[random_() % objects_.size()], read_buffers_, [&] {
      latencies.push_back(NowSeconds() - submitted);
      reading = false;
    });
    return false;
  });
  if (!status.ok()) return status;
  return latencies;
}

}  // namespace terrace::bench
