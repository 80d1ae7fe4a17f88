// A terraced of a suite's own: the binary next to terrace-bench, its own directory, socket and
// configuration. Killed by its pid when the object goes, and by the kernel should terrace-bench die
// first. One thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "bench/bench.h"
#include "client/terrace.h"
#include "transport/connection.h"

namespace terrace::bench {

struct DaemonConfig {
  uint64_t host_bytes = 0;
  uint64_t headroom_bytes = uint64_t{64} << 20;
  std::string verify = "crossing";
  uint64_t nvme_bytes = 0;            // 0: no NVMe tier
  std::string host_keys, nvme_keys, codec_keys;  // more lines of those tables
  // Its directory is there before and stays: another may be started on it.
  bool keep_directory = false;
  double start_timeout_s = 15;
};

class PrivateDaemon {
 public:
  // Starts it and waits until it answers; DeadlineExceeded with the log's end when it does not.
  static absl::StatusOr<std::unique_ptr<PrivateDaemon>> Start(const Context& context,
                                                              const std::string& name,
                                                              const DaemonConfig& config);
  ~PrivateDaemon();
  PrivateDaemon(const PrivateDaemon&) = delete;
  PrivateDaemon& operator=(const PrivateDaemon&) = delete;

  // Where the NVMe tier of a daemon of that name lies.
  static std::string NvmeDirectory(const Context& context, const std::string& name);
  const std::string& socket_path() const { return socket_path_; }
  pid_t pid() const { return pid_; }
  absl::StatusOr<std::unique_ptr<Connection>> Connect() const;
  absl::StatusOr<std::unique_ptr<Client>> ConnectClient() const;
  // Waits until the host tier has `bytes` of populated memory.
  absl::Status WaitPopulated(uint64_t bytes) const;
  // Resident memory that is not a tier's: VmRSS less RssShmem, bytes.
  absl::StatusOr<uint64_t> PrivateResidentBytes() const;

 private:
  PrivateDaemon() = default;
  absl::Status WaitReady(double timeout_s) const;
  std::string LogTail() const;

  pid_t pid_ = -1;
  bool keep_directory_ = false;
  std::string directory_, socket_path_;
};

}  // namespace terrace::bench
