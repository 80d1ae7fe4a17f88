// Mover: host.sharing = "fair". A tenant that needs more than its part borrows what others leave
// unused of theirs; an owner that needs its own again gets it before it has to evict anything.
//
// The arenas' capacities and what shrinking ones still hold are together never more than the parts
// together: memory is taken from one arena, seen to be free, and only then given to another.
#include <algorithm>

#include "daemon/mover.h"
#include "daemon/session.h"

namespace terrace {

namespace {

// Moved at once: what a tick can give back (host_resize.cc), and little against a part.
constexpr uint64_t kStepBytes = uint64_t{16} << 20;
constexpr uint64_t kLeastBytes = uint64_t{4} << 20;  // an arena never becomes smaller
// An owner evicts nothing of its own while borrowed memory comes back; leases may hold that up.
constexpr uint64_t kLongestWaitUs = 500'000;

uint64_t Above(uint64_t value, uint64_t limit) { return value > limit ? value - limit : 0; }

}  // namespace

absl::Status Mover::SetHostShare(uint16_t tenant_index, uint64_t bytes) {
  absl::Status resized = ResizeHost(tenant_index, bytes);
  if (resized.ok()) tenants_[tenant_index].host_share_bytes = bytes;
  return resized;
}

// There is no room for so much. True: waiting helps, and is better than evicting.
bool Mover::AwaitsShare(Tenant& tenant, uint64_t bytes) {
  if (!fair_) return false;
  tenant.host_wanted_bytes += bytes;
  if (tenant.host->capacity_bytes() >= tenant.host_share_bytes) return false;
  const uint64_t now_us = MonotonicUs();
  if (tenant.awaits_share_since_us == 0) tenant.awaits_share_since_us = now_us;
  return now_us - tenant.awaits_share_since_us < kLongestWaitUs;
}

void Mover::ShareHost() {
  uint64_t parts = 0, taken = 0, returning = 0;
  for (const Tenant& tenant : tenants_) {
    parts += tenant.host_share_bytes;
    taken += tenant.host->capacity_bytes() + tenant.host->excess_bytes();
    returning += tenant.host->excess_bytes();
  }
  uint64_t unused = Above(parts, taken);
  // Owners first.
  for (uint16_t i = 0; i < tenants_.size(); ++i) {
    const Tenant& tenant = tenants_[i];
    if (tenant.host_wanted_bytes == 0) continue;
    if (tenant.host->capacity_bytes() < tenant.host_share_bytes) PayBack(i, unused, returning);
  }
  for (uint16_t i = 0; i < tenants_.size(); ++i) {
    const Tenant& tenant = tenants_[i];
    if (tenant.host_wanted_bytes == 0) continue;
    if (tenant.host->capacity_bytes() >= tenant.host_share_bytes) Lend(i, unused, returning);
  }
  for (Tenant& tenant : tenants_) {
    tenant.host_wanted_bytes = 0;
    if (tenant.host->capacity_bytes() >= tenant.host_share_bytes) tenant.awaits_share_since_us = 0;
  }
}

void Mover::PayBack(uint16_t owner_index, uint64_t& unused_bytes, uint64_t& returning_bytes) {
  Tenant& owner = tenants_[owner_index];
  const uint64_t capacity = owner.host->capacity_bytes();
  // Twice, so that the next want does not have to wait again.
  uint64_t need = std::min(owner.host_share_bytes - capacity,
                           std::max(kStepBytes, 2 * owner.host_wanted_bytes));
  const uint64_t given = std::min(need, unused_bytes);
  if (given > 0 && ResizeHost(owner_index, capacity + given).ok()) {
    unused_bytes -= given;
    need -= given;
    owner.awaits_share_since_us = 0;
  }
  // What is on its way back already is not asked for twice.
  const uint64_t coming = std::min(need, returning_bytes);
  returning_bytes -= coming;
  need -= coming;
  for (uint16_t i = 0; i < tenants_.size() && need > 0; ++i) {
    const uint64_t has = tenants_[i].host->capacity_bytes();
    const uint64_t take = std::min(need, Above(has, tenants_[i].host_share_bytes));
    if (take > 0 && ResizeHost(i, has - take).ok()) need -= take;
  }
}

void Mover::Lend(uint16_t borrower_index, uint64_t& unused_bytes, uint64_t returning_bytes) {
  MemoryTier& borrower = *tenants_[borrower_index].host;
  const uint64_t room = Above(borrower.max_capacity_bytes(), borrower.capacity_bytes());
  const uint64_t given = std::min({kStepBytes, unused_bytes, room});
  if (given > 0 && ResizeHost(borrower_index, borrower.capacity_bytes() + given).ok()) {
    unused_bytes -= given;
    return;
  }
  if (returning_bytes > 0 || room == 0) return;
  for (uint16_t i = 0; i < tenants_.size(); ++i) {
    const MemoryTier& lender = *tenants_[i].host;
    if (i == borrower_index || tenants_[i].host_wanted_bytes > 0) continue;
    if (lender.capacity_bytes() > tenants_[i].host_share_bytes) continue;  // it borrows itself
    const uint64_t keeps = std::max(lender.used_bytes() + lender.headroom_bytes(), kLeastBytes);
    if (Above(lender.capacity_bytes(), keeps) < kStepBytes) continue;
    if (ResizeHost(i, lender.capacity_bytes() - kStepBytes).ok()) return;
  }
}

}  // namespace terrace
