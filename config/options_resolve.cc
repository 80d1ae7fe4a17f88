// Options made concrete on this machine: shares into bytes, defaults into paths.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "config/listen_address.h"
#include "config/machine.h"
#include "config/options.h"

namespace terrace {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kMinTenantHostBytes = uint64_t{4} << 20;
constexpr uint64_t kMinTenantHbmBytes = uint64_t{1} << 20;
constexpr uint64_t kMinTenantNvmeBytes = uint64_t{4} << 20;
constexpr size_t kMaxSocketPathBytes = 107;  // sockaddr_un

// The XDG rule: a relative value is ignored.
std::string AbsolutePathFromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && value[0] == '/' ? value : "";
}

absl::Status Contradiction(const std::string& key, const std::string& shown,
                           const std::string& expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("key '", key, "' = ", shown, ": expected ", expected));
}

absl::Status ResolvePaths(Options& options) {
  ServerSection& server = options.server;
  if (server.socket_path.empty()) server.socket_path = DefaultSocketPath();
  if (server.socket_path.size() > kMaxSocketPathBytes) {
    return Contradiction("server.socket_path", server.socket_path,
                         absl::StrCat("at most ", kMaxSocketPathBytes, " bytes"));
  }
  if (server.state_dir.empty()) {
    const std::string state_home = AbsolutePathFromEnvironment("XDG_STATE_HOME");
    const std::string home = AbsolutePathFromEnvironment("HOME");
    if (geteuid() == 0) {
      server.state_dir = "/var/lib/terrace";
    } else if (!state_home.empty()) {
      server.state_dir = absl::StrCat(state_home, "/terrace");
    } else if (!home.empty()) {
      server.state_dir = absl::StrCat(home, "/.local/state/terrace");
    } else {
      return Contradiction("server.state_dir", "unset",
                           "a path, since neither XDG_STATE_HOME nor HOME is set");
    }
  }
  if (options.nvme.directory.empty()) options.nvme.directory = server.state_dir + "/nvme";
  if (options.codec.profiles.empty()) options.codec.profiles = server.state_dir + "/profiles";
  return absl::OkStatus();
}

absl::Status ResolveHost(HostSection& host) {
  const std::string shown = FormatSize(host.capacity);
  uint64_t memory_bytes = 0;
  if (host.capacity.is_percent()) {
    const absl::StatusOr<uint64_t> limit = MemoryLimitBytes();
    if (!limit.ok()) return limit.status();
    memory_bytes = *limit;
  }
  const uint64_t asked_bytes = host.capacity.Of(memory_bytes);
  const uint64_t bytes = asked_bytes / kPageBytes * kPageBytes;
  if (bytes < kMinTenantHostBytes) {
    return Contradiction(
        "host.capacity", shown,
        absl::StrCat("at least ", kMinTenantHostBytes, " bytes, not ", asked_bytes));
  }
  host.capacity = Size::Bytes(bytes);
  return absl::OkStatus();
}

absl::Status ResolveNvme(NvmeSection& nvme) {
  const std::string shown = FormatSize(nvme.capacity);
  uint64_t space_bytes = 0;
  if (nvme.capacity.is_percent()) {
    // A tier that is off must not keep the daemon from starting on an odd file system.
    const absl::StatusOr<uint64_t> space = SpaceForDirectoryBytes(nvme.directory);
    if (!space.ok() && nvme.enabled) {
      return Contradiction("nvme.directory", nvme.directory,
                           absl::StrCat("a usable path (", space.status().ToString(), ")"));
    }
    if (space.ok()) space_bytes = *space;
  }
  const uint64_t bytes = nvme.capacity.Of(space_bytes) / kPageBytes * kPageBytes;
  if (nvme.enabled && bytes < 2 * nvme.segment_size.bytes) {
    return Contradiction(
        "nvme.capacity", shown,
        absl::StrCat("at least two segments of nvme.segment_size (", FormatSize(nvme.segment_size),
                     "), not ", bytes,
                     " bytes; free space, lower segment_size, or set nvme.enabled = false"));
  }
  nvme.capacity = Size::Bytes(bytes);
  return absl::OkStatus();
}

// Shares first, then what is left in equal parts; a part is never larger than the whole.
absl::Status ResolveTenants(Options& options) {
  if (options.tenants.empty()) {
    options.tenants.push_back({.name = "default", .uids = {geteuid()}});
  }
  const uint64_t whole = options.host.capacity.bytes;
  uint64_t left = whole;
  uint64_t unset_count = 0;
  for (size_t i = 0; i < options.tenants.size(); ++i) {
    std::optional<Size>& part = options.tenants[i].host_capacity;
    if (!part) {
      ++unset_count;
      continue;
    }
    const std::string shown = FormatSize(*part);
    const uint64_t bytes = part->Of(whole) / kPageBytes * kPageBytes;
    if (bytes < kMinTenantHostBytes || bytes > left) {
      return Contradiction(absl::StrCat("tenants[", i, "].host_capacity"), shown,
                           absl::StrCat(kMinTenantHostBytes, " .. ", left, " bytes, what is left",
                                        " of host.capacity (", whole, " bytes)"));
    }
    left -= bytes;
    part = Size::Bytes(bytes);
  }
  if (unset_count == 0) return absl::OkStatus();
  const uint64_t share = left / unset_count / kPageBytes * kPageBytes;
  if (share < kMinTenantHostBytes) {
    return Contradiction(
        "host.capacity", absl::StrCat(whole, " bytes"),
        absl::StrCat("at least ", kMinTenantHostBytes, " bytes for each of ", unset_count,
                     " tenants without a host_capacity, not ", share));
  }
  for (TenantOptions& tenant : options.tenants) {
    if (!tenant.host_capacity) tenant.host_capacity = Size::Bytes(share);
  }
  return absl::OkStatus();
}

