// Mover: between host memory and a device's. An object lies in one of them: the host copy stays
// beside one on the device only while it is leased, pinned, or being written behind. One order over
// both decides what leaves memory (Placement), another which of what is on the device makes room
// there; what it gives up goes down to host memory, unless it is what memory should rather lose.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/mover.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

constexpr uint32_t kRiseRetryMs = 1;

}  // namespace

const DeviceCopy* Mover::OnDevice(ObjectId id) const {
  const auto found = device_copies_.find(id);
  return found == device_copies_.end() ? nullptr : found->second.get();
}

uint32_t Mover::DescentUs(uint64_t bytes) const {
  const uint64_t moving = device_link_->pending_bytes(kernels::CopyDirection::kFromDevice);
  return static_cast<uint32_t>(
      std::min(4e9, static_cast<double>(bytes + moving) * 1e6 / DeviceBytesPerS()));
}

void Mover::HintUse(ObjectId id, uint64_t next_use, float confidence) {
  const Entry& entry = catalog_.at(id);
  const Tenant& tenant = tenants_[entry.tenant];
  if (entry.placed) tenant.placement->Hint(id, next_use, confidence);
  if (entry.in_device) tenant.device_policy->Hint(id, next_use, confidence);
}

void Mover::NoteUse(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  const Tenant& tenant = tenants_[entry.tenant];
  tenant.placement->Used(id);
  if (entry.in_device) tenant.device_policy->Touch(id);
}

// --- up -----------------------------------------------------------------------------------------

absl::Status Mover::PromoteToDevice(ObjectId id, uint32_t layout, IoPriority priority,
                                    uint64_t batch, uint32_t& retry_after_ms, MayLeave may_leave) {
  Entry& entry = catalog_.at(id);
  auto& copy = *(device_copies_[id] = std::make_unique<DeviceCopy>());
  entry.in_device = true;  // from now on its host copy does not leave for what comes down
  copy.demand = priority < IoPriority::kQueued;
  const absl::StatusOr<Extent> extent = MakeDeviceRoom(id, retry_after_ms, may_leave);
  absl::Status status = extent.status();
  if (status.ok() && entry.host == nullptr) {
    status = Promote(id, layout, priority, batch, retry_after_ms, may_leave);
    if (!status.ok()) tenants_[entry.tenant].device->Free(*extent);
  }
  if (!status.ok()) {
    device_copies_.erase(id);
    entry.in_device = false;
    return status;
  }
  const MemoryCopy& host = *entry.host;
  copy.memory = MemoryCopy::New(*extent, host.layout, host.part_count, host.position);
  if (host.ready) StartRise(id, copy);
  return absl::OkStatus();
}

absl::StatusOr<Extent> Mover::MakeDeviceRoom(ObjectId id, uint32_t& retry_after_ms,
                                             MayLeave may_leave) {
  const uint16_t tenant_index = catalog_.at(id).tenant;
  const uint64_t bytes = catalog_.at(id).payload_bytes();
  Tenant& tenant = tenants_[tenant_index];
  retry_after_ms = 0;
  while (true) {
    if (const auto extent = tenant.device->Allocate(bytes)) return *extent;
    const auto victim = tenant.device_policy->Evict(
        [&](PolicyId other) { return LeavesDevice(other) && may_leave(other); });
    if (!victim) {
      const bool soon = std::any_of(device_copies_.begin(), device_copies_.end(), [](auto& other) {
        return other.second->ticket != 0 && other.second->lease_count == 0;
      });
      retry_after_ms = soon ? kRiseRetryMs : 0;
      return absl::ResourceExhaustedError(
          absl::StrCat("HBM of tenant '", tenant.name, "' is full: nothing that may leave gives ",
                       bytes, " contiguous bytes (", tenant.device->used_bytes(), " of ",
                       tenant.device->capacity_bytes(), " used)"));
    }
    const absl::Status left = MoveDown(*victim, retry_after_ms, may_leave);
    if (!left.ok()) {
      EnterDevice(*victim);
      return left;
    }
  }
}

bool Mover::LeavesDevice(ObjectId id) const {
  const Entry& entry = catalog_.at(id);
  const DeviceCopy* copy = OnDevice(id);
  return copy != nullptr && copy->ready() && copy->lease_count == 0 &&
         !(entry.pinned && entry.host == nullptr);
}

void Mover::StartRise(ObjectId id, DeviceCopy& copy) {
  const Entry& entry = catalog_.at(id);
  MemoryCopy& host = *entry.host;
  host.rising = true;
  DeviceMove move;
  move.direction = kernels::CopyDirection::kToDevice;
  move.host = tenants_[entry.tenant].host->At(host.extent);
  move.device = tenants_[entry.tenant].device->At(copy.memory->extent);
  move.parts = layouts_[host.layout].Parts(entry.token_count, entry.grain_count);
  move.part_crcs.assign(host.part_crcs().begin(), host.part_crcs().end());
  move.demand = copy.demand;
  move.progress = [this, id](uint32_t parts) {
    DeviceCopy& rising = *device_copies_.at(id);
    rising.parts_ready = parts;
    for (const Waiter& waiter : rising.waiters) {
      publish_(waiter, MakeReadyWord(ReadyState::kLoading, parts));
    }
  };
  move.done = [this, id](const absl::Status& status) { FinishRise(id, status); };
  copy.ticket = device_link_->Start(std::move(move));
}

