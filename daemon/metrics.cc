#include "daemon/metrics.h"

namespace terrace {

std::vector<std::pair<std::string, uint64_t>> Metrics::List() const {
  return {{"lookup_calls", lookup_calls},
          {"lookup_keys", lookup_keys},
          {"lookup_hits", lookup_hits},
          {"recompute_advised", recompute_advised},
          {"tail_matches", tail_matches},
          {"acquired_host", acquired_host},
          {"acquired_nvme", acquired_nvme},
          {"acquire_misses", acquire_misses},
          {"promoted_bytes", promoted_bytes},
          {"promotion_failures", promotion_failures},
          {"corrupt_objects", corrupt_objects},
          {"reserved_objects", reserved_objects},
          {"committed_objects", committed_objects},
          {"committed_bytes", committed_bytes},
          {"aborted_reservations", aborted_reservations},
          {"already_there", already_there},
          {"durable_objects", durable_objects},
          {"durable_bytes", durable_bytes},
          {"not_admitted", not_admitted},
          {"encoded_objects", encoded_objects},
          {"encoded_bytes", encoded_bytes},
          {"encoded_from_bytes", encoded_from_bytes},
          {"decoded_objects", decoded_objects},
          {"decoded_bytes", decoded_bytes},
          {"writes_failed", writes_failed},
          {"hint_calls", hint_calls},
          {"hint_keys", hint_keys},
          {"hint_refused", hint_refused},
          {"hint_withdrawn", hint_withdrawn},
          {"hint_lapsed", hint_lapsed},
          {"evicted_host", evicted_host},
          {"evicted_unwritten", evicted_unwritten},
          {"resizes", resizes},
          {"moved_objects", moved_objects},
          {"moved_bytes", moved_bytes},
          {"dropped_nvme", dropped_nvme},
          {"dropped_quota", dropped_quota},
          {"leases_expired", leases_expired},
          {"refused_limits", refused_limits}};
}

}  // namespace terrace