absl::Status ResolveHbm(const Options& options) {
  if (!options.hbm.enabled()) return absl::OkStatus();
  const auto whole = static_cast<double>(options.host.capacity.bytes);
  for (const TenantOptions& tenant : options.tenants) {
    const double share = static_cast<double>(tenant.host_capacity->bytes) / whole;
    if (share * static_cast<double>(options.hbm.capacity.bytes) >= kMinTenantHbmBytes) continue;
    return Contradiction("hbm.capacity", FormatSize(options.hbm.capacity),
                         absl::StrCat("0, or at least ", kMinTenantHbmBytes, " bytes for tenant '",
                                      tenant.name, "', in the proportion of its host_capacity"));
  }
  return absl::OkStatus();
}

absl::Status ResolveNvmeParts(Options& options) {
  const uint64_t whole = options.nvme.capacity.bytes;
  uint64_t left = whole;
  for (size_t i = 0; i < options.tenants.size(); ++i) {
    std::optional<Size>& part = options.tenants[i].nvme_capacity;
    if (!part) continue;
    const uint64_t bytes = part->Of(whole) / kPageBytes * kPageBytes;
    if (options.nvme.enabled && (bytes < kMinTenantNvmeBytes || bytes > left)) {
      return Contradiction(absl::StrCat("tenants[", i, "].nvme_capacity"), FormatSize(*part),
                           absl::StrCat(kMinTenantNvmeBytes, " .. ", left, " bytes, what is left",
                                        " of nvme.capacity (", whole, " bytes)"));
    }
    left -= std::min(left, bytes);
    part = Size::Bytes(bytes);
  }
  return absl::OkStatus();
}

absl::Status ResolveLimits(Options& options) {
  constexpr std::array<const char*, kObjectKinds> kNames = {"kv", "expert", "document", "opaque"};
  for (size_t i = 0; i < options.tenants.size(); ++i) {
    TenantOptions& tenant = options.tenants[i];
    const uint64_t whole = tenant.host_capacity->bytes;
    uint64_t floors = 0;
    for (size_t kind = 0; kind < kObjectKinds; ++kind) {
      OptionalKindLimit& own = tenant.limits[kind];
      const KindLimit& given = options.placement.limits[kind];
      if (!own.floor) own.floor = given.floor;
      if (!own.ceiling) own.ceiling = given.ceiling;
      const uint64_t floor = own.floor->Of(whole);
      floors += floor;
      const std::string key = absl::StrCat("tenants[", i, "].", kNames[kind], "_floor");
      if (floor > own.ceiling->Of(whole)) {
        return Contradiction(key, FormatSize(*own.floor),
                             absl::StrCat("at most ", kNames[kind], "_ceiling (",
                                          FormatSize(*own.ceiling), " of ", whole, " bytes)"));
      }
      if (floors > whole) {
        return Contradiction(key, FormatSize(*own.floor),
                             absl::StrCat("floors of all kinds within host_capacity (", whole,
                                          " bytes), not ", floors, " bytes"));
      }
    }
  }
  return absl::OkStatus();
}

// After the tenants.
absl::Status ResolveResp(Options& options) {
  RespSection& resp = options.resp;
  if (resp.listen.empty()) return absl::OkStatus();
  const std::optional<ListenAddress> address = ListenAddress::Parse(resp.listen);
  if (!address || (!address->loopback && !resp.allow_remote)) {
    return Contradiction("resp.listen", resp.listen,
                         "an address of this machine alone, or resp.allow_remote = true");
  }
  if (resp.tenant.empty() && options.tenants.size() == 1) resp.tenant = options.tenants[0].name;
  const bool known =
      std::any_of(options.tenants.begin(), options.tenants.end(),
                  [&](const TenantOptions& tenant) { return tenant.name == resp.tenant; });
  if (!known) {
    return Contradiction("resp.tenant", resp.tenant, "the name of one of the [[tenants]]");
  }
  return absl::OkStatus();
}

}  // namespace

KindLimits TenantOptions::Limits() const {
  KindLimits resolved;
  for (size_t kind = 0; kind < kObjectKinds; ++kind) {
    resolved[kind] = {limits[kind].floor.value_or(KindLimit{}.floor),
                      limits[kind].ceiling.value_or(KindLimit{}.ceiling)};
  }
  return resolved;
}

std::string DefaultSocketPath() {
  const std::string runtime_dir = AbsolutePathFromEnvironment("XDG_RUNTIME_DIR");
  return absl::StrCat(runtime_dir.empty() ? "/run" : runtime_dir, "/terrace/terraced.sock");
}

absl::StatusOr<Options> ResolveOptions(Options options) {
  if (absl::Status s = ResolvePaths(options); !s.ok()) return s;
  if (absl::Status s = ResolveHost(options.host); !s.ok()) return s;
  if (absl::Status s = ResolveNvme(options.nvme); !s.ok()) return s;
  if (absl::Status s = ResolveTenants(options); !s.ok()) return s;
  if (absl::Status s = ResolveHbm(options); !s.ok()) return s;
  if (absl::Status s = ResolveNvmeParts(options); !s.ok()) return s;
  if (absl::Status s = ResolveLimits(options); !s.ok()) return s;
  if (absl::Status s = ResolveResp(options); !s.ok()) return s;
  return options;
}

}  // namespace terrace
