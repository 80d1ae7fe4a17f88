// What leaves a tier next. A policy orders dense 32-bit ids (catalog slots); it owns no object and
// frees nothing. Small on purpose, so that the daemon and a simulator run the same code.
// Loop thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"

namespace terrace {

using PolicyId = uint32_t;

struct TrackInfo {
  uint64_t bytes = 0;
  uint32_t cost_us = 0;  // to remake the object
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  // A new id enters the tier. Requires that it is not tracked.
  virtual void Track(PolicyId id, const TrackInfo& info) = 0;
  // The id was used. Ignored when not tracked.
  virtual void Touch(PolicyId id) = 0;
  // The next id to leave among those that `evictable` accepts; it is forgotten. nullopt when none.
  virtual std::optional<PolicyId> Evict(absl::FunctionRef<bool(PolicyId)> evictable) = 0;
  // The id left the tier for another reason. Ignored when not tracked.
  virtual void Forget(PolicyId id) = 0;
};

// Least recently used. 8 bytes an id, O(1) but for refused candidates, which keep their place.
std::unique_ptr<EvictionPolicy> NewLruPolicy();

}  // namespace terrace
