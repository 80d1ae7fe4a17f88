// How bytes reach the device: asynchronous reads, writes and syncs of files opened with O_DIRECT.
// Three engines: io_uring, a pool of threads in preadv2/pwritev2 where io_uring is forbidden
// (seccomp, old kernels), and one for tests that injects faults in front of another.
//
// An engine belongs to the thread that made it, and is used and destroyed on it; only Wake() may be
// called from any thread.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace terrace::nvme {

// One operation. Owned by the caller, who keeps it and what it points to until it is completed.
struct IoOp {
  enum class Kind : uint8_t { kRead, kWrite, kSync };  // kSync: fdatasync

  Kind kind = Kind::kRead;
  int fd = -1;
  uint64_t offset = 0;             // of the file, bytes; multiples of 4096 as all lengths
  const iovec* buffers = nullptr;  // each aligned to 4096
  int buffer_count = 0;            // at most IOV_MAX
  // Once completed: bytes moved, which may be fewer than asked for; 0 for kSync and at the end of
  // the file; or -errno.
  int64_t result = 0;
};

class IoEngine {
 public:
  virtual ~IoEngine() = default;  // requires that no operation is under way

  // Takes an operation. The device may get it only at the next Poll.
  virtual void Submit(IoOp* op) = 0;
  // Hands what was submitted to the device and appends the operations that are complete. With
  // `wait`, returns once there is at least one, or after a Wake().
  virtual void Poll(bool wait, std::vector<IoOp*>& completed) = 0;
  // Ends the current wait, or the next one. Any thread.
  virtual void Wake() = 0;
  // What the kernel granted, for people: "io_uring (single_issuer, defer_taskrun)".
  virtual std::string name() const = 0;
};

enum class EngineChoice : uint8_t {
  kAuto,  // io_uring where the kernel grants it, else the thread pool
  kIoUring,
  kThreads,
};

// An engine for `depth` operations in flight, belonging to the calling thread. FailedPrecondition,
// saying why, when io_uring was chosen and is not granted.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeIoEngine(EngineChoice choice, uint32_t depth);

}  // namespace terrace::nvme
