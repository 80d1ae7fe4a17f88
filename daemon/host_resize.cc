// Mover: the host tier's way to a smaller capacity while it serves.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/mover.h"
#include "spdlog/spdlog.h"

namespace terrace {

namespace {

// In one tick, a tenant: work on the loop of a few hundred microseconds, and no more copied than
// leaves the memory bus to the engines.
constexpr uint64_t kEvictBytes = uint64_t{64} << 20;
constexpr uint32_t kMaxEvictions = 256;
constexpr uint64_t kMovingBytes = uint64_t{8} << 20;
constexpr uint32_t kScanSlots = 4096;

}  // namespace

absl::Status Mover::ResizeHost(uint16_t tenant_index, uint64_t bytes) {
  Tenant& tenant = tenants_[tenant_index];
  const uint64_t before = tenant.host->capacity_bytes();
  absl::Status set = tenant.host->SetCapacity(bytes);
  if (!set.ok() || bytes == before) return set;
  tenant.placement->SetCapacity(bytes +
                                (tenant.device != nullptr ? tenant.device->capacity_bytes() : 0));
  tenant.shrink.next_slot = 0;
  tenant.shrink.held_bytes = tenant.shrink.last_held_bytes = 0;
  return absl::OkStatus();
}

// False when nothing more may be evicted now.
bool Mover::EvictForShrink(Tenant& tenant, uint64_t& budget) {
  if (budget == 0) return false;
  const auto victim =
      tenant.placement->VictimFor(std::nullopt, [this](PolicyId id) -> std::optional<Space> {
        if (!Evictable(id)) return std::nullopt;
        return SpaceOf(catalog_.at(id));
      });
  if (!victim) return false;
  budget -=
      std::min(budget, std::max(catalog_.at(*victim).payload_bytes(), kEvictBytes / kMaxEvictions));
  EvictHostCopy(*victim);
  return true;
}

void Mover::ShrinkHost(uint16_t tenant_index) {
  Tenant& tenant = tenants_[tenant_index];
  MemoryTier& host = *tenant.host;
  host.Shrink();
  if (host.excess_bytes() == 0) return;
  uint64_t budget = kEvictBytes;
  // What is moving is there twice for the moment.
  while (host.used_bytes() > host.capacity_bytes() + tenant.shrink.moving_bytes &&
         EvictForShrink(tenant, budget)) {
  }
  // Until the end has come down all the way, there might be room only where it must not be.
  if (host.populated_bytes() <= host.capacity_bytes()) MoveStrays(tenant_index, budget);
}

void Mover::MoveStrays(uint16_t tenant_index, uint64_t evict_budget) {
  Tenant& tenant = tenants_[tenant_index];
  HostShrink& shrink = tenant.shrink;
  const uint32_t slots = catalog_.slot_count();
  for (uint32_t looked = 0; looked < std::min(kScanSlots, slots); ++looked, ++shrink.next_slot) {
    if (shrink.next_slot >= slots) {
      shrink.next_slot = 0;
      shrink.last_held_bytes = std::exchange(shrink.held_bytes, 0);
    }
    const ObjectId id = shrink.next_slot;
    const Entry& entry = catalog_.at(id);
    if (entry.host == nullptr || entry.tenant != tenant_index || entry.host->moving ||
        !tenant.host->Strays(entry.host->extent, entry.payload_bytes())) {
      continue;
    }
    if (!entry.host->ready || entry.host->writing || entry.host->rising || entry.lease_count > 0) {
      shrink.held_bytes += entry.payload_bytes();
      continue;
    }
    if (shrink.moving_bytes >= kMovingBytes) return;
    // A run below that is long enough may take the place of several objects, of this one perhaps.
    while (entry.host != nullptr && !StartMove(id)) {
      if (!EvictForShrink(tenant, evict_budget)) return;
    }
  }
}

// False when there is no room for it below.
bool Mover::StartMove(ObjectId id) {
  Entry& entry = catalog_.at(id);
  MemoryCopy& host = *entry.host;
  Tenant& tenant = tenants_[entry.tenant];
  absl::StatusOr<Extent> to = tenant.host->Allocate(entry.payload_bytes());
  if (!to.ok()) return false;
  host.moving = true;
  tenant.shrink.moving_bytes += entry.payload_bytes();
  tenant.host->Copy(
      host.extent, *to, layouts_[host.layout].Parts(entry.token_count, entry.grain_count),
      [this, id, to = *to](std::vector<uint32_t> part_crcs) { FinishMove(id, to, part_crcs); });
  return true;
}

void Mover::FinishMove(ObjectId id, const Extent& to, absl::Span<const uint32_t> part_crcs) {
  Entry& entry = catalog_.at(id);  // kept while host->moving
  MemoryCopy& host = *entry.host;
  Tenant& tenant = tenants_[entry.tenant];
  host.moving = false;
  tenant.shrink.moving_bytes -= entry.payload_bytes();
  const bool right = std::equal(part_crcs.begin(), part_crcs.end(), host.part_crcs().begin(),
                                host.part_crcs().end());
  // Meanwhile somebody may have been told where it is, or be reading it.
  const bool used = entry.lease_count > 0 || host.writing || host.rising;
  if (!right || used || !entry.visible()) {
    tenant.host->Free(to);
  } else {
    tenant.host->Free(std::exchange(host.extent, to));
    ++metrics_.moved_objects;
    metrics_.moved_bytes += entry.payload_bytes();
  }
  if (!right && entry.visible()) {
    // As in Verify: the record may have been written from the same bytes.
    spdlog::warn("{} did not check when it was moved: dropped", entry.key.ToHex());
    ++metrics_.corrupt_objects;
    Remove(id);
    return;
  }
  DropDuplicate(id);
  ReleaseIfGone(id);
}

}  // namespace terrace