void Mover::FinishRise(ObjectId id, const absl::Status& status) {
  Entry& entry = catalog_.at(id);  // kept while host->rising
  DeviceCopy& copy = *device_copies_.at(id);
  MemoryCopy& host = *entry.host;
  host.rising = false;
  copy.ticket = 0;
  if (!status.ok()) {
    spdlog::warn("{} did not get to the device: {}", entry.key.ToHex(), status.ToString());
    FailDeviceCopy(id, copy);
    if (absl::IsDataLoss(status) && entry.visible()) {
      // As in Verify: the record may have been written from the same bytes.
      ++metrics_.corrupt_objects;
      Remove(id);
      return;
    }
    ReleaseIfGone(id);
    return;
  }
  MemoryCopy& memory = *copy.memory;
  memory.parent = host.parent;
  memory.depth = host.depth;
  std::copy(host.part_crcs().begin(), host.part_crcs().end(), memory.part_crcs().begin());
  memory.ready = true;
  ++tenants_[entry.tenant].device_objects;
  ++metrics_.raised_objects;
  metrics_.raised_bytes += entry.payload_bytes();
  metrics_.raised_ahead += !copy.demand;
  for (const Waiter& waiter : std::exchange(copy.waiters, {})) {
    publish_(waiter, MakeReadyWord(ReadyState::kReady, memory.part_count));
  }
  if (entry.state != EntryState::kDead) EnterDevice(id);
  DropDuplicate(id);
  ReleaseIfGone(id);
}

// The policy of the device knows it from here on.
void Mover::EnterDevice(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  const MemoryCopy& memory = *OnDevice(id)->memory;
  TrackInfo info;
  info.bytes = AlignUp(entry.payload_bytes(), kExtentAlignment);
  // To fetch it from where it goes.
  info.cost_us = static_cast<uint32_t>(1 + static_cast<double>(entry.payload_bytes()) * 1e6 /
                                               DeviceBytesPerS());
  info.key_head = entry.key.Head64();
  info.depth = memory.depth;
  info.kind = entry.kind;
  if (!memory.parent.IsZero()) {
    const ObjectId parent = catalog_.Find(memory.parent);
    const bool there = parent != kNoObject && catalog_.at(parent).tenant == entry.tenant &&
                       catalog_.at(parent).in_device && OnDevice(parent)->ready();
    if (there) info.parent = parent;
  }
  tenants_[entry.tenant].device_policy->Track(id, info);
  if (listener_ != nullptr) listener_->Entered(id);
}

void Mover::FailDeviceCopy(ObjectId id, DeviceCopy& copy) {
  copy.failed = true;
  for (const Waiter& waiter : std::exchange(copy.waiters, {})) {
    publish_(waiter, MakeReadyWord(ReadyState::kFailed, copy.parts_ready));
  }
  if (copy.lease_count == 0) DropDeviceCopy(id);
}

// A load to host memory has ended. What waits for it to go on goes on.
void Mover::HostCopyEnded(ObjectId id) {
  const auto found = device_copies_.find(id);
  if (found == device_copies_.end()) return;
  const Entry& entry = catalog_.at(id);
  DeviceCopy& copy = *found->second;
  if (copy.ready()) {
    DropDuplicate(id);
  } else if (copy.failed || copy.memory == nullptr) {
    return;
  } else if (entry.host == nullptr || !entry.host->ready) {
    FailDeviceCopy(id, copy);
  } else if (entry.state == EntryState::kDead && copy.lease_count == 0) {
    DropDeviceCopy(id);
  } else {
    StartRise(id, copy);
  }
}

// The device has it, and nothing in host memory needs it any more.
void Mover::DropDuplicate(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  if (!entry.in_device || entry.host == nullptr || !OnDevice(id)->ready()) return;
  const MemoryCopy& host = *entry.host;
  const bool needed = !host.ready || host.writing || host.moving || host.rising || entry.queued ||
                      entry.pinned || entry.lease_count > 0;
  if (!needed) DropHostCopy(id);
}

// --- leases -------------------------------------------------------------------------------------

