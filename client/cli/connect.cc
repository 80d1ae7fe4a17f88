#include <cstdio>
#include <utility>

#include "client/cli/commands.h"
#include "client/json_writer.h"
#include "config/options.h"

namespace terrace::cli {

int Fail(const GlobalOptions& options, std::string_view what, const absl::Status& status) {
  const std::string detail(status.message());
  const int code = absl::IsNotFound(status)      ? kNotFound
                   : absl::IsUnavailable(status) ? kNotReachable
                                                 : kError;
  std::string text(what);
  if (!text.empty()) text += ": ";
  text += detail;
  std::fprintf(stderr, "terrace: %s\n", text.c_str());
  if (options.json) {
    JsonWriter json;
    json.BeginObject().Field("error", text).Field("exit_code", code).EndObject();
    std::printf("%s\n", json.text().c_str());
  }
  return code;
}

std::unique_ptr<Connection> Connect(const GlobalOptions& options, int& exit_code) {
  ConnectionOptions connection;
  connection.socket_path = options.socket;
  if (options.socket.empty()) {
    const auto defaults = ResolveOptions(DefaultOptions());
    if (!defaults.ok()) {
      exit_code =
          Fail(options, "finding the default socket (name one with --socket)", defaults.status());
      return nullptr;
    }
    connection.socket_path = defaults->server.socket_path;
  }
  connection.hello.client_name = "terrace-cli";
  connection.hello.tenant = options.tenant;
  const std::string socket = connection.socket_path;
  auto opened = Connection::Open(std::move(connection));
  if (opened.ok()) return *std::move(opened);
  absl::Status status = opened.status();
  // No socket file means the same to a person as nobody behind it: the daemon is not running.
  if (absl::IsNotFound(status) || absl::IsUnavailable(status)) {
    status = absl::UnavailableError(std::string(status.message()) +
                                    "; is terraced running? (start it with: terraced --config "
                                    "FILE, or name its socket with --socket)");
  }
  exit_code = Fail(options, "cannot reach the daemon at " + socket, status);
  return nullptr;
}

}  // namespace terrace::cli
