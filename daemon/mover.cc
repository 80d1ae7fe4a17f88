#include "daemon/mover.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

constexpr uint32_t kGrowRetryMs = 2;
constexpr uint32_t kWriteRetryMs = 10;
constexpr uint32_t kReadLatencyUs = 100;  // of a device that has nothing else to do
constexpr uint32_t kUsualChunkTokens = 256;
constexpr uint32_t kQuotaDropsPerTick = 1024;

nvme::AdmissionPolicy PolicyNamed(const std::string& name) {
  if (name == "always") return nvme::AdmissionPolicy::kAlways;
  if (name == "second-touch") return nvme::AdmissionPolicy::kSecondTouch;
  return nvme::AdmissionPolicy::kAuto;
}

}  // namespace

Mover::Mover(Catalog& catalog, std::vector<Tenant>& tenants,
             const std::vector<ObjectLayout>& layouts, NvmeTier* nvme, Transcoder* transcoder,
             Metrics& metrics, const NvmeSection& nvme_options,
             std::function<void(const Waiter&, uint32_t)> publish)
    : catalog_(catalog),
      tenants_(tenants),
      layouts_(layouts),
      nvme_(nvme),
      transcoder_(transcoder),
      metrics_(metrics),
      publish_(std::move(publish)),
      max_writing_bytes_(nvme_options.max_pending_writes.bytes),
      admission_(PolicyNamed(nvme_options.admission)) {
  if (nvme_ != nullptr) {
    nvme_->OnDropped([this](RecordId record, const ObjectKey& key) { RecordDropped(record, key); });
  }
}

absl::Status Mover::Recover() {
  if (nvme_ == nullptr) return absl::OkStatus();
  KeepQuotasApart();
  // Of a million records most of the time goes into waiting for memory: each one's places are
  // asked for some records ahead.
  struct Found {
    RecordId record = kNoRecord;
    RecordMeta meta;
  };
  constexpr size_t kAhead = 16;
  std::array<Found, kAhead> ahead;
  size_t next = 0;
  std::vector<RecordId> duplicates;
  const auto add = [&](const Found& found) {
    if (found.record != kNoRecord) AddRecovered(found.record, found.meta, duplicates);
  };
  absl::Status status =
      nvme_->Recover([this](uint64_t records) { catalog_.Reserve(records); },
                     [&](RecordId record, RecordMeta& meta) {
                       Found& slot = ahead[next++ % kAhead];
                       add(slot);
                       slot.record = record;
                       std::swap(slot.meta, meta);
                       catalog_.Prefetch(slot.meta.key, slot.meta.parent.Head64());
                     });
  for (size_t i = 0; i < kAhead; ++i) add(ahead[next++ % kAhead]);
  if (!status.ok()) return status;
  for (RecordId record : duplicates) nvme_->Erase(record);
  return absl::OkStatus();
}

void Mover::AddRecovered(RecordId record, const RecordMeta& meta,
                         std::vector<RecordId>& duplicates) {
  auto tenant = std::find_if(tenants_.begin(), tenants_.end(), [&](const Tenant& candidate) {
    return candidate.stored_id == meta.tenant_id;
  });
  // A tenant that the config no longer names keeps its records until their segment is reclaimed.
  if (tenant == tenants_.end()) return;
  const ObjectId id = catalog_.InsertIfAbsent(meta.key);
  if (id == kNoObject) {
    duplicates.push_back(record);
    return;
  }
  Entry& entry = catalog_.at(id);
  entry.parent_head = meta.parent.Head64();
  entry.payload_units = meta.object_bytes() / kPartAlignment;
  entry.fingerprint = catalog_.InternFingerprint(meta.fingerprint);
  entry.cost_us = meta.cost_us;
  entry.token_count = meta.token_count;
  entry.grain_count = meta.grain_count;
  entry.tenant = tenant - tenants_.begin();
  entry.kind = meta.kind;
  entry.pinned = (meta.flags & kRecordPinned) != 0;
  if (meta.grain_count > 1) {
    const uint32_t filters = meta.grain_count - 1;
    entry.grain_filters = std::make_unique<GrainFilter[]>(filters);
    const uint32_t known = std::min<uint32_t>(filters, meta.grain_filters.size());
    std::copy_n(meta.grain_filters.begin(), known, entry.grain_filters.get());
  }
  GainRecord(id, record);
  catalog_.LinkToParent(id);
}