void Mover::LeaseOnDevice(ObjectId id, const Waiter& waiter, IoPriority priority, uint64_t batch) {
  DeviceCopy& copy = *device_copies_.at(id);
  ++copy.lease_count;
  if (!copy.demand) ++(copy.ready() ? metrics_.raised_timely : metrics_.raised_late);
  copy.demand = true;
  if (copy.ready()) return;
  copy.waiters.push_back(waiter);
  if (copy.parts_ready > 0) {
    publish_(waiter, MakeReadyWord(ReadyState::kLoading, copy.parts_ready));
  }
  Hasten(id, priority, batch);
  if (copy.ticket != 0) device_link_->Hasten(copy.ticket);
}

void Mover::UnleaseOnDevice(ObjectId id) {
  DeviceCopy& copy = *device_copies_.at(id);
  if (--copy.lease_count > 0) return;
  if (copy.failed) DropDeviceCopy(id);
  ReleaseIfGone(id);
}

// --- down ---------------------------------------------------------------------------------------

// Out of the device, whose policy has forgotten it. When it fails it is where it was.
absl::Status Mover::MoveDown(ObjectId id, uint32_t& retry_after_ms, MayLeave may_leave) {
  Entry& entry = catalog_.at(id);
  ++metrics_.evicted_hbm;
  if (entry.host != nullptr) {
    DropDeviceCopy(id);
    return absl::OkStatus();
  }
  const absl::StatusOr<Extent> extent =
      MakeRoomFor(entry.tenant, entry.kind, entry.payload_bytes(), retry_after_ms, may_leave, id);
  if (!extent.ok()) {
    const bool only_copy = entry.record == kNoRecord;
    if (only_copy && retry_after_ms > 0) {
      --metrics_.evicted_hbm;
      return extent.status();
    }
    ++metrics_.evicted_host;
    metrics_.evicted_unwritten += only_copy;
    retry_after_ms = 0;
    DropDeviceCopy(id);
    ReleaseIfGone(id);
    return absl::OkStatus();
  }
  const MemoryCopy& above = *OnDevice(id)->memory;
  entry.host = MemoryCopy::New(*extent, above.layout, above.part_count, above.position);
  StartDescent(id);
  ++metrics_.lowered_objects;
  metrics_.lowered_bytes += entry.payload_bytes();
  DropDeviceCopy(id);  // what comes to lie there waits for the move
  return absl::OkStatus();
}

// The host copy has its room and nothing else.
void Mover::StartDescent(ObjectId id) {
  const Entry& entry = catalog_.at(id);
  MemoryCopy& host = *entry.host;
  const MemoryCopy& above = *OnDevice(id)->memory;
  host.position = above.position;
  host.parent = above.parent;
  host.depth = above.depth;
  std::copy(above.part_crcs().begin(), above.part_crcs().end(), host.part_crcs().begin());
  Loading& loading = loading_[id];
  loading.from_device = true;
  loading.priority = IoPriority::kQueued;  // no demand for the NVMe device
  DeviceMove move;
  move.direction = kernels::CopyDirection::kFromDevice;
  move.host = tenants_[entry.tenant].host->At(host.extent);
  move.device = tenants_[entry.tenant].device->At(above.extent);
  move.parts = layouts_[host.layout].Parts(entry.token_count, entry.grain_count);
  move.part_crcs.assign(above.part_crcs().begin(), above.part_crcs().end());
  move.progress = [this, id](uint32_t parts) { Progressed(id, parts); };
  move.done = [this, id](const absl::Status& status) {
    EndLoad(id, status);
    // It may be worth writing by now; up there it could not be.
    const Entry& lowered = catalog_.at(id);
    if (status.ok() && lowered.visible() && lowered.host != nullptr && lowered.host->ready &&
        lowered.record == kNoRecord && !lowered.queued && !lowered.host->writing) {
      OfferToNvme(id);
    }
  };
  device_link_->Start(std::move(move));
}

void Mover::DescentFailed(ObjectId id, const absl::Status& status) {
  const Entry& entry = catalog_.at(id);
  spdlog::warn("{} did not come down from the device: {}", entry.key.ToHex(), status.ToString());
  if (absl::IsDataLoss(status)) ++metrics_.corrupt_objects;
  const DeviceCopy* above = OnDevice(id);
  if (above != nullptr && above->ready() && above->lease_count == 0) DropDeviceCopy(id);
  if (entry.lease_count == 0) DropHostCopy(id);
}

void Mover::DropDeviceCopy(ObjectId id) {
  Entry& entry = catalog_.at(id);
  if (!entry.in_device) return;
  Tenant& tenant = tenants_[entry.tenant];
  const DeviceCopy& copy = *device_copies_.at(id);
  const bool was_ready = copy.ready();
  if (was_ready) {
    --tenant.device_objects;
    tenant.device_policy->Forget(id);
  }
  tenant.device->Free(copy.memory->extent);
  device_copies_.erase(id);
  entry.in_device = false;
  if (entry.host != nullptr) return;
  if (was_ready && listener_ != nullptr) listener_->Left(id);
  if (entry.placed) {
    entry.placed = false;
    tenant.placement->Left(id, SpaceOf(entry));
  }
}

}  // namespace terrace
