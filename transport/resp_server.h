// Serves a RespService over TCP to clients of Redis, on a thread of its own: bytes of values go
// from the socket into the service's memory and from there to the socket, and the loop thread is
// asked only where they are. Created and destroyed on the loop thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "config/post.h"
#include "transport/resp_service.h"

namespace terrace {

struct RespServerOptions {
  std::string listen;    // ListenAddress
  std::string password;  // empty: none
  uint64_t max_value_bytes = uint64_t{512} << 20;
  uint64_t max_clients = 10000;
  bool lmcache = false;
  std::string version;              // of the daemon, for INFO
  uint32_t room_timeout_ms = 5000;  // how long a value waits for room before it is refused
  // A client that is in the middle of a command or a reply and does not move is closed.
  uint32_t stall_timeout_ms = 30000;
};

// Written by the server's thread, read by any.
struct RespStats {
  std::atomic<uint64_t> clients = 0;  // now
  std::atomic<uint64_t> commands = 0, errors = 0;
  std::atomic<uint64_t> gets = 0, get_misses = 0, sets = 0, sets_refused = 0;
  std::atomic<uint64_t> received_bytes = 0, sent_bytes = 0;  // of values
  std::atomic<uint64_t> refused_clients = 0, stalled_clients = 0;
  std::atomic<uint64_t> waiting_for_room = 0;  // times

  std::vector<std::pair<std::string, uint64_t>> List() const;
};

class RespServer {
 public:
  // Binds, listens and starts the thread. `service` outlives the server. FailedPrecondition: the
  // address cannot be used.
  static absl::StatusOr<std::unique_ptr<RespServer>> Listen(RespServerOptions options,
                                                            RespService& service,
                                                            const PostFn& post);
  // Closes every connection. What they held in the service it may not have been told: the service
  // ends next.
  virtual ~RespServer() = default;
  virtual const RespStats& stats() const = 0;
};

}  // namespace terrace
