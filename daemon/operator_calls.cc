// The calls of CacheService that operators make: what is stored, what it costs, is it still right.
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "config/text.h"
#include "daemon/cache_service.h"

namespace terrace {

namespace {

constexpr uint32_t kMaxListed = 1000;
constexpr uint32_t kVerifyScan = 4096;  // empty slots looked over in one step

std::string Shrinking(uint64_t excess_bytes, uint64_t held_bytes, std::string_view by) {
  if (excess_bytes == 0) return "";
  std::string text = absl::StrCat(", shrinking: ", excess_bytes, " bytes to go");
  if (held_bytes > 0) absl::StrAppend(&text, ", ", held_bytes, " bytes held by ", Sv(by));
  return text;
}

}  // namespace

absl::StatusOr<FlushReply> CacheService::Flush(SessionId id) {
  absl::StatusOr<Session*> session = Get(id, "flush");
  if (!session.ok()) return session.status();
  return FlushReply{mover_.pending_objects(), mover_.pending_bytes()};
}

// HBM and host memory. Returns what is above the capacity of host memory.
uint64_t CacheService::AddMemoryTiers(StatusReply& reply) const {
  if (options_.hbm.enabled()) {
    TierStatus hbm;
    hbm.name = "hbm";
    hbm.detail = absl::StrCat("device ", options_.hbm.device);
    for (const Tenant& tenant : tenants_) {
      if (tenant.device == nullptr) continue;
      hbm.capacity_bytes += tenant.device->capacity_bytes();
      hbm.used_bytes += tenant.device->used_bytes();
      hbm.objects += tenant.device_objects;
    }
    hbm.populated_bytes = hbm.capacity_bytes;
    reply.tiers.push_back(std::move(hbm));
  }
  TierStatus host;
  host.name = "host";
  uint64_t excess_bytes = 0, held_bytes = 0;
  for (const Tenant& tenant : tenants_) {
    host.capacity_bytes += tenant.host->capacity_bytes();
    host.used_bytes += tenant.host->used_bytes();
    host.populated_bytes += tenant.host->populated_bytes();
    host.huge_page_bytes += tenant.host->HugePageBytes();
    host.objects += tenant.host_objects;
    excess_bytes += tenant.host->excess_bytes();
    held_bytes += tenant.shrink.last_held_bytes;
  }
  host.detail = host.huge_page_bytes > 0 ? "huge pages" : "4 KiB pages";
  host.detail += Shrinking(excess_bytes, held_bytes, "leases");
  reply.tiers.push_back(std::move(host));
  return excess_bytes;
}

absl::StatusOr<StatusReply> CacheService::Status(SessionId id) {
  absl::StatusOr<Session*> session = Get(id, "status");
  if (!session.ok()) return session.status();
  StatusReply reply;
  reply.version = kVersion;
  reply.pid = getpid();
  const uint64_t now_us = MonotonicUs();
  reply.uptime_ms = (now_us - started_us_) / 1000;
  reply.socket_path = options_.server.socket_path;
  reply.state_dir = options_.server.state_dir;
  reply.verify = verify_;

  const uint64_t excess_bytes = AddMemoryTiers(reply);
  if (nvme_ != nullptr) {
    const NvmeStats stats = nvme_->Stats();
    TierStatus nvme;
    nvme.name = "nvme";
    nvme.detail = stats.engine + ", " + stats.health;
    nvme.capacity_bytes = stats.capacity_bytes;
    nvme.used_bytes = stats.used_bytes;
    nvme.objects = stats.records;
    reply.tiers.push_back(std::move(nvme));
    reply.counters = {{"nvme_written_bytes", stats.written_bytes},
                      {"nvme_read_bytes", stats.read_bytes},
                      {"nvme_live_bytes", stats.live_bytes},
                      {"nvme_device_written_bytes", stats.device_written_bytes},
                      {"nvme_reinserted_bytes", stats.reinserted_bytes},
                      {"nvme_writes_rejected", stats.writes_rejected},
                      {"nvme_budget_rejected", stats.budget_rejected},
                      {"nvme_read_errors", stats.read_errors},
                      {"nvme_write_errors", stats.write_errors},
                      {"nvme_corrupt_records", stats.corrupt_records},
                      {"nvme_torn_records", stats.torn_records},
                      {"nvme_lost_records", stats.lost_records},
                      {"nvme_clean_segments", stats.clean_segments},
                      {"nvme_sealed_segments", stats.sealed_segments},
                      {"nvme_reclaimed_segments", stats.reclaimed_segments}};
  }
  sessions_.ForEach([&](const Session& open) {
    reply.sessions.push_back({open.id, open.peer.pid, open.peer.uid, open.client_name,
                              tenants_[open.tenant].name, open.leases.size(),
                              open.reservations.size(), (now_us - open.opened_us) / 1000});
  });
  reply.objects = catalog_.visible_count();
  reply.leases = lease_count_;
  reply.reservations = reservation_count_;
  auto own = metrics_.List();
  reply.counters.insert(reply.counters.begin(), own.begin(), own.end());
  reply.counters.emplace_back("shrink_pending_bytes", excess_bytes);
  for (const Counters& more : {prefetch_.Counters(), more_counters_()}) {
    reply.counters.insert(reply.counters.end(), more.begin(), more.end());
  }
  reply.counters.emplace_back("pending_write_objects", mover_.pending_objects());
  reply.counters.emplace_back("pending_write_bytes", mover_.pending_bytes());
  return reply;
}

ObjectInfo CacheService::Detail(ObjectId id) const {
  const Entry& entry = catalog_.at(id);
  const DeviceCopy* above = mover_.OnDevice(id);
  ObjectInfo info;
  info.key = entry.key;
  info.in_hbm = above != nullptr && above->ready();
  const MemoryCopy* copy = info.in_hbm ? above->memory.get() : entry.host.get();
  if (copy != nullptr) {
    info.parent = copy->parent;
    info.part_count = copy->part_count;
  }
  info.fingerprint = catalog_.fingerprint(entry.fingerprint);
  info.kind = entry.kind;
  info.token_count = entry.token_count;
  info.grain_count = entry.grain_count;
  info.cost_us = entry.cost_us;
  info.payload_bytes = entry.payload_bytes();
  info.in_host = entry.host != nullptr && entry.host->ready;
  info.in_nvme = entry.record != kNoRecord;
  info.pinned = entry.pinned;
  info.lease_count = entry.lease_count + (above != nullptr ? above->lease_count : 0);
  return info;
}

absl::StatusOr<ListReply> CacheService::List(SessionId id, uint64_t cursor, uint32_t limit) {
  absl::StatusOr<Session*> session = Get(id, "list");
  if (!session.ok()) return session.status();
  if (limit == 0 || limit > kMaxListed) {
    return absl::InvalidArgumentError(
        absl::StrCat("limit ", limit, " is outside 1 .. ", kMaxListed));
  }
  ListReply reply;
  uint64_t slot = cursor;
  for (; slot < catalog_.slot_count() && reply.objects.size() < limit; ++slot) {
    const Entry& entry = catalog_.at(slot);
    if (entry.visible() && entry.tenant == (*session)->tenant) {
      reply.objects.push_back(Detail(static_cast<ObjectId>(slot)));
    }
  }
  reply.next_cursor = slot < catalog_.slot_count() ? slot : 0;
  return reply;
}

absl::StatusOr<ObjectInfo> CacheService::Show(SessionId id, const ObjectKey& key) {
  absl::StatusOr<Session*> session = Get(id, "show");
  if (!session.ok()) return session.status();
  const ObjectId object = FindVisible(**session, key);
  if (object == kNoObject) return absl::NotFoundError(key.ToHex() + " is not stored");
  return Detail(object);
}

absl::Status CacheService::Remove(SessionId id, const ObjectKey& key) {
  absl::StatusOr<Session*> session = Get(id, "remove");
  if (!session.ok()) return session.status();
  const ObjectId object = FindVisible(**session, key);
  if (object == kNoObject) return absl::NotFoundError(key.ToHex() + " is not stored");
  mover_.Remove(object);
  return absl::OkStatus();
}

absl::Status CacheService::Pin(SessionId id, const ObjectKey& key, bool pinned) {
  absl::StatusOr<Session*> session = Get(id, "pin");
  if (!session.ok()) return session.status();
  const ObjectId object = FindVisible(**session, key);
  if (object == kNoObject) return absl::NotFoundError(key.ToHex() + " is not stored");
  mover_.SetPinned(object, pinned);
  return absl::OkStatus();
}

absl::StatusOr<VerifyReply> CacheService::Verify(SessionId id, uint64_t cursor) {
  absl::StatusOr<Session*> found = Get(id, "verify");
  if (!found.ok()) return found.status();
  VerifyProgress& progress = (*found)->verify;
  if (progress.has_step) {
    progress.has_step = false;
    return std::exchange(progress.step, VerifyReply{});
  }
  VerifyReply waiting;
  waiting.next_cursor = cursor;
  if (progress.busy) return waiting;

  if (cursor == 0 && nvme_ != nullptr && !nvme_->lost().empty()) {
    // What was durable and is gone with its segment cannot be read back: it is told of first.
    waiting.corrupt_keys = nvme_->lost();
    waiting.checked = waiting.corrupt = waiting.corrupt_keys.size();
    waiting.next_cursor = 1;
    return waiting;
  }

  // Cursor c > 0 means "continue at slot c - 1", so that 0 can mean both start and end.
  uint64_t slot = cursor == 0 ? 0 : cursor - 1;
  const uint64_t scan_end = slot + kVerifyScan;
  while (slot < catalog_.slot_count() && slot < scan_end &&
         !(catalog_.at(slot).visible() && catalog_.at(slot).tenant == (*found)->tenant)) {
    ++slot;
  }
  if (slot >= catalog_.slot_count()) return VerifyReply{};
  if (slot == scan_end) {
    waiting.next_cursor = slot + 1;
    return waiting;
  }
  progress.busy = true;
  mover_.Verify(slot, [this, id, slot, key = catalog_.at(slot).key](Mover::VerifyOutcome outcome) {
    Session* session = sessions_.Find(id);
    if (session == nullptr) return;
    VerifyProgress& done = session->verify;
    done.busy = false;
    done.has_step = true;
    done.step.next_cursor = slot + 2;
    done.step.checked = 1;
    done.step.bytes = outcome.bytes;
    done.step.corrupt = outcome.corrupt ? 1 : 0;
    if (outcome.corrupt) done.step.corrupt_keys.push_back(key);
  });
  if (progress.busy) {
    waiting.next_cursor = slot + 1;
    return waiting;
  }
  progress.has_step = false;
  return std::exchange(progress.step, VerifyReply{});
}

}  // namespace terrace
