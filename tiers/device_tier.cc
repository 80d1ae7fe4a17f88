#include "tiers/device_tier.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<DeviceTier>> DeviceTier::Create(kernels::Device* device,
                                                               uint64_t capacity_bytes) {
  const auto base = device->Allocate(capacity_bytes);
  if (!base.ok()) return base.status();
  auto tier = std::unique_ptr<DeviceTier>(new DeviceTier(device, *base));
  tier->allocator_.Grow(capacity_bytes);
  return tier;
}

DeviceTier::~DeviceTier() { device_->Free(base_); }

std::optional<Extent> DeviceTier::Allocate(uint64_t bytes) {
  const auto allocation = allocator_.Allocate(bytes);
  if (!allocation) return std::nullopt;
  return Extent{allocation->offset, allocation->block};
}

}  // namespace terrace
