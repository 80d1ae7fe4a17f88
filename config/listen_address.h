// Where a TCP server listens, as an operator writes it: "127.0.0.1:6380", "[::1]:6380". Numbers
// only: a name would be looked up. Pure; any thread.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace terrace {

union SocketAddress {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

struct ListenAddress {
  SocketAddress socket{};
  socklen_t length = 0;   // of what is used of `socket`
  bool loopback = false;  // only processes of this machine reach it

  // nullopt unless it is an IPv4 address, or an IPv6 address in brackets, and a port 1 .. 65535.
  static std::optional<ListenAddress> Parse(std::string_view text);
};

}  // namespace terrace
