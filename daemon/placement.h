// What stays in a tenant's host memory: the one decision for all kinds of objects. Its currency is
// loss per byte: P(reuse) * min(time to make it again, time to fetch it from the next holder) /
// bytes. The eviction policy judges the reuse; this prices objects for it and keeps what the
// operator laid down for each kind.
//
// A kind at its floor gives nothing to other kinds. A kind above its ceiling gives first, and takes
// only free memory and its own. An object that would bring its kind below the floor stays for
// others; between them is policy. Floors that do not fit the tier together shrink in proportion.
//
// Ids are catalog slots. Loop thread; nothing here blocks.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "config/object_layout.h"
#include "config/options.h"
#include "tiers/eviction/id_table.h"
#include "tiers/eviction/policy.h"

namespace terrace {

// What is lost, once, when an object that is wanted is not here. 0: unknown, or nobody else has it.
struct Loss {
  uint32_t remake_us = 0;
  uint32_t fetch_us = 0;
};
// The cheaper way to get it back; 0 when neither is known.
uint32_t LossUs(const Loss& loss);

// An object that comes to stay.
struct Resident {
  uint64_t bytes = 0;  // of memory that it takes
  ObjectKind kind = ObjectKind::kKv;
  uint64_t key_head = 0;
  PolicyId parent = kNoPolicyId;  // the extent before it in its prefix, if it is here
  std::optional<uint16_t> depth;  // extents before it; unknown: one more than the parent's
  Loss loss;
};

class Placement {
 public:
  // `limits`: by kind, shares of `capacity_bytes`.
  Placement(std::unique_ptr<EvictionPolicy> policy, const KindLimits& limits,
            uint64_t capacity_bytes);

  // Requires that it is not here.
  void Entered(PolicyId id, const Resident& resident);
  // Of a prefix, the deepest extent first.
  void Used(PolicyId id) { policy_->Touch(id); }
  // Its next holder is another. Ignored when it is not here.
  void Repriced(PolicyId id, const Loss& loss);
  // It left for another reason than Victim. Ignored when it is not here.
  void Left(PolicyId id);
  // Next use, as EvictionPolicy::Hint.
  void Hint(PolicyId id, uint64_t next_use, float confidence) {
    policy_->Hint(id, next_use, confidence);
  }

  // What leaves to make room for an object of this kind, or because the tier shrinks; it has left.
  // nullopt: nothing that may leave is accepted by `evictable`.
  std::optional<PolicyId> VictimFor(std::optional<ObjectKind> incoming,
                                    absl::FunctionRef<bool(PolicyId)> evictable);

  void SetCapacity(uint64_t bytes);
  uint64_t used_bytes(ObjectKind kind) const { return Of(kind).used_bytes; }

 private:
  struct Held {
    uint32_t units = 0;  // of kExtentAlignment; 0: not here
    uint16_t depth = 0;
    ObjectKind kind = ObjectKind::kKv;
    uint64_t bytes() const { return uint64_t{units} * kExtentAlignment; }
  };
  struct Kind {
    uint64_t used_bytes = 0, floor_bytes = 0, ceiling_bytes = 0;
    bool above_ceiling() const { return used_bytes > ceiling_bytes; }
  };
  Kind& Of(ObjectKind kind) { return kinds_[static_cast<size_t>(kind) - 1]; }
  const Kind& Of(ObjectKind kind) const { return kinds_[static_cast<size_t>(kind) - 1]; }
  void SetLimits(uint64_t capacity_bytes);
  void Release(PolicyId id);

  std::unique_ptr<EvictionPolicy> policy_;
  const KindLimits limits_;
  std::array<Kind, kObjectKinds> kinds_{};
  IdTable<Held> held_;
};

}  // namespace terrace
