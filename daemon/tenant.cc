#include "daemon/tenant.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "config/machine.h"
#include "config/object_layout.h"
#include "daemon/session.h"
#include "tiers/eviction/registry.h"

namespace terrace {

namespace {

absl::StatusOr<Salt> ReadSecret(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("open ", path));
  absl::Cleanup close_fd = [fd] { close(fd); };
  Salt secret{};
  if (read(fd, secret.data(), secret.size()) == static_cast<ssize_t>(secret.size())) return secret;
  return absl::FailedPreconditionError(
      absl::StrCat(path,
                   " is not a 32-byte secret; restore it, or remove it together with the "
                   "NVMe tier's directory to start empty"));
}

// Never replaces one that another daemon has just made.
absl::Status CreateSecret(const std::string& path) {
  Salt secret{};
  randombytes_buf(secret.data(), secret.size());
  std::string draft = path + ".XXXXXX";
  const int fd = mkostemp(draft.data(), O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("create ", draft));
  absl::Cleanup remove_draft = [&] {
    close(fd);
    unlink(draft.c_str());
  };
  if (write(fd, secret.data(), secret.size()) != static_cast<ssize_t>(secret.size()) ||
      fsync(fd) != 0 || (link(draft.c_str(), path.c_str()) != 0 && errno != EEXIST)) {
    return absl::ErrnoToStatus(errno, absl::StrCat("write ", path));
  }
  return absl::OkStatus();
}

// The secret every derived tenant salt comes from. Losing it loses the stored objects (their keys
// can no longer be computed), so it is written durably before it is first used.
absl::StatusOr<Salt> LoadOrCreateSecret(const std::string& state_dir) {
  const std::string path = state_dir + "/secret";
  absl::StatusOr<Salt> secret = ReadSecret(path);
  if (!absl::IsNotFound(secret.status())) return secret;
  absl::Status created = CreateSecret(path);
  if (!created.ok()) return created;
  return ReadSecret(path);
}

// What a tenant's arena may ever become: the memory there is, as long as the addresses of all
// tenants' arenas fit the daemon. Address space only, here and in clients. 0 when it is not known.
uint64_t LargestHostBytes(size_t tenant_count) {
  constexpr uint64_t kAddressBytes = uint64_t{32} << 40;
  const absl::StatusOr<uint64_t> memory = MemoryLimitBytes();
  if (!memory.ok()) return 0;
  return std::min({*memory, kAddressBytes / tenant_count, ExtentAllocator::kMaxBytes}) /
         kExtentAlignment * kExtentAlignment;
}

// The tenant's part of the device, and the policies of what stays where.
absl::Status Furnish(Tenant& tenant, const Options& options, const KindLimits& limits,
                     kernels::Device* device) {
  uint64_t device_bytes = 0;
  if (device != nullptr) {
    const double share = static_cast<double>(tenant.host_share_bytes) /
                         static_cast<double>(options.host.capacity.bytes);
    device_bytes = static_cast<uint64_t>(share * static_cast<double>(options.hbm.capacity.bytes)) /
                   kExtentAlignment * kExtentAlignment;
    auto part = DeviceTier::Create(device, device_bytes);
    if (!part.ok()) {
      return absl::Status(part.status().code(),
                          absl::StrCat("hbm.capacity: ", std::string(part.status().message())));
    }
    tenant.device = *std::move(part);
  }
  PolicyContext context;
  context.now = MonotonicUs;
  context.prefixes = true;
  const auto new_policy = [&](uint64_t capacity_bytes) {
    context.capacity_bytes = capacity_bytes;
    return NewPolicy(options.host.policy, context);
  };
  const uint64_t memory_bytes = tenant.host->capacity_bytes() + device_bytes;
  auto policy = new_policy(memory_bytes);
  if (!policy.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("host.policy: ", std::string(policy.status().message())));
  }
  tenant.placement = std::make_unique<Placement>(*std::move(policy), limits, memory_bytes);
  if (device != nullptr) tenant.device_policy = *new_policy(device_bytes);
  return absl::OkStatus();
}

}  // namespace

uint32_t StoredTenantId(const std::string& name) {
  uint8_t digest[crypto_generichash_BYTES_MIN];
  crypto_generichash(digest, sizeof digest, reinterpret_cast<const uint8_t*>(name.data()),
                     name.size(), nullptr, 0);
  uint32_t id;
  std::memcpy(&id, digest, sizeof id);
  return id;
}

absl::StatusOr<std::vector<Tenant>> BuildTenants(const Options& options, const PostFn& post,
                                                 kernels::Device* device) {
  if (sodium_init() < 0) return absl::InternalError("libsodium did not initialise");
  absl::StatusOr<Salt> secret = LoadOrCreateSecret(options.server.state_dir);
  if (!secret.ok()) return secret.status();
  const uint64_t largest = LargestHostBytes(options.tenants.size());
  std::vector<Tenant> tenants;
  for (const TenantOptions& configured : options.tenants) {
    Tenant tenant;
    tenant.name = configured.name;
    tenant.uids = configured.uids;
    tenant.salt =
        configured.salt ? *configured.salt : DeriveSalt(*secret, "tenant:" + configured.name);
    tenant.stored_id = StoredTenantId(configured.name);
    for (const Tenant& other : tenants) {
      if (other.stored_id == tenant.stored_id) {
        return absl::FailedPreconditionError(absl::StrCat(
            "tenants '", other.name, "' and '", tenant.name, "' share a stored id: rename one"));
      }
    }
    MemoryTierOptions host;
    host.name = "terrace-host-" + configured.name;
    host.capacity_bytes = configured.host_capacity->bytes / kExtentAlignment * kExtentAlignment;
    host.headroom_bytes = options.host.headroom.bytes;
    host.max_capacity_bytes = std::max(host.capacity_bytes, largest);
    auto arena = MemoryTier::Create(std::move(host), post);
    if (!arena.ok()) return arena.status();
    tenant.host = *std::move(arena);
    tenant.host_share_bytes = tenant.host->capacity_bytes();
    absl::Status furnished = Furnish(tenant, options, configured.Limits(), device);
    if (!furnished.ok()) return furnished;
    tenant.nvme_policy = NewLruPolicy();
    if (configured.nvme_capacity) tenant.nvme_quota_bytes = configured.nvme_capacity->bytes;
    tenants.push_back(std::move(tenant));
  }
  return tenants;
}

}  // namespace terrace
