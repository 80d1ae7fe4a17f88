#include "daemon/cache_service.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

// Of each tier, up to four times its size matters, and some GiB more.
constexpr uint64_t kCurveTimes = 4;
constexpr uint64_t kCurveMoreBytes = uint64_t{4} << 30;

}  // namespace

CacheService::CacheService(const Options& options, std::vector<Tenant>& tenants, NvmeTier* nvme,
                           const PostFn& post, DeviceLink* device_link)
    : options_(options),
      tenants_(tenants),
      nvme_(nvme),
      live_(options, options),
      verify_(options.host.verify == "always" ? VerifyMode::kAlways : VerifyMode::kCrossing),
      started_us_(MonotonicUs()),
      transcoder_(nvme == nullptr ? nullptr
                                  : std::make_unique<Transcoder>(
                                        options.codec, options.server.state_dir, post, metrics_)),
      mover_(catalog_, tenants, layouts_, nvme, transcoder_.get(), metrics_, options.nvme,
             [this](const Waiter& waiter, uint32_t word) {
               if (Session* session = sessions_.Find(waiter.session)) {
                 session->board.Publish(waiter.slot, word);
                 if (session->on_ready) session->on_ready(waiter.slot, word);
               }
             }),
      prefetch_(options, catalog_, tenants, mover_, metrics_,
                [this](const Entry& entry) { return LayoutOf(entry); }) {
  if (options.host.sharing == "fair") mover_.ShareFairly();
  mover_.UseDevice(device_link);
  const uint64_t nvme_bytes = nvme == nullptr ? 0 : options.nvme.capacity.bytes;
  for (const Tenant& tenant : tenants_) {
    const uint64_t largest = std::max(tenant.host->max_capacity_bytes(), nvme_bytes);
    demand_.emplace_back(kCurveTimes * largest + kCurveMoreBytes, started_us_);
  }
}

void CacheService::Tick() {
  const uint64_t now_us = MonotonicUs();
  while (auto expired = sessions_.PopExpired(now_us)) {
    Session& session = *sessions_.Find(expired->first);
    auto it = session.leases.find(expired->second);
    ++metrics_.leases_expired;
    EndLease(session, it->second);
    session.leases.erase(it);
  }
  for (Demand& demand : demand_) demand.Tick(now_us);
  mover_.Tick();
  prefetch_.Tick();
}

// --- sessions -----------------------------------------------------------------------------------

absl::StatusOr<uint16_t> CacheService::TenantOf(const PeerCredentials& peer,
                                                const std::string& wanted) const {
  bool known_uid = false;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    const Tenant& tenant = tenants_[i];
    if (std::find(tenant.uids.begin(), tenant.uids.end(), peer.uid) == tenant.uids.end()) continue;
    known_uid = true;
    if (wanted.empty() || wanted == tenant.name) return static_cast<uint16_t>(i);
  }
  // Who could read the memory of all tenants anyhow, to operate the daemon; by name only, so that
  // nobody's engine becomes another's tenant unawares.
  const bool is_operator = peer.uid == 0 || peer.uid == geteuid();
  for (size_t i = 0; is_operator && !known_uid && i < tenants_.size(); ++i) {
    if (wanted == tenants_[i].name) return static_cast<uint16_t>(i);
  }
  if (known_uid) {
    return absl::PermissionDeniedError(
        absl::StrCat("tenant '", wanted, "' is unknown or does not list uid ", peer.uid));
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "uid ", peer.uid, " belongs to no tenant: add it to 'uids' of a [[tenants]] entry",
      is_operator ? ", or name the tenant to act for (--tenant)" : ""));
}

