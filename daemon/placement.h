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
#include "tiers/eviction/policy.h"

namespace terrace {

// What is lost, once, when an object that is wanted is not here. 0: unknown, or nobody else has it.
struct Loss {
  uint32_t remake_us = 0;
  uint32_t fetch_us = 0;
};
// The cheaper way to get it back; 0 when neither is known.
uint32_t LossUs(const Loss& loss);

// What an object takes of memory. The owner knows it of every id: nothing is kept here an object.
struct Space {
  uint64_t bytes = 0;
  ObjectKind kind = ObjectKind::kKv;
};

// An object that comes to stay.
struct Resident {
  Space space;
  uint64_t key_head = 0;
  PolicyId parent = kNoPolicyId;  // the extent before it in its prefix, if it is here
  uint16_t depth = 0;             // extents before it; of an expert, its layer
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
  void Repriced(PolicyId id, uint64_t bytes, const Loss& loss) {
    policy_->Reprice(id, bytes, LossUs(loss));
  }
  // It left for another reason than VictimFor.
  void Left(PolicyId id, const Space& space);
  // It was expected, and will not come: extents behind it in its prefix go on without it.
  void Missed(PolicyId id) { policy_->Forget(id); }
  // The extent before it in its prefix has come by now; as EvictionPolicy::Follows.
  void Follows(PolicyId id, PolicyId parent) { policy_->Follows(id, parent); }
  // Next use, as EvictionPolicy::Hint.
  void Hint(PolicyId id, uint64_t next_use, float confidence) {
    policy_->Hint(id, next_use, confidence);
  }

  // Of an id that is here: the space that it gives, as it took when it entered, or nullopt when it
  // must stay. Asked again of what was chosen.
  using MayGive = absl::FunctionRef<std::optional<Space>(PolicyId)>;
  // What leaves to make room for an object of this kind, or because the tier shrinks; it has left.
  // nullopt: nothing that may leave.
  std::optional<PolicyId> VictimFor(std::optional<ObjectKind> incoming, MayGive may_give);

  void SetCapacity(uint64_t bytes);
  uint64_t used_bytes(ObjectKind kind) const { return Of(kind).used_bytes; }

 private:
  struct Kind {
    uint64_t used_bytes = 0, floor_bytes = 0, ceiling_bytes = 0;
    bool above_ceiling() const { return used_bytes > ceiling_bytes; }
  };
  Kind& Of(ObjectKind kind) { return kinds_[static_cast<size_t>(kind) - 1]; }
  const Kind& Of(ObjectKind kind) const { return kinds_[static_cast<size_t>(kind) - 1]; }
  void SetLimits(uint64_t capacity_bytes);
  void Release(const Space& space) { Of(space.kind).used_bytes -= space.bytes; }

  std::unique_ptr<EvictionPolicy> policy_;
  const KindLimits limits_;
  std::array<Kind, kObjectKinds> kinds_{};
};

}  // namespace terrace
