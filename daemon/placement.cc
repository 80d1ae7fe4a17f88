#include "daemon/placement.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace terrace {

uint32_t LossUs(const Loss& loss) {
  if (loss.remake_us == 0 || loss.fetch_us == 0) return std::max(loss.remake_us, loss.fetch_us);
  return std::min(loss.remake_us, loss.fetch_us);
}

Placement::Placement(std::unique_ptr<EvictionPolicy> policy, const KindLimits& limits,
                     uint64_t capacity_bytes)
    : policy_(std::move(policy)), limits_(limits) {
  SetLimits(capacity_bytes);
}

void Placement::SetLimits(uint64_t capacity_bytes) {
  double floors = 0;
  for (size_t i = 0; i < kObjectKinds; ++i) {
    kinds_[i].floor_bytes = limits_[i].floor.Of(capacity_bytes);
    kinds_[i].ceiling_bytes = limits_[i].ceiling.Of(capacity_bytes);
    floors += static_cast<double>(kinds_[i].floor_bytes);
  }
  const auto capacity = static_cast<double>(capacity_bytes);
  if (floors <= capacity) return;
  for (Kind& kind : kinds_) {
    kind.floor_bytes =
        static_cast<uint64_t>(static_cast<double>(kind.floor_bytes) / floors * capacity);
  }
}

void Placement::SetCapacity(uint64_t bytes) {
  SetLimits(bytes);
  policy_->SetCapacity(bytes);
}

void Placement::Entered(PolicyId id, const Resident& resident) {
  Of(resident.space.kind).used_bytes += resident.space.bytes;
  TrackInfo info;
  info.bytes = resident.space.bytes;
  info.cost_us = LossUs(resident.loss);
  info.key_head = resident.key_head;
  info.parent = resident.parent;
  info.depth = resident.depth;
  info.kind = resident.space.kind;
  policy_->Track(id, info);
}

void Placement::Left(PolicyId id, const Space& space) {
  Release(space);
  policy_->Forget(id);
}

std::optional<PolicyId> Placement::VictimFor(std::optional<ObjectKind> incoming, MayGive may_give) {
  std::optional<PolicyId> victim;
  const auto above = [](const Kind& kind) { return kind.above_ceiling(); };
  if (std::any_of(kinds_.begin(), kinds_.end(), above)) {
    victim = policy_->Evict([&](PolicyId id) {
      const std::optional<Space> given = may_give(id);
      return given && Of(given->kind).above_ceiling();
    });
  }
  if (!victim) {
    const bool own_only = incoming && Of(*incoming).above_ceiling();
    victim = policy_->Evict([&](PolicyId id) {
      const std::optional<Space> given = may_give(id);
      if (!given || given->kind == incoming) return given.has_value();
      const Kind& kind = Of(given->kind);
      return !own_only && kind.used_bytes >= kind.floor_bytes + given->bytes;
    });
  }
  if (victim) Release(*may_give(*victim));
  return victim;
}

}  // namespace terrace
