// A tenant: owner of a namespace of keys and of one host arena that only its clients map.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "config/object_key.h"
#include "config/options.h"
#include "daemon/placement.h"
#include "kernels/device.h"
#include "tiers/device_tier.h"
#include "tiers/memory_tier.h"

namespace terrace {

// How far the host arena is on its way to a smaller capacity.
struct HostShrink {
  uint32_t next_slot = 0;     // of the catalog, to be looked at
  uint64_t moving_bytes = 0;  // being copied below the new end
  // Found above it and in use in a way that forbids moving: in the scan under way, in the last one.
  uint64_t held_bytes = 0, last_held_bytes = 0;
};

struct Tenant {
  std::string name;
  std::vector<uint32_t> uids;
  Salt salt{};
  uint32_t stored_id = 0;  // how records name the tenant: a stable hash of its name
  std::unique_ptr<MemoryTier> host;
  std::unique_ptr<DeviceTier> device;    // null: no HBM tier
  std::unique_ptr<Placement> placement;  // what stays in host memory and on the device together
  std::unique_ptr<EvictionPolicy> device_policy;  // of these what stays on the device
  uint64_t host_objects = 0, device_objects = 0;
  HostShrink shrink;
  // Its own part of host memory. With fair sharing the arena may be larger, borrowing, or smaller.
  uint64_t host_share_bytes = 0;
  uint64_t host_wanted_bytes = 0;      // asked for since the last tick when there was no room
  uint64_t awaits_share_since_us = 0;  // what others borrowed of its part; 0: it does not

  std::deque<uint32_t> write_queue;  // committed, to be written behind, in commit order

  // What its records take, what those being written will, and the most that both may.
  uint64_t nvme_bytes = 0, nvme_writing_bytes = 0;
  uint64_t nvme_quota_bytes = UINT64_MAX;
  std::unique_ptr<EvictionPolicy> nvme_policy;  // of its records, for when they exceed the quota
};

// Tenant::stored_id of a tenant of that name.
uint32_t StoredTenantId(const std::string& name);

// Builds the tenants of resolved options: arenas, policies, and salts, from the config or derived
// from the secret in `state_dir` (created there, mode 0600, when absent).
// `device`: what hbm.capacity is taken of, in the proportions of host memory; null: no HBM tier.
// Outlives the tenants.
// InvalidArgument: host.policy is no policy's name. FailedPrecondition: the secret cannot be read
// or written, or two names share a stored id. ResourceExhausted: the device has less memory.
absl::StatusOr<std::vector<Tenant>> BuildTenants(const Options& options, const PostFn& post,
                                                 kernels::Device* device = nullptr);

}  // namespace terrace
