// Mover: what of the NVMe tier each tenant's records take, and that it is no more than they may.
#include <set>
#include <utility>

#include "daemon/mover.h"
#include "tiers/nvme/block.h"

namespace terrace {

void Mover::GainRecord(ObjectId id, RecordId record) {
  Entry& entry = catalog_.at(id);
  Tenant& tenant = tenants_[entry.tenant];
  entry.record = record;
  entry.record_blocks = static_cast<uint32_t>(nvme_->StoredBytes(record) / nvme::kBlockBytes);
  tenant.nvme_bytes += uint64_t{entry.record_blocks} * nvme::kBlockBytes;
  tenant.nvme_policy->Track(id, {entry.payload_bytes(), entry.cost_us});
}

void Mover::LoseRecord(ObjectId id) {
  Entry& entry = catalog_.at(id);
  if (entry.record == kNoRecord) return;
  Tenant& tenant = tenants_[entry.tenant];
  entry.record = kNoRecord;
  tenant.nvme_bytes -= uint64_t{entry.record_blocks} * nvme::kBlockBytes;
  tenant.nvme_policy->Forget(id);
}

void Mover::SetNvmeQuota(uint16_t tenant, uint64_t bytes) {
  tenants_[tenant].nvme_quota_bytes = bytes;
  KeepQuotasApart();
}

void Mover::KeepQuotasApart() {
  if (nvme_ == nullptr) return;
  std::set<uint32_t> apart;
  for (const Tenant& tenant : tenants_) {
    if (tenant.nvme_quota_bytes != UINT64_MAX) apart.insert(tenant.stored_id);
  }
  nvme_->KeepApart(std::move(apart));
}

// Whether so much more would be within the quota, once `max_drops` records at most have given way.
bool Mover::KeepNvmeQuota(uint16_t tenant_index, uint64_t more_bytes, uint32_t max_drops) {
  Tenant& tenant = tenants_[tenant_index];
  if (more_bytes > tenant.nvme_quota_bytes) return false;
  const auto droppable = [this](PolicyId id) { return !catalog_.at(id).pinned && !loading(id); };
  while (tenant.nvme_bytes + tenant.nvme_writing_bytes + more_bytes > tenant.nvme_quota_bytes) {
    if (max_drops-- == 0) return false;
    const auto victim = tenant.nvme_policy->Evict(droppable);
    if (!victim) return false;
    ++metrics_.dropped_quota;
    nvme_->Erase(catalog_.at(*victim).record);
    LoseRecord(*victim);
    Reprice(*victim);
    ReleaseIfGone(*victim);
  }
  return true;
}

}  // namespace terrace
