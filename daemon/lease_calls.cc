// The calls of CacheService that lend objects out.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/cache_service.h"

namespace terrace {

uint64_t CacheService::DeadlineUs(const Session& session, uint32_t ttl_ms) const {
  if (session.on_ready && ttl_ms == 0) return UINT64_MAX;
  const uint64_t longest_ms = options_.limits.max_lease_ttl_s * 1000;
  const uint64_t wanted_ms = ttl_ms != 0 ? ttl_ms : options_.limits.lease_ttl_s * 1000;
  return MonotonicUs() + std::min(wanted_ms, longest_ms) * 1000;
}

absl::Status CacheService::CheckAcquirable(const Entry& entry, const ObjectLayout& layout) const {
  const bool same =
      catalog_.fingerprint(entry.fingerprint) == layout.fingerprint && entry.kind == layout.kind &&
      layout.CheckObject(entry.token_count, entry.grain_count).ok() &&
      layout.PayloadBytes(entry.token_count, entry.grain_count) == entry.payload_bytes();
  if (same) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(entry.key.ToHex(), " was stored with another layout"));
}

std::optional<uint32_t> CacheService::LayoutOf(const Entry& entry) const {
  const auto found = layout_by_fingerprint_.find(entry.fingerprint);
  if (found == layout_by_fingerprint_.end()) return std::nullopt;
  return CheckAcquirable(entry, layouts_[found->second]).ok() ? std::optional(found->second)
                                                              : std::nullopt;
}

bool CacheService::LoadFailed(ObjectId id, bool on_device) const {
  const Entry& entry = catalog_.at(id);
  const DeviceCopy* above = mover_.OnDevice(id);
  if (on_device && above != nullptr) return above->failed;
  return entry.host != nullptr && !entry.host->ready && !mover_.loading(id);
}

// Where a lease finds all of it, in its own memory if it is there.
TierId CacheService::SourceOf(ObjectId id, bool on_device) const {
  const Entry& entry = catalog_.at(id);
  const bool above = entry.in_device && mover_.OnDevice(id)->ready();
  const bool in_host = entry.host != nullptr && entry.host->ready;
  if (above && (on_device || !in_host)) return TierId::kHbm;
  return in_host ? TierId::kHost : TierId::kNvme;
}

AcquireResult CacheService::AcquireOne(Session& session, uint32_t layout_id, const ObjectKey& key,
                                       const AcquireOptions& options, uint64_t batch,
                                       Lease& lease) {
  AcquireResult result;
  const ObjectId id = FindVisible(session, key);
  if (id == kNoObject) {
    ++metrics_.acquire_misses;
    demand_[session.tenant].Acquired(layout_id, key, 0, 0);
    result.status = absl::NotFoundError(absl::StrCat(key.ToHex(), " is not stored"));
    return result;
  }
  Entry& entry = catalog_.at(id);
  result.status = CheckAcquirable(entry, layouts_[layout_id]);
  if (!result.status.ok()) return result;
  const bool on_device = options.memory == LeaseMemory::kDevice;
  const auto priority = static_cast<IoPriority>(options.priority);
  if (LoadFailed(id, on_device)) {
    result.status = absl::UnavailableError(
        absl::StrCat(key.ToHex(), ": a read failed and its readers have not left yet"));
    return result;
  }
  result.source = SourceOf(id, on_device);
  if (on_device && !entry.in_device) {
    result.status = mover_.PromoteToDevice(id, layout_id, priority, batch, result.retry_after_ms);
  } else if (!on_device && entry.host == nullptr) {
    result.status = mover_.Promote(id, layout_id, priority, batch, result.retry_after_ms);
  }
  if (!result.status.ok()) return result;
  std::optional<uint32_t> slot = session.board.Take();
  if (!slot) {
    result.status = Limit(absl::StrCat("a session can wait for ", session.board.slots(),
                                       " objects at a time: release some leases"));
    return result;
  }
  lease.objects.push_back({id, *slot, on_device});
  const Waiter waiter{session.id, *slot};
  if (on_device) {
    mover_.LeaseOnDevice(id, waiter, priority, batch);
  } else {
    ++entry.lease_count;
  }
  const MemoryCopy& copy = on_device ? *mover_.OnDevice(id)->memory : *entry.host;
  if (copy.ready) {
    session.board.Publish(*slot, MakeReadyWord(ReadyState::kReady, copy.part_count));
    if (verify_ == VerifyMode::kAlways) {
      const auto crcs = copy.part_crcs();
      result.part_crcs.assign(crcs.begin(), crcs.end());
    }
  } else if (!on_device) {
    mover_.Hasten(id, priority, batch);
    mover_.Join(id, waiter);
  }
  ++(result.source == TierId::kHbm    ? metrics_.acquired_hbm
     : result.source == TierId::kHost ? metrics_.acquired_host
                                      : metrics_.acquired_nvme);
  mover_.Touched(id);
  demand_[session.tenant].Acquired(layout_id, key, entry.payload_bytes(), mover_.RemakeUs(entry));
  result.offset = copy.extent.offset;
  result.payload_bytes = entry.payload_bytes();
  result.token_count = entry.token_count;
  result.grain_count = entry.grain_count;
  result.board_slot = *slot;
  // As of a tier below, to those who do not know this one.
  if (!session.knows_hbm && result.source == TierId::kHbm) result.source = TierId::kNvme;
  return result;
}

