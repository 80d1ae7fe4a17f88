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
  uint32_t depth = resident.depth.value_or(0);
  if (!resident.depth && resident.parent != kNoPolicyId) {
    const Held* parent = held_.Find(resident.parent);
    if (parent != nullptr && parent->units > 0) depth = parent->depth + uint32_t{1};
  }
  Held& held = held_.At(id);
  held.units = static_cast<uint32_t>(AlignUp(resident.bytes, kExtentAlignment) / kExtentAlignment);
  held.depth = static_cast<uint16_t>(std::min<uint32_t>(depth, UINT16_MAX));
  held.kind = resident.kind;
  Of(held.kind).used_bytes += held.bytes();
  TrackInfo info;
  info.bytes = held.bytes();
  info.cost_us = LossUs(resident.loss);
  info.key_head = resident.key_head;
  info.parent = resident.parent;
  info.depth = held.depth;
  info.kind = held.kind;
  policy_->Track(id, info);
}

void Placement::Repriced(PolicyId id, const Loss& loss) {
  const Held* held = held_.Find(id);
  if (held != nullptr && held->units > 0) policy_->Reprice(id, held->bytes(), LossUs(loss));
}

void Placement::Release(PolicyId id) {
  Held* held = held_.Find(id);
  if (held == nullptr) return;
  Of(held->kind).used_bytes -= held->bytes();
  held->units = 0;
}

void Placement::Left(PolicyId id) {
  Release(id);
  policy_->Forget(id);
}

std::optional<PolicyId> Placement::VictimFor(std::optional<ObjectKind> incoming,
                                             absl::FunctionRef<bool(PolicyId)> evictable) {
  std::optional<PolicyId> victim;
  const auto above = [](const Kind& kind) { return kind.above_ceiling(); };
  if (std::any_of(kinds_.begin(), kinds_.end(), above)) {
    victim = policy_->Evict(
        [&](PolicyId id) { return Of(held_[id].kind).above_ceiling() && evictable(id); });
  }
  if (!victim) {
    const bool own_only = incoming && Of(*incoming).above_ceiling();
    victim = policy_->Evict([&](PolicyId id) {
      const Held& held = held_[id];
      if (held.kind == incoming) return evictable(id);
      const Kind& kind = Of(held.kind);
      return !own_only && kind.used_bytes >= kind.floor_bytes + held.bytes() && evictable(id);
    });
  }
  if (victim) Release(*victim);
  return victim;
}

}  // namespace terrace