bool Mover::Evictable(ObjectId id) const {
  const Entry& entry = catalog_.at(id);
  return entry.lease_count == 0 && !entry.pinned && !entry.in_device && entry.host != nullptr &&
         entry.host->ready && !entry.host->writing && !entry.host->moving;
}

absl::StatusOr<Extent> Mover::MakeRoom(uint16_t tenant, ObjectKind kind, uint64_t bytes,
                                       uint32_t& retry_after_ms, MayLeave may_leave) {
  return MakeRoomFor(tenant, kind, bytes, retry_after_ms, may_leave, kNoObject);
}

absl::StatusOr<Extent> Mover::MakeRoomFor(uint16_t tenant_index, ObjectKind kind, uint64_t bytes,
                                          uint32_t& retry_after_ms, MayLeave may_leave,
                                          ObjectId down) {
  Tenant& tenant = tenants_[tenant_index];
  retry_after_ms = 0;
  while (true) {
    absl::StatusOr<Extent> extent = tenant.host->Allocate(bytes);
    if (extent.ok() || !absl::IsResourceExhausted(extent.status())) return extent;
    // Memory that nobody uses yet is cheaper than a cached object.
    if (tenant.host->growing()) {
      retry_after_ms = kGrowRetryMs;
      return absl::ResourceExhaustedError("host tier is growing");
    }
    if (AwaitsShare(tenant, bytes)) {
      retry_after_ms = kWriteRetryMs;
      return absl::ResourceExhaustedError("memory that was lent is on its way back");
    }
    auto victim = tenant.placement->VictimFor(kind, [&](PolicyId id) -> std::optional<Space> {
      if (id != down && (!Evictable(id) || !may_leave(id))) return std::nullopt;
      return SpaceOf(catalog_.at(id));
    });
    if (victim == down && down != kNoObject) {
      catalog_.at(down).placed = false;
      return absl::AbortedError("it is what memory should lose");
    }
    if (!victim) {
      const bool soon = writing_objects_ > 0 || !loading_.empty() || tenant.shrink.moving_bytes > 0;
      retry_after_ms = soon ? kWriteRetryMs : 0;
      return absl::ResourceExhaustedError(absl::StrCat(
          "host tier of tenant '", tenant.name, "' is full: nothing that may be evicted gives ",
          bytes, " contiguous bytes (", tenant.host->used_bytes(), " of ",
          tenant.host->capacity_bytes(), " used by leased, pinned or unwritten objects)"));
    }
    EvictHostCopy(*victim);
  }
}

// Placement named it: there it has left.
void Mover::EvictHostCopy(ObjectId id) {
  Entry& entry = catalog_.at(id);
  entry.placed = false;
  ++metrics_.evicted_host;
  if (entry.record == kNoRecord) ++metrics_.evicted_unwritten;
  DropHostCopy(id);
  ReleaseIfGone(id);
}

void Mover::DropHostCopy(ObjectId id) {
  Entry& entry = catalog_.at(id);
  if (entry.host == nullptr) return;
  Unqueue(entry);
  Tenant& tenant = tenants_[entry.tenant];
  if (entry.host->ready) {
    --tenant.host_objects;
    if (listener_ != nullptr && !entry.in_device) listener_->Left(id);
  }
  if (entry.placed) {
    if (!entry.in_device) {
      entry.placed = false;
      tenant.placement->Left(id, SpaceOf(entry));
    }
  } else {
    tenant.placement->Missed(id);
  }
  tenant.host->Free(entry.host->extent);
  entry.host.reset();
}

void Mover::Published(ObjectId id) {
  Entry& entry = catalog_.at(id);
  entry.host->ready = true;
  if (entry.fingerprint >= remake_models_.size()) remake_models_.resize(entry.fingerprint + 1);
  remake_models_[entry.fingerprint].Observe(entry.host->position, entry.token_count, entry.cost_us);
  ++tenants_[entry.tenant].host_objects;
  EnterHost(id);
  OfferToNvme(id);
}

