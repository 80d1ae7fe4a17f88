// The HBM tier of one tenant: opaque extents in a piece of a device's memory that other processes
// can map to read. Metadata only; DeviceLink (tiers/device_link.h) moves the bytes. Loop thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "tiers/extent_allocator.h"
#include "tiers/memory_tier.h"

namespace terrace {

class DeviceTier {
 public:
  // Takes so much of the device, which outlives the tier: a multiple of 4 KiB above 0, at most
  // ExtentAllocator::kMaxBytes. Fails as Device::Allocate does; blocks.
  static absl::StatusOr<std::unique_ptr<DeviceTier>> Create(kernels::Device* device,
                                                            uint64_t capacity_bytes);
  ~DeviceTier();  // no copy may be on its way from or to it

  // nullopt when no free run is large enough.
  std::optional<Extent> Allocate(uint64_t bytes);
  void Free(const Extent& extent) { allocator_.Free(extent.block); }

  kernels::DeviceAddress At(const Extent& extent) const { return base_ + extent.offset; }
  int fd() const { return device_->ShareableFd(base_); }  // borrowed
  uint64_t capacity_bytes() const { return allocator_.limit_bytes(); }
  uint64_t used_bytes() const { return allocator_.used_bytes(); }

 private:
  DeviceTier(kernels::Device* device, kernels::DeviceAddress base) : device_(device), base_(base) {}

  kernels::Device* const device_;
  const kernels::DeviceAddress base_;
  ExtentAllocator allocator_;
};

}  // namespace terrace
