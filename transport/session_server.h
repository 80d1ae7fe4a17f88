// The capabilities one connection serves: Terrace (hello) and, after it, Session. They translate a
// call into one call of Service. Private to transport/; loop thread.
#pragma once

#include <kj/memory.h>

#include <memory>

#include "transport/service.h"
#include "transport/terrace.capnp.h"
#include "transport/wire_codec.h"

namespace terrace {

// Of one connection, shared by its capabilities because those may outlive it.
struct SessionState {
  Service* service = nullptr;
  PeerCredentials peer;
  WireLimits limits;
  uint64_t max_message_bytes = 0;
  bool opened = false;  // OpenSession succeeded: CloseSession is owed
  bool closed = false;  // the connection is gone: the service hears nothing more
  SessionId id = 0;
};

wire::Terrace::Client NewTerraceServer(std::shared_ptr<SessionState> state);

}  // namespace terrace
