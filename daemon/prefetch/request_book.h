// The requests that sessions have announced: names for the Lookahead, which knows no sessions, what
// counts against each session's limit, and when a hint that nobody withdrew lapses. Loop thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "daemon/prefetch/hint_calibration.h"
#include "transport/service.h"

namespace terrace {

class RequestBook {
 public:
  // A request, by a number that no other has, from 1.
  using Number = uint64_t;

  Number FindOrAdd(SessionId session, uint64_t request_id);
  Number Find(SessionId session, uint64_t request_id) const;  // 0: none
  bool Belongs(Number number, SessionId session) const;
  bool HasRequests(SessionId session) const { return sessions_.contains(session); }
  // Announced keys of the session, those aside that this source said of the request.
  uint64_t KeysBeside(SessionId session, Number number, HintSource source) const;
  // What the source now says of it; returns what it had said. The request lapses at `lapses_us`.
  std::vector<uint64_t> Announce(Number number, HintSource source, std::vector<uint64_t> key_heads,
                                 uint64_t lapses_us);
  // Forgets the request: the key heads that were announced for it.
  std::vector<uint64_t> Take(Number number);
  std::vector<Number> RequestsOf(SessionId session) const;
  // The first request that has lapsed; 0: none. It is still to be taken.
  Number Lapsed(uint64_t now_us) const;

 private:
  struct Request {
    SessionId session = 0;
    uint64_t request_id = 0;
    uint64_t lapses_us = 0;
    std::array<std::vector<uint64_t>, kHintSources> key_heads;
  };
  struct SessionBook {
    absl::flat_hash_map<uint64_t, Number> by_request_id;
    uint64_t keys = 0;
  };

  Number last_ = 0;
  absl::flat_hash_map<Number, Request> requests_;
  absl::flat_hash_map<SessionId, SessionBook> sessions_;
  absl::btree_set<std::pair<uint64_t, Number>> by_lapse_;
};

}  // namespace terrace
