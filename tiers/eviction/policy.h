// What leaves a tier next. A policy orders dense 32-bit ids (catalog slots); it owns no object and
// frees nothing. Small on purpose, so that the daemon and terrace replay run the same code.
//
// The owner's part, for every policy alike:
// - Evict until there is room, then Track: a new object is never its own victim.
// - Of a prefix, Touch and Track the deepest extent first and the root last, so that by recency,
//   too, a child leaves before its parent.
// - Touch and Track end what was known about the id's next use. An owner that knows the one after
//   says so with Hint right after.
//
// One thread (the daemon's loop). No call blocks or fails; allocation aside, each is O(1) or
// O(log n), and policies say where they are not.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "config/object_layout.h"

namespace terrace {

using PolicyId = uint32_t;
inline constexpr PolicyId kNoPolicyId = 0xffffffffu;

struct TrackInfo {
  uint64_t bytes = 0;
  // Lost when it is wanted and not here: the cheaper of remaking it and fetching it from the next
  // tier that holds it. 0: unknown, taken to be proportional to bytes.
  uint32_t cost_us = 0;
  // ObjectKey::Head64: names the object beyond its stay, for ghosts and sampling. 0: no history.
  uint64_t key_head = 0;
  PolicyId parent = kNoPolicyId;  // the tracked extent before it in its prefix
  // How many extents are before it in its prefix; of an expert, its layer.
  uint16_t depth = 0;
  ObjectKind kind = ObjectKind::kKv;
};

// Of Hint: known not to be wanted again as far as anybody can see; not known (any more).
inline constexpr uint64_t kNeverUsed = std::numeric_limits<uint64_t>::max();
inline constexpr uint64_t kUnknownUse = kNeverUsed - 1;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // A new id enters the tier. Requires that it is not tracked.
  virtual void Track(PolicyId id, const TrackInfo& info) = 0;
  // The id was used. Ignored when not tracked.
  virtual void Touch(PolicyId id) = 0;
  // The next id to leave among those that `evictable` accepts; it is forgotten, but for what a
  // policy remembers of the past under its key. nullopt when none. Refused ids keep their place.
  virtual std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) = 0;
  // The id left the tier for another reason. Ignored when not tracked.
  virtual void Forget(PolicyId id) = 0;

  // When the id is next wanted, on the clock of PolicyContext, or kNeverUsed or kUnknownUse, and
  // how sure that is (0 .. 1). Ignored by policies that take no hints, and when not tracked.
  virtual void Hint(PolicyId /*id*/, uint64_t /*next_use*/, float /*confidence*/) {}
  // It is lost at another cost from now on: it has got, or lost, a copy in a lower tier. Ignored by
  // policies that do not ask for costs, and when not tracked.
  // `bytes`: as of Track.
  virtual void Reprice(PolicyId /*id*/, uint64_t /*bytes*/, uint32_t /*cost_us*/) {}
  // What is before the id in its prefix, as TrackInfo::parent, is known only by now, or came only
  // by now. Requires that the id is tracked; ignored when its parent is, and by policies that
  // do not ask for it.
  virtual void Follows(PolicyId /*id*/, PolicyId /*parent*/) {}
  // The tier has another size from now on. Ignored by policies that do not depend on it.
  virtual void SetCapacity(uint64_t /*bytes*/) {}
};

struct PolicyContext {
  uint64_t capacity_bytes = 0;
  // Any monotonic clock, the one that hints are on: microseconds in the daemon, requests or
  // accesses in a replay. Null: policies count accesses.
  std::function<uint64_t()> now;
  uint32_t layers = 1;  // of the model whose experts are tracked
  uint64_t seed = 1;    // of randomised policies
  // Ids are extents of prefixes: none leaves before its children (leaf_first.h).
  bool prefixes = false;
};

// Least recently used. O(1), an eviction O(1 + refused candidates). The others: policies.h.
std::unique_ptr<EvictionPolicy> NewLruPolicy();

}  // namespace terrace
