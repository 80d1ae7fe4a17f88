#include "config/listen_address.h"

#include <arpa/inet.h>

#include <string>

#include "absl/strings/numbers.h"

namespace terrace {

std::optional<ListenAddress> ListenAddress::Parse(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return std::nullopt;
  const std::string_view port_digits = text.substr(colon + 1);
  if (port_digits.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  uint32_t port = 0;
  if (!absl::SimpleAtoi(std::string(port_digits), &port) || port == 0 || port > 65535)
    return std::nullopt;

  std::string host(text.substr(0, colon));
  ListenAddress address;
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    address.socket.v6.sin6_family = AF_INET6;
    address.socket.v6.sin6_port = htons(port);
    address.length = sizeof address.socket.v6;
    if (inet_pton(AF_INET6, host.c_str(), &address.socket.v6.sin6_addr) != 1) return std::nullopt;
    address.loopback = IN6_IS_ADDR_LOOPBACK(&address.socket.v6.sin6_addr);
    return address;
  }
  address.socket.v4.sin_family = AF_INET;
  address.socket.v4.sin_port = htons(port);
  address.length = sizeof address.socket.v4;
  if (inet_pton(AF_INET, host.c_str(), &address.socket.v4.sin_addr) != 1) return std::nullopt;
  address.loopback = (ntohl(address.socket.v4.sin_addr.s_addr) >> 24) == 127;
  return address;
}

}  // namespace terrace
