// What a RESP connection needs around it: the way to the loop thread and back, time, and what all
// connections share. Private to transport/. Everything here is of the RESP thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "transport/resp_lmcache.h"
#include "transport/resp_server.h"
#include "transport/resp_service.h"

namespace terrace {

class RespConnection;

class RespHost {
 public:
  // What came of a question, run on the RESP thread; with nullptr when the connection is gone.
  using Answer = absl::AnyInvocable<void(RespConnection*)>;
  using Reply = absl::AnyInvocable<void(Answer)>;
  using Question = absl::AnyInvocable<void(RespService&, Reply)>;

  virtual ~RespHost() = default;
  // Runs on the loop thread; `reply` is called there once, then or later.
  virtual void Ask(uint64_t connection, Question question) = 0;
  virtual void Tell(absl::AnyInvocable<void(RespService&)> order) = 0;
  // Wakes the connection: Drive() after so long, once.
  virtual void WakeAfter(uint64_t connection, uint32_t ms) = 0;
  virtual const RespService& service() const = 0;  // what any thread may call
  virtual const RespServerOptions& options() const = 0;
  virtual RespStats& stats() = 0;
  virtual RespLmcacheSizes& lmcache_sizes() = 0;
  virtual uint64_t now_us() const = 0;
};

}  // namespace terrace