absl::StatusOr<AcquireReply> CacheService::Acquire(SessionId id, uint32_t layout_id,
                                                   absl::Span<const ObjectKey> keys,
                                                   const AcquireOptions& options) {
  absl::StatusOr<Session*> session = Get(id, "acquire");
  if (!session.ok()) return session.status();
  absl::StatusOr<const ObjectLayout*> layout = GetLayout(layout_id);
  if (!layout.ok()) return layout.status();
  absl::Status count = CheckKeyCount(keys.size());
  if (!count.ok()) return count;
  if (options.priority > static_cast<uint8_t>(IoPriority::kBackground)) {
    return absl::InvalidArgumentError(
        absl::StrCat("priority ", options.priority, " is outside 0 .. 4"));
  }
  if (options.memory == LeaseMemory::kDevice && tenants_[(*session)->tenant].device == nullptr) {
    return absl::FailedPreconditionError(
        "memory: device, but this daemon has no HBM tier (hbm.capacity = 0)");
  }
  if ((*session)->leases.size() >= options_.limits.max_leases_per_session) {
    return Limit(absl::StrCat(
        "limits.max_leases_per_session = ", options_.limits.max_leases_per_session, " reached"));
  }
  prefetch_.Demanded(id, keys);
  AcquireReply reply;
  Lease lease;
  const uint64_t batch = ++last_batch_;
  for (const ObjectKey& key : keys) {
    reply.results.push_back(AcquireOne(**session, layout_id, key, options, batch, lease));
  }
  // The deepest first, so that by recency, too, a child leaves before its parent.
  for (auto leased = lease.objects.rbegin(); leased != lease.objects.rend(); ++leased) {
    mover_.NoteUse(leased->object);
    prefetch_.Touched(leased->object);
  }
  if (lease.objects.empty()) return reply;
  lease.deadline_us = DeadlineUs(**session, options.ttl_ms);
  reply.deadline_us = lease.deadline_us;
  reply.lease_id = sessions_.NextId();
  sessions_.TrackDeadline(lease.deadline_us, id, reply.lease_id);
  (*session)->leases.emplace(reply.lease_id, std::move(lease));
  ++lease_count_;
  return reply;
}

void CacheService::EndLease(Session& session, const Lease& lease) {
  --lease_count_;
  for (const LeasedObject& leased : lease.objects) {
    mover_.Leave(leased.object, {session.id, leased.slot});
    session.board.Give(leased.slot);
    if (leased.on_device) {
      mover_.UnleaseOnDevice(leased.object);
    } else {
      mover_.Unlease(leased.object);
    }
  }
}

absl::Status CacheService::Release(SessionId id, absl::Span<const uint64_t> lease_ids) {
  absl::StatusOr<Session*> session = Get(id, "release");
  if (!session.ok()) return session.status();
  for (uint64_t lease_id : lease_ids) {
    auto it = (*session)->leases.find(lease_id);
    if (it == (*session)->leases.end()) continue;  // it ran out before: nothing left to release
    sessions_.ForgetDeadline(it->second.deadline_us, id, lease_id);
    EndLease(**session, it->second);
    (*session)->leases.erase(it);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> CacheService::Renew(SessionId id, uint64_t lease_id, uint32_t ttl_ms) {
  absl::StatusOr<Session*> session = Get(id, "renew");
  if (!session.ok()) return session.status();
  auto it = (*session)->leases.find(lease_id);
  if (it == (*session)->leases.end()) {
    return absl::NotFoundError(absl::StrCat("lease ", lease_id, " is unknown or has run out"));
  }
  sessions_.ForgetDeadline(it->second.deadline_us, id, lease_id);
  it->second.deadline_us = DeadlineUs(**session, ttl_ms);
  sessions_.TrackDeadline(it->second.deadline_us, id, lease_id);
  return it->second.deadline_us;
}

}  // namespace terrace