absl::StatusOr<Welcome> CacheService::OpenSession(const PeerCredentials& peer,
                                                  const ClientHello& hello) {
  if (hello.protocol_major != kProtocolMajor) {
    return absl::FailedPreconditionError(
        absl::StrCat("protocol mismatch: client speaks ", hello.protocol_major,
                     ", this daemon speaks ", kProtocolMajor, "; update the older of the two"));
  }
  if (sessions_.size() >= options_.limits.max_sessions) {
    return Limit(absl::StrCat("limits.max_sessions = ", options_.limits.max_sessions, " reached"));
  }
  absl::StatusOr<uint16_t> tenant_index = TenantOf(peer, hello.tenant);
  if (!tenant_index.ok()) return tenant_index.status();
  auto welcome = OpenFor(*tenant_index, peer, hello.client_name);
  if (welcome.ok()) {
    sessions_.Find(welcome->session_id)->knows_hbm = hello.protocol_minor >= kMinorWithHbm;
  }
  return welcome;
}

void CacheService::CloseSession(SessionId id) {
  Session* session = sessions_.Find(id);
  if (session == nullptr) return;
  spdlog::info("session {} closed: {} leases and {} reservations freed", id, session->leases.size(),
               session->reservations.size());
  for (const auto& [lease_id, lease] : session->leases) {
    sessions_.ForgetDeadline(lease.deadline_us, id, lease_id);
    EndLease(*session, lease);
  }
  for (const auto& [reservation_id, object] : session->reservations) DropReservation(object);
  prefetch_.SessionClosed(id);
  sessions_.Close(id);
}

absl::StatusOr<Session*> CacheService::Get(SessionId id, const char* call) {
  Session* session = sessions_.Find(id);
  if (session == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(call, ": session ", id, " is closed"));
  }
  return session;
}

absl::Status CacheService::Limit(const std::string& message) {
  ++metrics_.refused_limits;
  return absl::ResourceExhaustedError(message);
}

absl::Status CacheService::CheckKeyCount(size_t count) {
  if (count <= options_.limits.max_keys_per_call) return absl::OkStatus();
  return Limit(absl::StrCat(count, " keys in one call exceed limits.max_keys_per_call = ",
                            options_.limits.max_keys_per_call));
}

// --- layouts ------------------------------------------------------------------------------------

absl::StatusOr<uint32_t> CacheService::RegisterLayout(SessionId id, ObjectLayout layout,
                                                      std::optional<KvGeometry> geometry) {
  absl::StatusOr<Session*> session = Get(id, "register_layout");
  if (!session.ok()) return session.status();
  absl::Status valid = layout.Validate();
  if (!valid.ok()) return valid;
  for (uint32_t i = 0; i < layouts_.size(); ++i) {
    if (layouts_[i].fingerprint != layout.fingerprint) continue;
    if (layouts_[i].kind != layout.kind ||
        layouts_[i].part_bytes_per_token != layout.part_bytes_per_token) {
      return absl::FailedPreconditionError(
          "layout: this fingerprint is registered with other part sizes");
    }
    if (geometry && transcoder_ != nullptr) transcoder_->Describe(i, layout, *geometry);
    return i;
  }
  if (layouts_.size() >= options_.limits.max_layouts) {
    return Limit(absl::StrCat("limits.max_layouts = ", options_.limits.max_layouts, " reached"));
  }
  layout_fingerprints_.push_back(catalog_.InternFingerprint(layout.fingerprint));
  layout_by_fingerprint_.emplace(layout_fingerprints_.back(), layouts_.size());
  layouts_.push_back(std::move(layout));
  const auto layout_id = static_cast<uint32_t>(layouts_.size() - 1);
  if (geometry && transcoder_ != nullptr) {
    transcoder_->Describe(layout_id, layouts_.back(), *geometry);
  }
  return layout_id;
}

absl::StatusOr<const ObjectLayout*> CacheService::GetLayout(uint32_t layout_id) const {
  if (layout_id < layouts_.size()) return &layouts_[layout_id];
  return absl::InvalidArgumentError(
      absl::StrCat("layout_id ", layout_id, " was not registered with this daemon"));
}

