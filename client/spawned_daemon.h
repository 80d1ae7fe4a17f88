// A terraced that this process started as a child, in a session of its own so that a Ctrl-C meant
// for the program does not reach it. Private to client/. One thread at a time.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace terrace {

class SpawnedDaemon {
 public:
  // Where terraced is: `wanted` when not empty, else $TERRACED, next to this library, next to the
  // program, in $PATH. NotFound saying where it was looked for.
  static absl::StatusOr<std::string> Find(const std::string& wanted);
  // Starts `binary --config config_path` with its output in `log_path`; does not wait for it to
  // serve.
  static absl::StatusOr<std::unique_ptr<SpawnedDaemon>> Start(const std::string& binary,
                                                              const std::string& config_path,
                                                              const std::string& log_path);
  ~SpawnedDaemon() { Stop(); }

  pid_t pid() const { return pid_; }
  bool Ended();  // by itself; reaps it
  // SIGTERM, then waits: the daemon makes what was committed durable first.
  void Stop();
  std::string LogTail() const;

 private:
  SpawnedDaemon(pid_t pid, std::string log_path) : pid_(pid), log_path_(std::move(log_path)) {}

  pid_t pid_;  // 0 once it has ended
  std::string log_path_;
};

}  // namespace terrace
