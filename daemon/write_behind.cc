// Mover: what is written behind to the NVMe tier.
#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "daemon/mover.h"
#include "daemon/session.h"
#include "kernels/buffer.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/record.h"

namespace terrace {

namespace {

// Assumed until the first reads have been measured: a modest SATA-class device.
constexpr double kDefaultReadBytesPerS = 500e6;
// A measurement reads what takes some 30 ms.
constexpr double kMeasurementsPerS = 32;
constexpr double kLeastMeasuredBytes = 256 << 10, kMostMeasuredBytes = 16 << 20;
constexpr uint64_t kMostMeasuringReads = 64;
constexpr uint64_t kLinkSpeedLastsUs = 10'000'000;

RecordMeta DescribeRecord(const Catalog& catalog, const Entry& entry, const ObjectLayout& layout,
                          uint32_t tenant_stored_id) {
  const MemoryCopy& host = *entry.host;
  RecordMeta meta;
  meta.key = entry.key;
  meta.parent = host.parent;
  meta.fingerprint = catalog.fingerprint(entry.fingerprint);
  meta.kind = entry.kind;
  meta.flags = entry.pinned ? kRecordPinned : 0;
  if (entry.kind == ObjectKind::kExpert) {
    meta.lifetime = Lifetime::kImmutable;
  } else {
    meta.lifetime = entry.reused || entry.pinned ? Lifetime::kHot : Lifetime::kCold;
  }
  meta.tenant_id = tenant_stored_id;
  meta.token_count = entry.token_count;
  meta.grain_count = entry.grain_count;
  meta.cost_us = entry.cost_us;
  meta.payload_bytes = entry.payload_bytes();
  if (entry.grain_filters != nullptr) {
    meta.grain_filters.assign(entry.grain_filters.get(),
                              entry.grain_filters.get() + entry.grain_count - 1);
  }
  for (const PartSpan& part : layout.Parts(entry.token_count, entry.grain_count)) {
    meta.part_ends.push_back(part.offset + part.bytes);
  }
  meta.part_crcs.assign(host.part_crcs().begin(), host.part_crcs().end());
  return meta;
}

}  // namespace

void Mover::OfferToNvme(ObjectId id) {
  if (nvme_ == nullptr) return;
  const Entry& entry = catalog_.at(id);
  const NvmeStats stats = nvme_->Stats();
  if (!admission_.Admit(
          {entry.key, entry.payload_bytes(), RemakeUs(entry), entry.pinned || entry.reused},
          {stats.read_bytes_per_s, stats.write_bytes_per_s})) {
    ++metrics_.not_admitted;
    return;
  }
  Enqueue(id);
  FeedWrites();
}

void Mover::Enqueue(ObjectId id) {
  Entry& entry = catalog_.at(id);
  entry.queued = true;
  ++queued_objects_;
  queued_bytes_ += entry.payload_bytes();
  tenants_[entry.tenant].write_queue.push_back(id);
}

void Mover::Unqueue(Entry& entry) {
  if (!entry.queued) return;
  entry.queued = false;
  --queued_objects_;
  queued_bytes_ -= entry.payload_bytes();
}

// The tenants take turns: one that stores much does not keep what others store from getting durable
// before it has to leave.
std::deque<ObjectId>* Mover::NextWriteQueue() {
  for (size_t i = 0; i < tenants_.size(); ++i) {
    std::deque<ObjectId>& queue = tenants_[(write_turn_ + i) % tenants_.size()].write_queue;
    // Evicted or removed while it waited.
    while (!queue.empty() && !catalog_.at(queue.front()).queued) queue.pop_front();
    if (queue.empty()) continue;
    write_turn_ = (write_turn_ + i) % tenants_.size();
    return &queue;
  }
  return nullptr;
}

void Mover::FeedWrites() {
  if (feeding_) return;  // a write that failed at once: the loop below goes on
  feeding_ = true;
  const absl::Cleanup fed = [this] { feeding_ = false; };
  while (std::deque<ObjectId>* queue = NextWriteQueue()) {
    const ObjectId id = queue->front();
    const Entry& entry = catalog_.at(id);
    if (writing_objects_ > 0 && writing_bytes_ + entry.payload_bytes() > max_writing_bytes_) return;
    // How to encode it depends on the link: the first object goes ahead and finds out.
    const bool first = writing_objects_ == 0 && measuring_reads_ == 0;
    if (transcoder_->Encodes(entry.host->layout) && !first &&
        (link_unknown() || measuring_reads_ > 0)) {
      return;
    }
    queue->pop_front();
    ++write_turn_;
    StartWrite(id);
  }
}

void Mover::StartWrite(ObjectId id) {
  Entry& entry = catalog_.at(id);
  Unqueue(entry);
  entry.host->writing = true;
  ++writing_objects_;
  writing_bytes_ += entry.payload_bytes();
  const MemoryCopy& host = *entry.host;
  if (!transcoder_->Encodes(host.layout)) {
    WriteEncoded(id, entry.key, EncodedObject{});
    return;
  }
  EncodeJob job;
  job.layout = host.layout;
  job.token_count = entry.token_count;
  job.grain_count = entry.grain_count;
  job.position = host.position;
  job.payload = tenants_[entry.tenant].host->At(host.extent);
  job.part_crcs.assign(host.part_crcs().begin(), host.part_crcs().end());
  transcoder_->Encode(std::move(job), Link(),
                      [this, id, key = entry.key](absl::StatusOr<EncodedObject> encoded) {
                        WriteEncoded(id, key, std::move(encoded));
                      });
}

// Writes the encoded form, or the host copy where there is none.
void Mover::WriteEncoded(ObjectId id, const ObjectKey& key, absl::StatusOr<EncodedObject> encoded) {
  if (!encoded.ok()) {
    FinishWrite(id, key, encoded.status());
    return;
  }
  const Entry& entry = catalog_.at(id);  // kept while host->writing
  WriteRequest request;
  request.meta = DescribeRecord(catalog_, entry, layouts_[entry.host->layout],
                                tenants_[entry.tenant].stored_id);
  request.payload = tenants_[entry.tenant].host->At(entry.host->extent);
  if (encoded->payload != nullptr) {
    request.meta.decoded_bytes = std::exchange(request.meta.payload_bytes, encoded->payload_bytes);
    request.meta.part_ends = std::move(encoded->part_ends);
    request.meta.part_crcs = std::move(encoded->part_crcs);
    request.payload = encoded->payload->data();
  }
  const uint64_t bytes = nvme::HeaderBytes(request.meta.part_ends) +
                         AlignUp(request.meta.payload_bytes, nvme::kBlockBytes);
  Tenant& tenant = tenants_[entry.tenant];
  if (!KeepNvmeQuota(entry.tenant, bytes, UINT32_MAX)) {
    FinishWrite(id, key,
                absl::ResourceExhaustedError(absl::StrCat(
                    "nvme_capacity = ", tenant.nvme_quota_bytes, " of tenant '", tenant.name,
                    "' is taken by pinned records and records on their way")));
    return;
  }
  tenant.nvme_writing_bytes += bytes;
  request.done = [this, id, key, bytes, &tenant,
                  kept = std::move(encoded->payload)](absl::StatusOr<RecordId> record) {
    tenant.nvme_writing_bytes -= bytes;
    FinishWrite(id, key, std::move(record));
  };
  nvme_->Write(std::move(request));
}

double Mover::ReadBytesPerS() const {
  return read_bytes_per_s_ > 0 ? read_bytes_per_s_ : kDefaultReadBytesPerS;
}

LinkState Mover::Link() const { return {ReadBytesPerS(), 0, transcoder_->threads()}; }

void Mover::NoteLinkSpeed() {
  const double speed = nvme_->Stats().read_bytes_per_s;
  if (speed == read_bytes_per_s_) return;
  read_bytes_per_s_ = speed;
  link_noted_us_ = MonotonicUs();
}

void Mover::KeepLinkMeasured(ObjectId id) {
  const uint64_t now_us = MonotonicUs();
  if (link_noted_us_ != 0 && now_us < link_noted_us_ + kLinkSpeedLastsUs) return;
  link_noted_us_ = now_us;
  MeasureLink(id);
}

// Reads a record for the sake of knowing how fast that is: at once as often as it takes for
// bandwidth to count, not latency.
void Mover::MeasureLink(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  if (measuring_reads_ > 0 || entry.record == kNoRecord) return;
  link_measured_ = true;
  const uint64_t each = AlignUp(StoredBytes(entry), kExtentAlignment);
  const double bytes =
      std::clamp(ReadBytesPerS() / kMeasurementsPerS, kLeastMeasuredBytes, kMostMeasuredBytes);
  measuring_reads_ = static_cast<uint32_t>(
      std::clamp<uint64_t>(static_cast<uint64_t>(bytes) / each, 1, kMostMeasuringReads));
  auto scratch = std::make_shared<kernels::AlignedBuffer>(each * measuring_reads_);
  if (scratch->data() == nullptr) {
    measuring_reads_ = 0;
    return;
  }
  for (uint32_t i = 0, reads = measuring_reads_; i < reads; ++i) {
    ReadRequest request;
    request.record = entry.record;
    request.key = entry.key;
    request.fingerprint = catalog_.fingerprint(entry.fingerprint);
    request.destination = scratch->data() + i * each;
    request.priority = IoPriority::kBackground;
    request.done = [this, scratch](const absl::StatusOr<RecordMeta>&) {
      if (--measuring_reads_ > 0) return;
      NoteLinkSpeed();
      FeedWrites();
    };
    nvme_->Read(std::move(request));
  }
}

void Mover::FinishWrite(ObjectId id, const ObjectKey& key, absl::StatusOr<RecordId> record) {
  Entry& entry = catalog_.at(id);  // kept while host->writing
  entry.host->writing = false;
  --writing_objects_;
  writing_bytes_ -= entry.payload_bytes();
  if (record.ok()) {
    ++metrics_.durable_objects;
    metrics_.durable_bytes += entry.payload_bytes();
    if (entry.visible()) {
      GainRecord(id, *record);
      nvme_->SetPinned(*record, entry.pinned);  // it may have changed meanwhile
      Reprice(id);
      // How to encode the next ones depends on it.
      if (link_unknown() && transcoder_->Encodes(entry.host->layout)) MeasureLink(id);
    } else {
      nvme_->Erase(*record);  // removed while it was written
    }
  } else {
    if (metrics_.writes_failed++ == 0) {
      spdlog::warn("write-behind of {} failed, the object stays in the host tier only: {}",
                   key.ToHex(), record.status().ToString());
    }
  }
  DropDuplicate(id);
  ReleaseIfGone(id);
  FeedWrites();
}

}  // namespace terrace
