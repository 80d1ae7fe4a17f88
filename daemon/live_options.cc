#include "daemon/live_options.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "config/machine.h"
#include "config/text.h"

namespace terrace {

namespace {

bool IsLive(const std::string& key) {
  return key == "server.log_level" || key == "host.capacity" || key == "nvme.capacity" ||
         (absl::StartsWith(key, "tenants.") &&
          (absl::EndsWith(key, ".host_capacity") || absl::EndsWith(key, ".nvme_capacity")));
}

// The tenant that a file without any means, said.
void NameDefaultTenant(Options& configured, const Options& resolved) {
  if (!configured.tenants.empty()) return;
  configured.tenants = resolved.tenants;
  for (TenantOptions& tenant : configured.tenants) {
    tenant.host_capacity.reset();
    tenant.nvme_capacity.reset();
  }
}

absl::Status CheckMachine(const Options& wanted, const Options& now) {
  const absl::StatusOr<uint64_t> memory = MemoryLimitBytes();
  if (!memory.ok()) return memory.status();
  const uint64_t host = wanted.host.capacity.bytes;
  if (host > *memory && host > now.host.capacity.bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("key 'host.capacity' = ", FormatSize(wanted.host.capacity),
                     ": expected at most ", *memory, " bytes, what this process may use"));
  }
  if (!wanted.nvme.enabled || wanted.nvme.capacity.bytes <= now.nvme.capacity.bytes) {
    return absl::OkStatus();
  }
  const absl::StatusOr<uint64_t> space = SpaceForDirectoryBytes(wanted.nvme.directory);
  if (!space.ok()) return space.status();
  if (wanted.nvme.capacity.bytes > *space) {
    return absl::InvalidArgumentError(
        absl::StrCat("key 'nvme.capacity' = ", FormatSize(wanted.nvme.capacity),
                     ": expected at most ", *space, " bytes, what its file system has for it"));
  }
  return absl::OkStatus();
}

}  // namespace

LiveOptions::LiveOptions(Options configured, Options resolved)
    : configured_(std::move(configured)), resolved_(std::move(resolved)) {
  NameDefaultTenant(configured_, resolved_);
}

absl::StatusOr<LiveOptions::Change> LiveOptions::Reload(Options configured) const {
  // Against the file itself, so that a mistake in a key that is not live is told, too.
  const absl::StatusOr<Options> whole = ResolveOptions(configured);
  if (!whole.ok()) return whole.status();
  NameDefaultTenant(configured, *whole);
  return Resolve(std::move(configured));
}

absl::Status LiveOptions::Find(std::string_view tier, std::string_view tenant) const {
  if (tier == "hbm" && resolved_.hbm.enabled()) {
    return absl::FailedPreconditionError(
        "the HBM tier is taken at the start: set hbm.capacity and restart the daemon");
  }
  if (tier != "host" && tier != "nvme") {
    return absl::NotFoundError(
        absl::StrCat("no tier '", Sv(tier), "': expected \"host\" or \"nvme\""));
  }
  if (tier == "nvme" && !resolved_.nvme.enabled) {
    return absl::NotFoundError("there is no NVMe tier here (nvme.enabled = false)");
  }
  const auto named = [&](const TenantOptions& t) { return t.name == tenant; };
  if (tenant.empty() || std::any_of(resolved_.tenants.begin(), resolved_.tenants.end(), named)) {
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("no tenant '", Sv(tenant), "'"));
}

absl::StatusOr<LiveOptions::Change> LiveOptions::Resize(std::string_view tier,
                                                        std::string_view tenant,
                                                        const Size& size) const {
  absl::Status known = Find(tier, tenant);
  if (!known.ok()) return known;
  Options configured = configured_;
  if (tenant.empty()) {
    (tier == "host" ? configured.host.capacity : configured.nvme.capacity) = size;
    return Resolve(std::move(configured));
  }
  auto found = std::find_if(configured.tenants.begin(), configured.tenants.end(),
                            [&](const TenantOptions& t) { return t.name == tenant; });
  (tier == "host" ? found->host_capacity : found->nvme_capacity) = size;
  return Resolve(std::move(configured));
}

absl::StatusOr<LiveOptions::Change> LiveOptions::Resolve(Options configured) const {
  Change change;
  bool space_changed = false;
  for (std::string& key : ChangedKeys(configured_, configured)) {
    space_changed = space_changed || key == "nvme.capacity";
    (IsLive(key) ? change.applied : change.need_restart).push_back(std::move(key));
  }
  change.configured = configured_;
  change.configured.server.log_level = configured.server.log_level;
  change.configured.host.capacity = configured.host.capacity;
  change.configured.nvme.capacity = configured.nvme.capacity;
  for (TenantOptions& tenant : change.configured.tenants) {
    for (const TenantOptions& other : configured.tenants) {
      if (other.name != tenant.name) continue;
      tenant.host_capacity = other.host_capacity;
      tenant.nvme_capacity = other.nvme_capacity;
    }
  }
  Options options = change.configured;
  // A share of free space means what it meant, until it is set anew.
  if (!space_changed) options.nvme.capacity = resolved_.nvme.capacity;
  absl::StatusOr<Options> resolved = ResolveOptions(std::move(options));
  if (!resolved.ok()) return resolved.status();
  change.resolved = *std::move(resolved);
  // Where the daemon runs does not follow the environment.
  change.resolved.server.socket_path = resolved_.server.socket_path;
  change.resolved.server.state_dir = resolved_.server.state_dir;
  absl::Status fits = CheckMachine(change.resolved, resolved_);
  if (!fits.ok()) return fits;
  return change;
}

void LiveOptions::Accept(Change change) {
  configured_ = std::move(change.configured);
  resolved_ = std::move(change.resolved);
}

}  // namespace terrace