ObjectId CacheService::FindVisible(const Session& session, const ObjectKey& key) const {
  const ObjectId id = catalog_.Find(key);
  if (id == kNoObject) return kNoObject;
  const Entry& entry = catalog_.at(id);
  return entry.visible() && entry.tenant == session.tenant ? id : kNoObject;
}

ExtentInfo CacheService::Describe(const Session& session, ObjectId id,
                                  uint64_t stored_before) const {
  const Entry& entry = catalog_.at(id);
  const DeviceCopy* above = mover_.OnDevice(id);
  const bool on_device = above != nullptr && above->ready();
  ExtentInfo info;
  info.bytes = entry.payload_bytes();
  info.token_count = entry.token_count;
  info.flags = (entry.record != kNoRecord ? kFlagDurable : 0) | (entry.pinned ? kFlagPinned : 0);
  const bool in_host = entry.host != nullptr && entry.host->ready;
  if (in_host || on_device) {
    info.tier = on_device && session.knows_hbm ? TierId::kHbm : TierId::kHost;
    if (!in_host) info.eta_us = mover_.DescentUs(info.bytes);
  } else {
    info.tier = TierId::kNvme;
    info.eta_us = mover_.EtaUs(stored_before + mover_.StoredBytes(entry));
  }
  return info;
}

// --- store --------------------------------------------------------------------------------------

ReserveResult CacheService::ReserveOne(Session& session, uint32_t layout_id,
                                       const ReserveItem& item, bool named) {
  ReserveResult result;
  const ObjectLayout& layout = layouts_[layout_id];
  result.status = layout.CheckObject(item.token_count, item.grain_count);
  if (!result.status.ok()) return result;
  if (session.reservations.size() >= options_.limits.max_reservations_per_session) {
    result.status = Limit(absl::StrCat("limits.max_reservations_per_session = ",
                                       options_.limits.max_reservations_per_session, " reached"));
    return result;
  }
  if (const ObjectId existing = named ? catalog_.Find(item.key) : kNoObject;
      existing != kNoObject) {
    ++metrics_.already_there;
    const Entry& there = catalog_.at(existing);
    const bool visible = there.visible();
    if (visible && there.tenant == session.tenant) mover_.StoredAgain(existing, item.parent);
    result.status = absl::AlreadyExistsError(
        absl::StrCat(item.key.ToHex(), visible ? " is stored" : " is being stored by another"));
    return result;
  }
  const uint64_t bytes = layout.PayloadBytes(item.token_count, item.grain_count);
  absl::StatusOr<Extent> extent =
      mover_.MakeRoom(session.tenant, layout.kind, bytes, result.retry_after_ms);
  if (!extent.ok()) {
    result.status = extent.status();
    return result;
  }
  const ObjectId id = named ? catalog_.Insert(item.key) : catalog_.InsertHidden();
  Entry& entry = catalog_.at(id);
  entry.parent_head = item.parent.Head64();
  entry.payload_units = bytes / kPartAlignment;
  entry.fingerprint = layout_fingerprints_[layout_id];
  entry.cost_us = item.cost_us;
  entry.token_count = item.token_count;
  entry.grain_count = item.grain_count;
  entry.tenant = session.tenant;
  entry.kind = layout.kind;
  entry.host = MemoryCopy::New(*extent, layout_id, layout.PartCount(), item.position);
  entry.host->parent = item.parent;

  result.reservation_id = sessions_.NextId();
  result.offset = extent->offset;
  session.reservations.emplace(result.reservation_id, id);
  ++reservation_count_;
  ++metrics_.reserved_objects;
  if (named) demand_[session.tenant].Stored(layout_id, item.key, bytes);
  return result;
}

