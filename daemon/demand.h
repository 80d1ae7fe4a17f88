// What the sessions of a tenant ask for, found or not: feeds the tenant's miss-ratio curve, and
// remembers how often and at what cost. Loop thread; time comes from the caller.
//
// What counts as an access: every key of a lookup, the missing ones too, and a tail that matched.
// What is leased afterwards was asked for already; only objects of layouts that nobody of the
// tenant looks up before (experts by name, say) count when they are acquired. An engine that asks
// again about a request that waits counts again.
//
// All of it fades with a half-life of six hours: long enough for a curve of many samples, short
// enough to follow what changed since the morning.
#pragma once

#include <cstdint>
#include <vector>

#include "config/object_key.h"
#include "config/object_layout.h"
#include "tiers/eviction/miss_ratio_curve.h"

namespace terrace {

class Demand {
 public:
  // Sizes up to `max_bytes` matter.
  Demand(uint64_t max_bytes, uint64_t now_us) : curve_(max_bytes), faded_us_(now_us) {}

  // `payload_bytes`: 0 of an object that is not stored: it counts as large as the latest one of the
  // layout. `remake_us`: 0 when nobody knows.
  void LookedUp(uint32_t layout, const ObjectKey& key, uint64_t payload_bytes, uint32_t remake_us);
  void Acquired(uint32_t layout, const ObjectKey& key, uint64_t payload_bytes, uint32_t remake_us);
  // It was found to be absent before, perhaps: now its size is known.
  void Stored(uint32_t layout, const ObjectKey& key, uint64_t payload_bytes);

  // Lets the past fade. Cheap; as often as one likes.
  void Tick(uint64_t now_us);

  const MissRatioCurve& curve() const { return curve_; }
  double AccessesPerHour(uint64_t now_us) const;
  // Mean cost of making again what was found; 0 when nobody knows.
  double remake_us() const { return costed_accesses_ > 0 ? cost_us_ / costed_accesses_ : 0; }
  double mean_bytes() const;

 private:
  struct LayoutState {
    uint64_t latest_bytes = 0;  // of an object; 0: none was stored or found yet
    bool looked_up = false;
  };
  LayoutState& At(uint32_t layout);
  void Count(LayoutState& state, const ObjectKey& key, uint64_t payload_bytes, uint32_t remake_us);

  MissRatioCurve curve_;
  std::vector<LayoutState> layouts_;  // by id
  uint64_t faded_us_;                 // when it last faded
  double window_us_ = 0;              // time that the counts stand for, as of then
  double cost_us_ = 0, costed_accesses_ = 0;
};

}  // namespace terrace