uint32_t Mover::RemakeUs(const Entry& entry) const {
  if (entry.cost_us != 0 || entry.fingerprint >= remake_models_.size()) return entry.cost_us;
  const uint32_t position = entry.host != nullptr ? entry.host->position : kUnknownPosition;
  return remake_models_[entry.fingerprint].Estimate(position, entry.token_count);
}

Loss Mover::LossOf(const Entry& entry) const {
  Loss loss;
  loss.remake_us = RemakeUs(entry);
  if (entry.record != kNoRecord && nvme_->in_service()) {
    loss.fetch_us = FetchUs(StoredBytes(entry));
  }
  return loss;
}

Space Mover::SpaceOf(const Entry& entry) {
  return {AlignUp(entry.payload_bytes(), kExtentAlignment), entry.kind};
}

MemoryCopy* Mover::MemoryOf(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  if (entry.host != nullptr) return entry.host.get();
  return entry.in_device ? device_copies_.at(id)->memory.get() : nullptr;
}

ObjectId Mover::ParentInMemory(const Entry& entry, const ObjectKey& parent) {
  const ObjectId id = parent.IsZero() ? kNoObject : catalog_.Find(parent);
  if (id == kNoObject || catalog_.at(id).tenant != entry.tenant) return kNoObject;
  return MemoryOf(id) == nullptr ? kNoObject : id;
}

void Mover::StoredAgain(ObjectId id, const ObjectKey& parent) {
  const Entry& entry = catalog_.at(id);
  MemoryCopy* memory = entry.placed ? MemoryOf(id) : nullptr;
  const ObjectId before = memory == nullptr ? kNoObject : ParentInMemory(entry, parent);
  if (before == kNoObject) return;
  if (memory->parent.IsZero()) memory->parent = parent;
  if (memory->parent == parent) tenants_[entry.tenant].placement->Follows(id, before);
}

void Mover::EnterHost(ObjectId id) {
  Entry& entry = catalog_.at(id);
  if (entry.placed) {  // it comes down from the device
    if (listener_ != nullptr) listener_->Entered(id);
    return;
  }
  MemoryCopy& host = *entry.host;
  Resident resident;
  resident.space = SpaceOf(entry);
  resident.key_head = entry.key.Head64();
  uint32_t depth = 0;
  const ObjectId parent = ParentInMemory(entry, host.parent);
  if (parent != kNoObject) {
    resident.parent = parent;
    depth = MemoryOf(parent)->depth + uint32_t{1};
  }
  if (host.position != kUnknownPosition) {
    depth = entry.grain_count > 0 ? host.position / kUsualChunkTokens : host.position;
  }
  host.depth = resident.depth = static_cast<uint16_t>(std::min<uint32_t>(depth, UINT16_MAX));
  entry.placed = true;
  resident.loss = LossOf(entry);
  tenants_[entry.tenant].placement->Entered(id, resident);
  if (listener_ != nullptr) listener_->Entered(id);
}

void Mover::Reprice(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  if (!entry.placed) return;
  tenants_[entry.tenant].placement->Repriced(id, SpaceOf(entry).bytes, LossOf(entry));
}

bool Mover::Reachable(const Entry& entry) const {
  return entry.host != nullptr || entry.in_device || (nvme_ != nullptr && nvme_->in_service());
}

void Mover::Touched(ObjectId id) {
  if (nvme_ == nullptr) return;
  Entry& entry = catalog_.at(id);
  if (!entry.reused && entry.record != kNoRecord) admission_.Reused();
  entry.reused = true;
  if (entry.record != kNoRecord) {
    nvme_->Touch(entry.record);
    tenants_[entry.tenant].nvme_policy->Touch(id);
  } else if (entry.visible() && entry.host != nullptr && entry.host->ready && !entry.queued &&
             !entry.host->writing) {
    OfferToNvme(id);
  }
}

