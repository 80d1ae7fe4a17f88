// Counters of the daemon, by name. Loop thread.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace terrace {

struct Metrics {
  uint64_t lookup_calls = 0;
  uint64_t lookup_keys = 0;        // asked for
  uint64_t lookup_hits = 0;        // keys answered present
  uint64_t recompute_advised = 0;  // of those, expected to be faster made again than loaded
  uint64_t tail_matches = 0;       // partial chunks found
  uint64_t acquired_host = 0;      // objects leased straight from the host tier
  uint64_t acquired_nvme = 0;      // objects that a lease had promoted
  uint64_t acquired_hbm = 0;       // objects leased on the device that were there
  uint64_t raised_objects = 0, raised_bytes = 0;    // host memory to the device
  uint64_t raised_ahead = 0;                        // of those before somebody asked
  uint64_t raised_timely = 0, raised_late = 0;      // asked for when there, and on their way
  uint64_t evicted_hbm = 0;                         // left the device
  uint64_t lowered_objects = 0, lowered_bytes = 0;  // of those, to host memory
  uint64_t acquire_misses = 0;
  uint64_t promoted_bytes = 0;
  uint64_t promotion_failures = 0;
  uint64_t corrupt_objects = 0;  // dropped because a checksum or an identity did not match
  uint64_t reserved_objects = 0;
  uint64_t committed_objects = 0;
  uint64_t committed_bytes = 0;
  uint64_t aborted_reservations = 0;
  uint64_t already_there = 0;    // reservations refused because the object exists
  uint64_t durable_objects = 0;  // written behind
  uint64_t durable_bytes = 0;
  uint64_t not_admitted = 0;  // not worth writing behind, so far
  uint64_t writes_failed = 0;
  uint64_t encoded_objects = 0;                        // of them not as they are
  uint64_t encoded_bytes = 0, encoded_from_bytes = 0;  // stored, of so much
  uint64_t decoded_objects = 0, decoded_bytes = 0;     // for a lease
  uint64_t hint_calls = 0;
  uint64_t hint_keys = 0;                       // announced
  uint64_t hint_refused = 0;                    // hints past a limit, in part or whole
  uint64_t hint_withdrawn = 0;                  // requests, by their session or its end
  uint64_t hint_lapsed = 0;                     // past their deadline, or forgotten by their engine
  uint64_t evicted_host = 0;                    // left memory
  uint64_t evicted_unwritten = 0;               // of those, never durable
  uint64_t resizes = 0;                         // of a tier or a tenant's part, asked for and begun
  uint64_t moved_objects = 0, moved_bytes = 0;  // within the host tier, because it shrinks
  uint64_t dropped_nvme = 0;                    // lost with a reclaimed segment
  uint64_t dropped_quota = 0;                   // records that gave way to their nvme_capacity
  uint64_t leases_expired = 0;
  uint64_t refused_limits = 0;  // calls answered ResourceExhausted by a configured limit

  // In declaration order, for status.
  std::vector<std::pair<std::string, uint64_t>> List() const;
};

}  // namespace terrace