absl::StatusOr<std::vector<ReserveResult>> CacheService::Reserve(
    SessionId id, uint32_t layout_id, absl::Span<const ReserveItem> items) {
  absl::StatusOr<Session*> session = Get(id, "reserve");
  if (!session.ok()) return session.status();
  absl::StatusOr<const ObjectLayout*> layout = GetLayout(layout_id);
  if (!layout.ok()) return layout.status();
  absl::Status count = CheckKeyCount(items.size());
  if (!count.ok()) return count;
  std::vector<ReserveResult> results;
  results.reserve(items.size());
  for (const ReserveItem& item : items) {
    results.push_back(ReserveOne(**session, layout_id, item, true));
  }
  return results;
}

absl::Status CacheService::CommitOne(Session& session, const CommitItem& item) {
  auto it = session.reservations.find(item.reservation_id);
  if (it == session.reservations.end()) {
    return absl::NotFoundError(
        absl::StrCat("reservation ", item.reservation_id, " is not held by this session"));
  }
  const ObjectId id = it->second;
  Entry& entry = catalog_.at(id);
  const uint32_t parts = entry.host->part_count;
  const uint32_t filters = entry.grain_count > 1 ? entry.grain_count - 1 : 0;
  if (item.part_crcs.size() != parts) {
    return absl::InvalidArgumentError(absl::StrCat("part_crcs: ", item.part_crcs.size(),
                                                   " given, the layout has ", parts, " parts"));
  }
  if (item.grain_filters.size() != filters) {
    return absl::InvalidArgumentError(
        absl::StrCat("grain_filters: ", item.grain_filters.size(), " given, expected ", filters));
  }
  if (entry.state == EntryState::kHidden) {
    return absl::InvalidArgumentError("a reservation without a key");
  }
  std::copy(item.part_crcs.begin(), item.part_crcs.end(), entry.host->part_crcs().begin());
  if (filters > 0) {
    entry.grain_filters = std::make_unique<GrainFilter[]>(filters);
    std::copy(item.grain_filters.begin(), item.grain_filters.end(), entry.grain_filters.get());
  }
  session.reservations.erase(it);
  --reservation_count_;
  ++metrics_.committed_objects;
  metrics_.committed_bytes += entry.payload_bytes();
  catalog_.LinkToParent(id);
  mover_.Published(id);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<absl::Status>> CacheService::Commit(SessionId id,
                                                               absl::Span<const CommitItem> items) {
  absl::StatusOr<Session*> session = Get(id, "commit");
  if (!session.ok()) return session.status();
  absl::Status count = CheckKeyCount(items.size());
  if (!count.ok()) return count;
  std::vector<absl::Status> results;
  results.reserve(items.size());
  for (const CommitItem& item : items) results.push_back(CommitOne(**session, item));
  return results;
}

void CacheService::DropReservation(ObjectId id) {
  --reservation_count_;
  ++metrics_.aborted_reservations;
  mover_.Remove(id);
}

absl::Status CacheService::Abort(SessionId id, absl::Span<const uint64_t> reservation_ids) {
  absl::StatusOr<Session*> session = Get(id, "abort");
  if (!session.ok()) return session.status();
  for (uint64_t reservation_id : reservation_ids) {
    auto it = (*session)->reservations.find(reservation_id);
    if (it == (*session)->reservations.end()) continue;
    DropReservation(it->second);
    (*session)->reservations.erase(it);
  }
  return absl::OkStatus();
}

// --- hints --------------------------------------------------------------------------------------

absl::StatusOr<std::vector<HintResult>> CacheService::Hint(SessionId id,
                                                           absl::Span<const HintItem> hints) {
  absl::StatusOr<Session*> session = Get(id, "hint");
  if (!session.ok()) return session.status();
  for (const HintItem& hint : hints) {
    if (hint.layout_id == kAnyLayout) continue;
    absl::StatusOr<const ObjectLayout*> layout = GetLayout(hint.layout_id);
    if (!layout.ok()) return layout.status();
  }
  return prefetch_.Hint(id, (*session)->tenant, hints);
}

}  // namespace terrace
