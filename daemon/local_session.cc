// Sessions: what every one is given, and those of front-ends inside the daemon, which may also
// store in place of what is there.
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/cache_service.h"
#include "spdlog/spdlog.h"

namespace terrace {
namespace {

// One board page holds 1,024 words; 16 pages let a session wait for a million-token prefix.
constexpr uint32_t kBoardSlots = 16384;

}  // namespace

absl::StatusOr<Welcome> CacheService::OpenFor(uint16_t tenant_index, const PeerCredentials& peer,
                                              std::string client_name) {
  absl::StatusOr<ReadyBoard> board = ReadyBoard::Create(kBoardSlots);
  if (!board.ok()) return board.status();

  Session& session = sessions_.Open();
  session.peer = peer;
  session.client_name = std::move(client_name);
  session.tenant = tenant_index;
  session.board = *std::move(board);

  const Tenant& tenant = tenants_[session.tenant];
  Welcome welcome;
  welcome.server_version = kVersion;
  welcome.session_id = session.id;
  welcome.tenant = tenant.name;
  welcome.salt = tenant.salt;
  welcome.verify = verify_;
  welcome.max_keys_per_call = options_.limits.max_keys_per_call;
  welcome.default_lease_ttl_ms = options_.limits.lease_ttl_s * 1000;
  welcome.max_lease_ttl_ms = options_.limits.max_lease_ttl_s * 1000;
  welcome.host_capacity_bytes = tenant.host->max_capacity_bytes();
  welcome.segment_fd = tenant.host->fd();
  welcome.board_fd = session.board.fd();
  welcome.board_slots = session.board.slots();
  welcome.ready_event_fd = session.board.event_fd();
  if (tenant.device != nullptr) {
    welcome.device_capacity_bytes = tenant.device->capacity_bytes();
    welcome.device_fd = tenant.device->fd();
  }
  spdlog::info("session {} opened: pid {} uid {} tenant '{}' client '{}'", session.id, peer.pid,
               peer.uid, tenant.name, session.client_name);
  return welcome;
}

absl::StatusOr<Welcome> CacheService::OpenLocalSession(const std::string& tenant,
                                                       std::string client_name, OnReady on_ready) {
  const auto found = std::find_if(tenants_.begin(), tenants_.end(), [&](const Tenant& candidate) {
    return candidate.name == tenant;
  });
  if (found == tenants_.end()) {
    return absl::NotFoundError(absl::StrCat("tenant '", tenant, "' is unknown"));
  }
  const PeerCredentials self{geteuid(), getpid()};
  absl::StatusOr<Welcome> welcome =
      OpenFor(static_cast<uint16_t>(found - tenants_.begin()), self, std::move(client_name));
  if (welcome.ok()) sessions_.Find(welcome->session_id)->on_ready = std::move(on_ready);
  return welcome;
}

void CacheService::Observe(CatalogObserver* observer, SessionId session,
                           absl::Span<const uint32_t> layout_ids) {
  std::vector<uint32_t> fingerprints;
  for (const uint32_t layout_id : layout_ids) {
    fingerprints.push_back(layout_fingerprints_[layout_id]);
  }
  catalog_.Observe(observer, sessions_.Find(session)->tenant, std::move(fingerprints));
}

absl::StatusOr<ReserveResult> CacheService::ReserveUnnamed(SessionId id, uint32_t layout_id,
                                                           const ReserveItem& item) {
  absl::StatusOr<Session*> session = Get(id, "reserve");
  if (!session.ok()) return session.status();
  absl::StatusOr<const ObjectLayout*> layout = GetLayout(layout_id);
  if (!layout.ok()) return layout.status();
  return ReserveOne(**session, layout_id, item, false);
}

// What the key names until now makes way for an entry that is complete and hidden.
absl::Status CacheService::TakePlace(Session& session, const ObjectKey& key, ObjectId id) {
  const ObjectId existing = catalog_.Find(key);
  if (existing != kNoObject) {
    const Entry& old = catalog_.at(existing);
    if (old.visible() && old.tenant == session.tenant) mover_.Remove(existing);
  }
  if (!catalog_.EnterIndex(id, key)) {
    return absl::AlreadyExistsError(absl::StrCat(key.ToHex(), " is being stored by another"));
  }
  const Entry& entry = catalog_.at(id);
  demand_[session.tenant].Stored(entry.host->layout, key, entry.payload_bytes());
  return absl::OkStatus();
}

absl::Status CacheService::CommitAs(SessionId id, const ObjectKey& key, const CommitItem& item) {
  absl::StatusOr<Session*> session = Get(id, "commit");
  if (!session.ok()) return session.status();
  const auto found = (*session)->reservations.find(item.reservation_id);
  if (found != (*session)->reservations.end() &&
      catalog_.at(found->second).state == EntryState::kHidden) {
    absl::Status placed = TakePlace(**session, key, found->second);
    if (!placed.ok()) return placed;
  }
  return CommitOne(**session, item);
}

}  // namespace terrace
