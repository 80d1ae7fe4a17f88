// Serves a Service over Cap'n Proto RPC on a Unix domain socket. Loop thread.
//
// Every byte from a client is checked here before the service sees it: message size, list lengths,
// enum values. A protocol violation ends that connection and no other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "transport/loop.h"
#include "transport/service.h"

namespace terrace {

struct ServerOptions {
  std::string socket_path;  // its directory is created 0755 if absent
  uint64_t max_message_bytes = 64 << 20;
  uint32_t max_connections = 256;  // one more is closed at once
  uint32_t max_keys_per_call = 4096;
};

class Server {
 public:
  // Binds and listens. A stale socket file (nobody answers) is replaced; a live one is
  // FailedPrecondition naming the path. The socket is mode 0666: access is decided by SO_PEERCRED.
  static absl::StatusOr<std::unique_ptr<Server>> Listen(Loop& loop, ServerOptions options,
                                                        Service& service);
  // Stops accepting, closes every connection (CloseSession for each), removes the socket file.
  virtual ~Server() = default;
};

}  // namespace terrace
