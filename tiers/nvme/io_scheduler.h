// The io thread: moves records between segment files and memory in pieces, most urgent first,
// through one IoEngine. It knows bytes and files, not what is in them.
//
// - Reads before writes, but after 16 pieces of reads a waiting write gets its turn. While a demand
//   or next-layer read is about, or was a moment ago, writes are held to one piece in flight, and
//   background reads too, so such a read waits behind few; when nobody reads, writes get
//   `write_depth`, of `write_pieces` each. Reads ahead never have more than one piece in flight.
// - Within a class: batch, then the share of the record already asked for, so that the records of
//   a batch advance together.
// - Writes to one file that lie next to each other are merged into one request.
// - Writes become durable in groups: those that finish while a file is being synced share the next
//   sync.
// - Short transfers are continued; EINTR and EAGAIN are tried again a bounded number of times; any
//   other error ends the transfer.
//
// All methods may be called from any thread; callbacks of a transfer run on
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
#include "tiers/nvme/system.h"

namespace terrace::nvme {

// [head][payload], contiguous in the file from `file_offset` on, in two buffers in memory.
struct Transfer {
  enum class Direction : uint8_t { kRead, kWrite };

  Direction direction = Direction::kRead;
  std::shared_ptr<SegmentFile> file;
  uint64_t file_offset = 0;     // a multiple of 4096
  kernels::AlignedBuffer head;  // whole blocks: a record's header, a footer
  uint8_t* payload = nullptr;   // 4 KiB aligned; only read from when writing
  uint64_t payload_bytes = 0;   // a multiple of 4096; may be 0
  IoPriority priority = IoPriority::kDemand;
  uint64_t batch = 0;
  uint64_t ticket = 0;  // names a read to Reprioritize and Cancel; 0: has none
  // Reads: the first `bytes` of head and payload are there; grows. Writes: the payload is about to
  // be written up to its first `bytes`; grows, and ends with payload_bytes before the head is
  // written, which is written last unless all of the transfer is one request. So the head may hold
  // checksums of the payload. A status that is not ok abandons the rest and goes to `finished`.
  std::function<absl::Status(uint64_t bytes)> advanced;
  // Once: ok when all of it is read, or written and synced to the device. Else DataLoss (the file
  // ends too early), ResourceExhausted (no space), Unavailable (I/O error, stopping), Cancelled, or
  // what `advanced` returned.
  absl::AnyInvocable<void(absl::Status)> finished;
};

class IoScheduler {
 public:
  struct Options {
    System* system = nullptr;
    EngineChoice engine = EngineChoice::kAuto;
    uint32_t queue_depth = 16;       // pieces in flight
    uint32_t write_depth = 8;        // of them writes
    uint32_t write_pieces = 4;       // in one write while nobody reads
    uint64_t read_bytes_per_s = 0;   // the most; 0: no limit
    uint64_t piece_bytes = 1 << 20;  // or up to a sixteenth more, rather than leave a sliver
  };

  // Starts the thread. FailedPrecondition when the engine that was chosen is not granted.
  static absl::StatusOr<std::unique_ptr<IoScheduler>> Start(Options options);
  ~IoScheduler();  // Stop()
  // Finishes all writes; reads not yet in flight fail with Unavailable. Blocks until the thread has
  // ended. FileReady must still be called for the files that writes wait for; no Submit after it.
  void Stop();

  // Writes to a file that was never ready wait for FileReady; recovered files are ready at once.
  void Submit(std::unique_ptr<Transfer> transfer);
  // Of the read with that ticket: what is not issued yet goes in another class and batch. Ignored
  // once it has finished.
  void Reprioritize(uint64_t ticket, IoPriority priority, uint64_t batch);
  // Nothing more of it is issued, and it finishes with Cancelled once what is in flight is here.
  // Ignored once everything was issued.
  void Cancel(uint64_t ticket);
  // The file may be written, or (status) all writes that wait for it fail. After the writes to it
  // were submitted or before; once for each file that is not ready from the start.
  void FileReady(std::shared_ptr<SegmentFile> file, absl::Status status);

  const std::string& engine() const;  // IoEngine::name()
  double read_bytes_per_s() const;    // measured while reads are in flight; 0 before the first
  double write_bytes_per_s() const;   // the same of writes

 private:
  class Thread;
  explicit IoScheduler(std::unique_ptr<Thread> thread);
  std::unique_ptr<Thread> thread_;
};

}  // namespace terrace::nvme
