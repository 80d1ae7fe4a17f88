// The calls of CacheService that change sizes while it serves: an operator's, and a configuration
// file that was read anew.
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "config/text.h"
#include "daemon/cache_service.h"
#include "spdlog/spdlog.h"

namespace terrace {

absl::StatusOr<ResizeReply> CacheService::Resize(SessionId id, const ResizeRequest& request) {
  absl::StatusOr<Session*> session = Get(id, "resize");
  if (!session.ok()) return session.status();
  const uint32_t uid = (*session)->peer.uid;
  if (uid != 0 && uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("resize: uid ", uid, " is neither root nor the user that runs the daemon (",
                     geteuid(), ")"));
  }
  if (request.percent > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("percent ", request.percent, " is outside 1 .. 100"));
  }
  const bool asks_only = request.bytes == 0 && request.percent == 0;
  const Size size =
      request.percent != 0 ? Size::Percent(request.percent) : Size::Bytes(request.bytes);
  absl::Status known = live_.Find(request.tier, request.tenant);
  if (!known.ok()) return known;
  if (!asks_only) {
    absl::StatusOr<LiveOptions::Change> change = live_.Resize(request.tier, request.tenant, size);
    if (!change.ok()) return change.status();
    const std::string keys = absl::StrJoin(change->applied, " ");
    absl::Status applied = Apply(*std::move(change));
    if (!applied.ok()) return applied;
    spdlog::info("resize by uid {}: {}{}{} to {} ({})", uid, request.tier,
                 request.tenant.empty() ? "" : " of tenant ", request.tenant, FormatSize(size),
                 keys.empty() ? "no change" : keys);
  }
  std::optional<uint16_t> tenant;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    if (tenants_[i].name == request.tenant) tenant = static_cast<uint16_t>(i);
  }
  return ResizeProgress(request.tier, tenant);
}

absl::Status CacheService::Reload(Options configured) {
  absl::StatusOr<LiveOptions::Change> change = live_.Reload(std::move(configured));
  if (!change.ok()) return change.status();
  const std::vector<std::string> applied_keys = change->applied, restart = change->need_restart;
  absl::Status applied = Apply(*std::move(change));
  if (!applied.ok()) return applied;
  spdlog::info("configuration read anew: {}",
               applied_keys.empty() ? "no change" : absl::StrJoin(applied_keys, " "));
  if (!restart.empty()) {
    spdlog::warn("changed in the configuration, but only at the next start: {}",
                 absl::StrJoin(restart, " "));
  }
  return absl::OkStatus();
}

// All of it or nothing.
absl::Status CacheService::Apply(LiveOptions::Change change) {
  const Options& to = change.resolved;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    const uint64_t bytes = to.tenants[i].host_capacity->bytes;
    if (bytes > tenants_[i].host->max_capacity_bytes()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "key 'tenants.", tenants_[i].name, ".host_capacity' = ", bytes, ": expected at most ",
          tenants_[i].host->max_capacity_bytes(), " bytes without a restart"));
    }
  }
  if (nvme_ != nullptr && to.nvme.capacity != live_.resolved().nvme.capacity) {
    absl::Status status = nvme_->SetCapacity(to.nvme.capacity.bytes);
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < tenants_.size(); ++i) {
    mover_.SetHostShare(static_cast<uint16_t>(i), to.tenants[i].host_capacity->bytes).IgnoreError();
  }
  for (size_t i = 0; i < tenants_.size(); ++i) {
    const std::optional<Size>& quota = to.tenants[i].nvme_capacity;
    mover_.SetNvmeQuota(static_cast<uint16_t>(i), quota ? quota->bytes : UINT64_MAX);
  }
  if (!change.applied.empty()) ++metrics_.resizes;
  if (to.server.log_level != live_.resolved().server.log_level) {
    spdlog::set_level(spdlog::level::from_str(to.server.log_level));
  }
  live_.Accept(std::move(change));
  return absl::OkStatus();
}

ResizeReply CacheService::ResizeProgress(std::string_view tier,
                                         std::optional<uint16_t> tenant) const {
  ResizeReply reply;
  uint64_t excess_bytes = 0;
  if (tier == "nvme") {
    const NvmeStats stats = nvme_->Stats();
    reply.target_bytes = tenant ? tenants_[*tenant].nvme_quota_bytes : stats.capacity_bytes;
    const uint64_t used_bytes = tenant ? tenants_[*tenant].nvme_bytes : stats.used_bytes;
    excess_bytes = used_bytes - std::min(used_bytes, reply.target_bytes);
  } else {
    for (size_t i = 0; i < tenants_.size(); ++i) {
      if (tenant && *tenant != i) continue;
      reply.target_bytes += tenants_[i].host->capacity_bytes();
      excess_bytes += tenants_[i].host->excess_bytes();
      reply.held_by_leases_bytes += tenants_[i].shrink.last_held_bytes;
    }
  }
  reply.current_bytes = reply.target_bytes + excess_bytes;
  reply.done = excess_bytes == 0;
  if (reply.done) reply.held_by_leases_bytes = 0;
  return reply;
}

}  // namespace terrace
