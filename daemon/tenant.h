// A tenant: owner of a namespace of keys and of one host arena that only its clients map.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "config/object_key.h"
#include "config/options.h"
#include "tiers/eviction/policy.h"
#include "tiers/memory_tier.h"

namespace terrace {

struct Tenant {
  std::string name;
  std::vector<uint32_t> uids;
  Salt salt{};
  uint32_t stored_id = 0;  // how records name the tenant: a stable hash of its name
  std::unique_ptr<MemoryTier> host;
  std::unique_ptr<EvictionPolicy> host_policy;
  uint64_t host_objects = 0;
};

// Tenant::stored_id of a tenant of that name.
uint32_t StoredTenantId(const std::string& name);

// Builds the tenants of resolved options: arenas, policies, and salts, from the config or derived
// from the secret in `state_dir` (created there, mode 0600, when absent).
// FailedPrecondition: the secret cannot be read or written, or two names share a stored id.
absl::StatusOr<std::vector<Tenant>> BuildTenants(const Options& options, const PostFn& post);

}  // namespace terrace
