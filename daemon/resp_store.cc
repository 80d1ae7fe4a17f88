#include "daemon/resp_store.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace {
namespace {

constexpr std::array<uint64_t, 4> kUnitBytes = {64, 4 << 10, 64 << 10, 1 << 20};
constexpr uint32_t kValuePart = 1;  // all of the payload
constexpr uint64_t kMostHolds = 1000;
constexpr uint64_t kHoldShare = 4;  // of the tenant's memory, at most one part in so many

// At the start of every payload; little-endian.
struct ValueHeader {
  char magic[8] = {'T', 'R', 'C', 'R', 'E', 'S', 'P', '1'};
  uint64_t value_bytes = 0;
  uint8_t zeros[48] = {};
};
static_assert(sizeof(ValueHeader) == 64);

Fingerprint FingerprintOf(std::string_view what) {
  return OpaqueKey(Salt{}, Fingerprint{}, what).bytes;
}

// The value's length, or nullopt when it is no header of a value that fits the payload.
std::optional<uint64_t> ValueBytes(const uint8_t* payload, uint64_t payload_bytes) {
  ValueHeader header, expected;
  std::memcpy(&header, payload, sizeof header);
  if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0) return std::nullopt;
  if (header.value_bytes > payload_bytes - sizeof header) return std::nullopt;
  return header.value_bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RespStore>> RespStore::Open(CacheService& service,
                                                           const RespSection& options) {
  std::unique_ptr<RespStore> store(new RespStore(service, options));
  absl::Status started = store->Start(options.tenant);
  if (!started.ok()) return started;
  return store;
}

absl::Status RespStore::Start(const std::string& tenant) {
  const auto opened = service_.OpenLocalSession(
      tenant, "resp", [this](uint32_t slot, uint32_t word) { Ready(slot, word); });
  if (!opened.ok()) return opened.status();
  session_ = opened->session_id;
  salt_ = opened->salt;
  memory_ = service_.TenantOfSession(session_).host.get();
  const auto holds = service_.OpenLocalSession(tenant, "resp, found by EXISTS", [](auto, auto) {});
  if (!holds.ok()) return holds.status();
  holds_session_ = holds->session_id;
  std::vector<uint32_t> layout_ids;
  for (size_t i = 0; i < units_.size(); ++i) {
    ObjectLayout layout;
    layout.kind = ObjectKind::kOpaque;
    layout.fingerprint =
        FingerprintOf(absl::StrCat("terrace RESP value in units of ", kUnitBytes[i]));
    layout.part_bytes_per_token = {static_cast<uint32_t>(kUnitBytes[i])};
    const auto layout_id = service_.RegisterLayout(session_, layout, std::nullopt);
    if (!layout_id.ok()) return layout_id.status();
    units_[i] = {kUnitBytes[i], layout.fingerprint, *layout_id};
    layout_ids.push_back(*layout_id);
  }
  service_.Observe(&index_, session_, layout_ids);
  return absl::OkStatus();
}

RespStore::~RespStore() {
  service_.Observe(nullptr, session_, {});
  service_.CloseSession(session_);
  service_.CloseSession(holds_session_);
}

ObjectKey RespStore::KeyOf(std::string_view name) const {
  static const Fingerprint kNames = FingerprintOf("terrace RESP keys");
  return OpaqueKey(salt_, kNames, name);
}

const RespStore::Unit* RespStore::UnitOf(const ObjectInfo& object) const {
  const auto found = std::find_if(units_.begin(), units_.end(), [&](const Unit& unit) {
    return unit.fingerprint == object.fingerprint;
  });
  return found == units_.end() ? nullptr : &*found;
}

// --- values in ----------------------------------------------------------------------------------

RespRoom RespStore::Reserve(uint64_t bytes) {
  RespRoom room;
  const uint64_t needed = sizeof(ValueHeader) + bytes;
  const auto unit = std::find_if(units_.begin(), units_.end(), [&](const Unit& candidate) {
    return needed <= candidate.bytes * kMaxChunkTokens;
  });
  if (unit == units_.end() || needed > kMaxPayloadBytes - units_.back().bytes) {
    room.status = absl::InvalidArgumentError(absl::StrCat("a value of ", bytes, " bytes"));
    return room;
  }
  ReserveItem item;
  item.token_count = static_cast<uint32_t>((needed + unit->bytes - 1) / unit->bytes);
  const auto reserved = service_.ReserveUnnamed(session_, unit->layout_id, item);
  room.status = reserved.ok() ? reserved->status : reserved.status();
  if (!room.status.ok()) {
    if (reserved.ok()) room.retry_after_ms = reserved->retry_after_ms;
    return room;
  }
  const Room reservation = {memory_->At({reserved->offset, 0}), bytes,
                            item.token_count * unit->bytes};
  rooms_.emplace(reserved->reservation_id, reservation);
  room.id = reserved->reservation_id;
  room.data = reservation.payload + sizeof(ValueHeader);
  return room;
}

absl::Status RespStore::Commit(uint64_t id, std::string_view name, uint32_t crc) {
  const auto found = rooms_.find(id);
  if (found == rooms_.end()) return absl::NotFoundError("the value was given up");
  const Room room = found->second;
  rooms_.erase(found);
  ValueHeader header;
  header.value_bytes = room.value_bytes;
  std::memcpy(room.payload, &header, sizeof header);
  const uint64_t end = sizeof header + room.value_bytes;
  std::memset(room.payload + end, 0, room.payload_bytes - end);
  uint32_t whole = kernels::Crc32c(&header, sizeof header);
  whole = kernels::Crc32cConcat(whole, crc, room.value_bytes);
  CommitItem item;
  item.reservation_id = id;
  item.part_crcs = {0, kernels::Crc32c(room.payload + end, room.payload_bytes - end, whole)};
  const ValueIndex::AtOnce at_once(index_);
  const absl::Status status = service_.CommitAs(session_, KeyOf(name), item);
  if (!status.ok()) service_.Abort(session_, {&id, 1}).IgnoreError();
  return status;
}

void RespStore::Abort(uint64_t id) {
  rooms_.erase(id);
  service_.Abort(session_, {&id, 1}).IgnoreError();
}

// --- values out ---------------------------------------------------------------------------------

void RespStore::Acquire(std::string_view name, absl::AnyInvocable<void(RespValue)> done) {
  RespValue value;
  const ObjectKey key = KeyOf(name);
  const auto object = service_.Show(session_, key);
  const Unit* unit = object.ok() ? UnitOf(*object) : nullptr;
  if (unit == nullptr) {
    value.status = absl::NotFoundError("no such value");
    std::move(done)(std::move(value));
    return;
  }
  const auto acquired = service_.Acquire(session_, unit->layout_id, {&key, 1}, AcquireOptions{});
  const absl::Status status = acquired.ok() ? acquired->results.front().status : acquired.status();
  if (!status.ok()) {
    value.status = status;
    if (acquired.ok()) value.retry_after_ms = acquired->results.front().retry_after_ms;
    std::move(done)(std::move(value));
    return;
  }
  const AcquireResult& result = acquired->results.front();
  value.lease = acquired->lease_id;
  value.data = memory_->At({result.offset, 0});
  if (result.part_crcs.size() > kValuePart) {
    value.check = true;
    value.crc = result.part_crcs[kValuePart];
  }
  const auto waiting = waiting_.insert_or_assign(
      result.board_slot, Waiting{std::move(value), result.payload_bytes, std::move(done)});
  if (result.source == TierId::kHost) {
    Ready(waiting.first->first, MakeReadyWord(ReadyState::kReady, kValuePart + 1));
  }
}

// Also from within the mover: calls nothing of the service.
void RespStore::Ready(uint32_t slot, uint32_t word) {
  const ReadyState state = ReadyWordState(word);
  const auto found = waiting_.find(slot);
  if (found == waiting_.end() || state == ReadyState::kLoading) return;
  Waiting waiting = std::move(found->second);
  waiting_.erase(found);
  RespValue& value = waiting.value;
  value.status = absl::NotFoundError("it could not be read");
  if (state == ReadyState::kReady) {
    if (const auto bytes = ValueBytes(value.data, waiting.payload_bytes)) {
      value.status = absl::OkStatus();
      value.bytes = *bytes;
      value.data += sizeof(ValueHeader);
    }
  }
  std::move(waiting.done)(std::move(value));
}

void RespStore::Release(uint64_t lease) { service_.Release(session_, {&lease, 1}).IgnoreError(); }

int64_t RespStore::Exists(std::string_view name) const {
  const auto payload_bytes = index_.Find(KeyOf(name));
  if (!payload_bytes) return -1;
  // Of one that is only on the device the exact length is there, too: not worth reading it.
  return static_cast<int64_t>(*payload_bytes - sizeof(ValueHeader));
}

void RespStore::Hold(std::string_view name) {
  if (exists_lease_ms_ == 0 || holds_.size() >= kMostHolds) return;
  const ObjectKey key = KeyOf(name);
  const auto object = service_.Show(session_, key);
  const Unit* unit = object.ok() ? UnitOf(*object) : nullptr;
  if (unit == nullptr || !object->in_host) return;
  const uint64_t bytes = object->payload_bytes;
  if (held_bytes_ + bytes > memory_->capacity_bytes() / kHoldShare) return;
  AcquireOptions options;
  options.ttl_ms = static_cast<uint32_t>(2 * exists_lease_ms_);  // EndHolds comes first
  const auto acquired = service_.Acquire(holds_session_, unit->layout_id, {&key, 1}, options);
  if (!acquired.ok() || acquired->lease_id == 0) return;
  holds_.push_back({MonotonicUs() + exists_lease_ms_ * 1000, acquired->lease_id, bytes});
  held_bytes_ += bytes;
}

void RespStore::EndHolds(uint64_t now_us) {
  while (!holds_.empty() && holds_.front().until_us <= now_us) {
    service_.Release(holds_session_, {&holds_.front().lease, 1}).IgnoreError();
    held_bytes_ -= holds_.front().bytes;
    holds_.pop_front();
  }
}

bool RespStore::Remove(std::string_view name) {
  return service_.Remove(session_, KeyOf(name)).ok();
}

RespFacts RespStore::Facts() {
  return {service_.object_count(), memory_->used_bytes(), memory_->capacity_bytes()};
}

uint32_t RespStore::Checksum(const uint8_t* data, uint64_t bytes, uint32_t crc) const {
  return kernels::Crc32c(data, bytes, crc);
}

bool RespStore::Check(const RespValue& value) const {
  const uint64_t end = sizeof(ValueHeader) + value.bytes;
  const auto unit = std::find_if(kUnitBytes.begin(), kUnitBytes.end(),
                                 [&](uint64_t bytes) { return end <= bytes * kMaxChunkTokens; });
  const uint64_t part_bytes = AlignUp(end, *unit);
  return kernels::Crc32c(value.data - sizeof(ValueHeader), part_bytes) == value.crc;
}

}  // namespace terrace