absl::Status Mover::Promote(ObjectId id, uint32_t layout, IoPriority priority, uint64_t batch,
                            uint32_t& retry_after_ms, MayLeave may_leave) {
  Entry& entry = catalog_.at(id);
  absl::StatusOr<Extent> extent =
      MakeRoom(entry.tenant, entry.kind, entry.payload_bytes(), retry_after_ms, may_leave);
  if (!extent.ok()) {
    // What is full may be full of the caller's own lease: it uses what it got instead of waiting.
    if (!tenants_[entry.tenant].host->growing()) retry_after_ms = 0;
    return extent.status();
  }
  entry.host = MemoryCopy::New(*extent, layout, layouts_[layout].PartCount());
  if (const DeviceCopy* above = OnDevice(id); above != nullptr && above->ready()) {
    StartDescent(id);
    return absl::OkStatus();
  }
  Loading& loading = loading_[id];
  loading.priority = priority;
  loading.batch = batch;
  if (StartRead(id, loading)) return absl::OkStatus();
  loading_.erase(id);
  DropHostCopy(id);
  return absl::ResourceExhaustedError("no memory to read an encoded object into");
}

bool Mover::StartRead(ObjectId id, Loading& loading) {
  const Entry& entry = catalog_.at(id);
  ReadRequest request;
  request.record = entry.record;
  request.key = entry.key;
  request.fingerprint = catalog_.fingerprint(entry.fingerprint);
  request.destination = tenants_[entry.tenant].host->At(entry.host->extent);
  request.priority = loading.priority;
  request.batch = loading.batch;
  if (StoredBytes(entry) != entry.payload_bytes()) {
    loading.decoding = ReadEncoded(id, layouts_[entry.host->layout], request);
    if (loading.decoding == nullptr) return false;
  } else {
    request.on_progress = [this, id](uint32_t parts) { Progressed(id, parts); };
    request.done = [this, id](absl::StatusOr<RecordMeta> meta) { FinishRead(id, std::move(meta)); };
  }
  loading.stored_bytes = StoredBytes(entry);
  loading_bytes_ += loading.stored_bytes;
  demand_loads_ += loading.is_demand();
  loading.ticket = nvme_->Read(std::move(request));
  return true;
}

void Mover::Hasten(ObjectId id, IoPriority priority, uint64_t batch) {
  const auto found = loading_.find(id);
  if (found == loading_.end() || found->second.priority <= priority) return;
  if (found->second.from_device) return;  // at once, in any case
  Loading& loading = found->second;
  demand_loads_ -= loading.is_demand();
  loading.priority = priority;
  loading.batch = batch;
  demand_loads_ += loading.is_demand();
  nvme_->Reprioritize(loading.ticket, priority, batch);
  if (loading.decoding != nullptr) loading.decoding->Hasten(priority, batch);
}

void Mover::CancelPromotion(ObjectId id) {
  const auto found = loading_.find(id);
  if (found == loading_.end() || catalog_.at(id).lease_count > 0) return;
  if (catalog_.at(id).in_device || found->second.from_device) return;
  nvme_->Cancel(found->second.ticket);
}

double Mover::LoadedShare(ObjectId id) const {
  const auto found = loading_.find(id);
  if (found == loading_.end()) return 0;
  return static_cast<double>(found->second.parts_ready) / catalog_.at(id).host->part_count;
}

std::shared_ptr<ObjectDecoding> Mover::ReadEncoded(ObjectId id, const ObjectLayout& layout,
                                                   ReadRequest& request) {
  const Entry& entry = catalog_.at(id);
  Transcoder::DecodeJob job;
  job.layout = &layout;
  job.token_count = entry.token_count;
  job.grain_count = entry.grain_count;
  job.stored_bytes = StoredBytes(entry);
  job.destination = request.destination;
  job.priority = request.priority;
  job.batch = request.batch;
  auto read = std::make_shared<RecordMeta>();
  auto decoding = transcoder_->StartDecode(
      job, [this, id](uint32_t parts) { Progressed(id, parts); },
      [this, id, read](absl::StatusOr<std::vector<uint32_t>> part_crcs) {
        if (!part_crcs.ok()) {
          // What the tier read was as it had been written: it cannot know that it is no good.
          const RecordId record = catalog_.at(id).record;
          if (!read->part_ends.empty() && absl::IsDataLoss(part_crcs.status()) &&
              record != kNoRecord) {
            nvme_->Erase(record);
          }
          FinishRead(id, part_crcs.status());
          return;
        }
        read->part_crcs = *std::move(part_crcs);
        FinishRead(id, std::move(*read));
      });
  if (decoding == nullptr) return nullptr;
  request.destination = decoding->staging();
  request.on_progress = [decoding](uint32_t parts) { decoding->Arrived(parts); };
  request.done = [decoding, read](absl::StatusOr<RecordMeta> meta) {
    if (meta.ok()) *read = *std::move(meta);
    decoding->ReadEnded(meta.status());
  };
  return decoding;
}

