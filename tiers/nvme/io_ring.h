// The io thread: owns one io_uring and moves records between segment files and memory in pieces,
// most urgent first. It knows bytes and files, not what is in them.
//
// Submit(), FileReady() and Stop() may be called from any thread; callbacks of a transfer run on
// the io thread and must not block.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/buffer.h"
#include "tiers/nvme/nvme_tier.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

// A record on its way: [header block][payload] contiguous in the file, in two buffers in memory.
struct Transfer {
  enum class Direction : uint8_t { kRead, kWrite };

  Direction direction = Direction::kRead;
  std::shared_ptr<SegmentFile> file;
  uint64_t file_offset = 0;       // of the header block
  kernels::AlignedBuffer header;  // one block
  uint8_t* payload = nullptr;     // 4 KiB aligned; only read from when writing
  uint64_t payload_bytes = 0;     // a multiple of 4096
  IoPriority priority = IoPriority::kDemand;
  uint64_t batch = 0;
  // Reads: the first `bytes` of header and payload are there; grows. A status that is not ok
  // abandons the rest and goes to `finished`.
  std::function<absl::Status(uint64_t bytes)> advanced;
  // Once: ok when all of it is read, or written and synced to the device. Else DataLoss (the file
  // ends too early), ResourceExhausted (no space), Unavailable (I/O error, stopping).
  absl::AnyInvocable<void(absl::Status)> finished;
};

class IoRing {
 public:
  struct Options {
    uint32_t queue_depth = 16;  // pieces in flight
    uint64_t piece_bytes = 1 << 20;
    // Called after each round of completions, so that their results can be handed on together.
    std::function<void()> round_done;
  };

  // Starts the thread. FailedPrecondition when the kernel grants no io_uring.
  static absl::StatusOr<std::unique_ptr<IoRing>> Start(Options options);
  ~IoRing();  // Stop()
  // Finishes all writes; reads not yet in flight fail with Unavailable. Blocks until the thread has
  // ended. FileReady must still be called for the files that writes wait for; no Submit after it.
  void Stop();

  // Writes to a file that was never ready wait for FileReady; recovered files are ready at once.
  void Submit(std::unique_ptr<Transfer> transfer);
  // The file may be written, or (status) all writes that wait for it fail. After the writes to it
  // were submitted or before; once for each file that is not ready from the start.
  void FileReady(std::shared_ptr<SegmentFile> file, absl::Status status);

  const std::string& engine() const;  // "io_uring (single_issuer, defer_taskrun)"
  double read_bytes_per_s() const;    // measured while reads are in flight; 0 before the first

 private:
  class Thread;
  explicit IoRing(std::unique_ptr<Thread> thread);
  std::unique_ptr<Thread> thread_;
};

}  // namespace terrace::nvme
