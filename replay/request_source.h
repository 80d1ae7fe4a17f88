// The requests of a trace with what is known of the future when each is served. The clock of all
// uses is the number of the access in the trace, from 0. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "replay/trace.h"
#include "tiers/eviction/policy.h"

namespace terrace::replay {

struct Sighting {
  uint64_t key;
  uint64_t use;
};

struct KnownRequest {
  Request request;
  uint64_t number = 0;        // in the trace
  uint64_t first_access = 0;  // the number of accesses[0]
  // Of each access, when its object is wanted next: kUnknownUse, or kNeverUsed.
  std::vector<uint64_t> next_uses;
  // Uses that came into view since the last request, of objects of which none was in view; objects
  // that `request` wants itself are not among them.
  std::vector<Sighting> sightings;
};

class RequestSource {
 public:
  virtual ~RequestSource() = default;
  // False at the end. `next` is overwritten, its vectors reused. Fails as TraceReader::Next.
  virtual absl::StatusOr<bool> Next(KnownRequest& next) = 0;
};

// Knows the `window` requests after the one that is served, and nothing beyond. Memory grows with
// the accesses in the window alone. 0: knows nothing.
std::unique_ptr<RequestSource> NewWindowSource(std::unique_ptr<TraceReader> reader,
                                               uint32_t window);

}  // namespace terrace::replay