void Mover::Progressed(ObjectId id, uint32_t parts_ready) {
  Loading& loading = loading_[id];
  if (parts_ready <= loading.parts_ready) return;  // of a read that began anew
  loading.parts_ready = parts_ready;
  for (const Waiter& waiter : loading.waiters) {
    publish_(waiter, MakeReadyWord(ReadyState::kLoading, parts_ready));
  }
}

void Mover::Join(ObjectId id, const Waiter& waiter) {
  Loading& loading = loading_[id];
  loading.waiters.push_back(waiter);
  if (loading.parts_ready > 0) {
    publish_(waiter, MakeReadyWord(ReadyState::kLoading, loading.parts_ready));
  }
}

void Mover::Leave(ObjectId id, const Waiter& waiter) {
  auto it = loading_.find(id);
  if (it != loading_.end()) std::erase(it->second.waiters, waiter);
  const auto above = device_copies_.find(id);
  if (above != device_copies_.end()) std::erase(above->second->waiters, waiter);
}

void Mover::FinishRead(ObjectId id, absl::StatusOr<RecordMeta> meta) {
  Entry& entry = catalog_.at(id);  // kept while loading
  Loading& ended = loading_[id];
  loading_bytes_ -= ended.stored_bytes;
  demand_loads_ -= ended.is_demand();
  if (ended.is_demand()) demand_read_bytes_ += ended.stored_bytes;
  // Somebody came for it after it had been cancelled.
  if (absl::IsCancelled(meta.status()) && (entry.lease_count > 0 || entry.in_device) &&
      entry.record != kNoRecord && StartRead(id, ended)) {
    return;
  }
  if (meta.ok() && meta->part_crcs.size() != entry.host->part_count) {
    nvme_->Erase(entry.record);
    meta = absl::DataLossError(absl::StrCat(entry.key.ToHex(), ": its record has ",
                                            meta->part_crcs.size(), " parts, its layout ",
                                            uint32_t{entry.host->part_count}));
  }
  if (meta.ok()) {
    entry.host->parent = meta->parent;
    std::copy(meta->part_crcs.begin(), meta->part_crcs.end(), entry.host->part_crcs().begin());
    metrics_.promoted_bytes += entry.payload_bytes();
  }
  EndLoad(id, meta.status());
}

// Of a record or of a device copy: all of it is in host memory, or will not be.
void Mover::EndLoad(ObjectId id, const absl::Status& status) {
  Entry& entry = catalog_.at(id);  // kept while loading
  const Loading loading = std::move(loading_[id]);
  loading_.erase(id);
  uint32_t word;
  if (status.ok()) {
    entry.host->ready = true;
    ++tenants_[entry.tenant].host_objects;
    if (entry.state != EntryState::kDead) EnterHost(id);
    word = MakeReadyWord(ReadyState::kReady, entry.host->part_count);
  } else {
    word = MakeReadyWord(ReadyState::kFailed, loading.parts_ready);
    if (loading.from_device) {
      DescentFailed(id, status);
    } else {
      LoadFailed(id, loading, status);
    }
  }
  for (const Waiter& waiter : loading.waiters) publish_(waiter, word);
  const ObjectKey key = entry.key;
  HostCopyEnded(id);
  ReleaseIfGone(id);
  if (listener_ != nullptr) listener_->LoadEnded(key, status);
}

