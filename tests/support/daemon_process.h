// A real terraced for tests: its own directory under /var/tmp (where O_DIRECT works, as it may not
// on /tmp), configuration and log. Ended by its pid; the directory goes with it. One thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "client/terrace.h"

namespace terrace {

struct DaemonSettings {
  uint64_t host_bytes = uint64_t{64} << 20;
  uint64_t nvme_bytes = 0;  // 0: no NVMe tier
  std::string verify = "crossing";
  std::string extra;  // appended to the configuration
};

class DaemonProcess {
 public:
  explicit DaemonProcess(DaemonSettings settings = {});
  ~DaemonProcess();
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // Starts it over the same store and waits until it serves; a test failure with its log otherwise.
  void Start();
  void Signal(int signal) const;
  void Kill();      // SIGKILL, reaped
  int Terminate();  // SIGTERM; its exit status, -1 when a signal ended it
  void Restart() { Kill(), Start(); }

  const std::string& directory() const { return directory_; }
  const std::string& socket_path() const { return socket_path_; }
  ClientOptions Options() const;
  // A connected client, or null after a test failure.
  std::unique_ptr<Client> Connect() const;
  std::string Log() const;

 private:
  int Wait();

  DaemonSettings settings_;
  std::string directory_, socket_path_;
  pid_t pid_ = 0;
};

// Whether the condition came true within 30 s: what another process does takes a while.
bool Eventually(const std::function<bool()>& condition);

}  // namespace terrace
