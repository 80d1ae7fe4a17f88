// Which pieces of which transfers go to the device next: the policy of the IoScheduler, without its
// I/O. Pure bookkeeping on one thread; time is an argument.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "tiers/nvme/io_engine.h"
#include "tiers/nvme/io_scheduler.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

// A transfer under way. Offsets are those of head and payload together, in file order.
struct Job {
  Job(std::unique_ptr<Transfer> its_transfer, uint64_t its_arrival)
      : transfer(std::move(its_transfer)),
        arrival(its_arrival),
        total(transfer->head.size_bytes() + transfer->payload_bytes) {}

  bool is_write() const { return transfer->direction == Transfer::Direction::kWrite; }
  bool is_urgent() const { return !is_write() && transfer->priority <= IoPriority::kNextLayer; }
  // Nobody waits for it: a read ahead, or one that only checks or moves records.
  bool is_patient() const { return !is_write() && transfer->priority >= IoPriority::kQueued; }

  std::unique_ptr<Transfer> transfer;
  const uint64_t arrival;
  const uint64_t total;
  absl::Status status;  // why the rest is abandoned

  // Of the queue.
  uint64_t issued = 0;     // bytes, in the order in which they are issued
  uint32_t in_flight = 0;  // requests
  bool queued = false;
  bool split = false;  // writes: the payload first, then the head

  // Of the completions.
  uint64_t written = 0;                  // writes: bytes, in any order
  uint64_t prefix = 0;                   // reads: [0, prefix) is there
  std::map<uint64_t, uint64_t> islands;  // reads: what is there beyond, begin -> end
  uint64_t reported = 0;                 // reads: prefix at the last `advanced`
  bool dirty = false;                    // reads: to be looked at
};

// One operation of the engine.
struct Request : IoOp {
  struct Part {
    Job* job = nullptr;
    uint64_t begin = 0, end = 0;
    uint64_t bytes() const { return end - begin; }
  };
  void Add(const Part& part);
  // Points the operation at what has not been moved yet.
  void Aim();

  std::vector<Part> parts;  // contiguous in the file; several only for merged writes
  uint64_t bytes = 0;       // of all parts
  uint64_t moved = 0;       // of them
  uint32_t retries = 0;     // without any progress
  bool patient = false;     // was its job's when it was issued
  std::vector<iovec> iovecs;
  // kSync: the writes that become durable with it.
  std::shared_ptr<SegmentFile> file;
  std::vector<std::unique_ptr<Transfer>> synced;
};

class IoQueue {
 public:
  using Clock = std::chrono::steady_clock;
  // How long after the last urgent read writes are still held back: the gap between two reads of a
  // client that asks for one after the other.
  static constexpr std::chrono::milliseconds kQuiet{4};
  // A waiting write goes at the latest after this many pieces of reads.
  static constexpr uint32_t kReadsPerWrite = 16;

  explicit IoQueue(const IoScheduler::Options& options)
      : queue_depth_(options.queue_depth),
        write_depth_(options.write_depth),
        write_pieces_(options.write_pieces),
        piece_bytes_(options.piece_bytes) {}

  // The job stays the caller's, who keeps it until Remove.
  void Add(Job& job);
  // What is not issued yet of a read goes as if it had been added so.
  void Reprioritize(Job& job, IoPriority priority, uint64_t batch);
  // No more of the job is issued.
  void Withdraw(Job& job);
  // The job has nothing in flight and is forgotten.
  void Remove(Job& job, Clock::time_point now);

  // What to give to the device next, counted as in flight from here on; null for nothing now.
  // Reads are to be asked for first.
  std::unique_ptr<Request> NextRead(Clock::time_point now);
  std::unique_ptr<Request> NextWrite(Clock::time_point now);
  // Takes parts [from, ...) off a write that NextWrite returned: those jobs are queued again,
  // unless their status says otherwise. A request without parts counts as completed.
  void PutBack(Request& request, size_t from);
  // The device is done with it. Jobs that failed have their status already.
  void Completed(const Request& request);

  uint32_t reads_in_flight() const { return reads_in_flight_; }
  uint32_t writes_in_flight() const { return writes_in_flight_; }

 private:
  // Most urgent first: class, batch, share of the record already asked for, arrival. Records of
  // one layout hold equal parts at equal shares, so those of a batch advance part by part without
  // their part tables being known before their headers are read.
  using Urgency = std::tuple<IoPriority, uint64_t, uint64_t, uint64_t>;
  using Place = std::pair<const SegmentFile*, uint64_t>;

  static Urgency UrgencyOf(const Job& job);
  bool ReadsAreUrgent(Clock::time_point now) const;
  uint64_t WriteLimit(Clock::time_point now) const;
  bool IsHeldBack(const Job& job, Clock::time_point now) const;
  bool Exceeds(uint64_t bytes, uint64_t limit) const;
  bool WaitsForPayload(const Job& job) const;
  void Enqueue(Job& job);
  void Dequeue(Job& job);
  void TakePiece(Job& job, uint64_t limit, Request& request);
  void Merge(uint64_t limit, Request& request);

  const uint32_t queue_depth_;
  const uint32_t write_depth_;
  const uint64_t write_pieces_;
  const uint64_t piece_bytes_;

  std::map<Urgency, Job*> reads_;   // with pieces to issue
  std::map<Urgency, Job*> writes_;  // likewise
  std::map<Place, Job*> whole_;     // those of writes_ not begun, by place in the file
  uint32_t reads_in_flight_ = 0;
  uint32_t patient_reads_in_flight_ = 0;
  uint32_t writes_in_flight_ = 0;
  uint32_t reads_since_write_ = 0;
  uint32_t urgent_reads_ = 0;  // jobs
  Clock::time_point urgent_until_;
};

}  // namespace terrace::nvme