void Mover::LoadFailed(ObjectId id, const Loading& loading, const absl::Status& status) {
  Entry& entry = catalog_.at(id);
  if (!absl::IsCancelled(status)) {
    ++metrics_.promotion_failures;
    spdlog::warn("promotion of {} failed after {} parts: {}", entry.key.ToHex(),
                 loading.parts_ready, status.ToString());
  }
  if (absl::IsDataLoss(status)) {
    ++metrics_.corrupt_objects;
    LoseRecord(id);  // it has been erased
    catalog_.Unindex(id);
  } else if (absl::IsFailedPrecondition(status)) {
    // Nobody can decode it before the next start, when its profile may be there again.
    LoseRecord(id);
    catalog_.Unindex(id);
  }
  if (entry.lease_count == 0) DropHostCopy(id);
}

void Mover::Unlease(ObjectId id) {
  Entry& entry = catalog_.at(id);
  if (--entry.lease_count > 0) return;
  const bool failed_load = entry.host != nullptr && !entry.host->ready && !loading(id);
  if (failed_load) DropHostCopy(id);
  DropDuplicate(id);
  ReleaseIfGone(id);
}

void Mover::Remove(ObjectId id) {
  Entry& entry = catalog_.at(id);
  if (entry.record != kNoRecord) nvme_->Erase(entry.record);
  LoseRecord(id);
  Unqueue(entry);
  catalog_.Unindex(id);
  ReleaseIfGone(id);
}

void Mover::RecordDropped(RecordId record, const ObjectKey& key) {
  const ObjectId id = catalog_.Find(key);
  if (id == kNoObject || catalog_.at(id).record != record) return;
  ++metrics_.dropped_nvme;
  LoseRecord(id);
  Reprice(id);
  ReleaseIfGone(id);
}

void Mover::ReleaseIfGone(ObjectId id) {
  Entry& entry = catalog_.at(id);
  const bool held = entry.lease_count > 0 || loading(id) ||
                    (entry.host != nullptr &&
                     (entry.host->writing || entry.host->moving || entry.host->rising)) ||
                    (entry.in_device && OnDevice(id)->lease_count > 0) ||
                    entry.state == EntryState::kReserved || entry.state == EntryState::kHidden;
  if (held) return;
  const bool nowhere = entry.host == nullptr && entry.record == kNoRecord && !entry.in_device;
  if (entry.state != EntryState::kDead && !nowhere) return;
  DropHostCopy(id);
  DropDeviceCopy(id);
  catalog_.Free(id);
}

uint64_t Mover::StoredBytes(const Entry& entry) const {
  return entry.record == kNoRecord ? 0 : nvme_->PayloadBytes(entry.record);
}

uint32_t Mover::EtaUs(uint64_t stored_bytes) const {
  return static_cast<uint32_t>(
      std::min(4e9, static_cast<double>(stored_bytes + loading_bytes_) * 1e6 / ReadBytesPerS()));
}

uint32_t Mover::FetchUs(uint64_t stored_bytes) const {
  return kReadLatencyUs + EtaUs(stored_bytes);  // EtaUs is below 4e9
}

void Mover::Tick() {
  for (uint16_t tenant = 0; tenant < tenants_.size(); ++tenant) ShrinkHost(tenant);
  if (fair_) ShareHost();
  if (nvme_ == nullptr) return;
  nvme_->Tick();
  for (uint16_t tenant = 0; tenant < tenants_.size(); ++tenant) {
    KeepNvmeQuota(tenant, 0, kQuotaDropsPerTick);
  }
  NoteLinkSpeed();
  FeedWrites();
}

void Mover::SetPinned(ObjectId id, bool pinned) {
  Entry& entry = catalog_.at(id);
  entry.pinned = pinned;
  if (entry.record != kNoRecord) {
    nvme_->SetPinned(entry.record, pinned);
  } else if (pinned && nvme_ != nullptr && entry.host != nullptr && entry.host->ready &&
             !entry.queued && !entry.host->writing) {
    OfferToNvme(id);
  }
  DropDuplicate(id);
}

}  // namespace terrace
