#include "tiers/nvme/io_ring.h"

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace terrace::nvme {

namespace {

using Clock = std::chrono::steady_clock;

// A request that the kernel keeps refusing for now is given up after this many attempts.
constexpr uint32_t kMaxRetries = 64;
constexpr uint32_t kSpareEntries = 64;  // of the ring, beside pieces: syncs and the wake-up
// Reads are timed over windows of at least this much, or latency would pass for bandwidth.
constexpr uint64_t kRateWindowBytes = uint64_t{8} << 20;
constexpr uint64_t kMinRateWindowBytes = uint64_t{256} << 10;

bool IsTransient(int result) { return result == -EINTR || result == -EAGAIN; }

// Most urgent first: priority, batch, share of the record already asked for, arrival. Records of
// one layout hold equal parts at equal shares, so those of a batch advance part by part without
// their part tables being known before their headers are read.
using Urgency = std::tuple<IoPriority, uint64_t, uint64_t, uint64_t>;

struct Active {
  std::unique_ptr<Transfer> transfer;
  uint64_t arrival = 0;
  uint64_t total = 0;     // header and payload
  uint64_t next = 0;      // [0, next) has been given to the kernel
  uint64_t prefix = 0;    // [0, prefix) is done
  uint64_t reported = 0;  // prefix at the last `advanced`
  uint32_t in_flight = 0;
  bool dirty = false;
  std::map<uint64_t, uint64_t> islands;  // done pieces beyond prefix: begin -> end
  absl::Status status;

  bool is_write() const { return transfer->direction == Transfer::Direction::kWrite; }
  Urgency urgency() const {
    // Writes are finished in order of arrival instead: half-written records help nobody.
    const uint64_t share = is_write() ? 0 : (next << 16) / total;
    return {transfer->priority, transfer->batch, share, arrival};
  }
};

// One request in the kernel.
struct Op {
  enum class Kind : uint8_t { kPiece, kSync, kWake };
  Kind kind = Kind::kPiece;
  uint32_t retries = 0;
  // kPiece: [begin, end) of header and payload, done up to position.
  Active* active = nullptr;
  uint64_t begin = 0, position = 0, end = 0;
  iovec buffers[2] = {};
  // kSync: the writes that become durable with it.
  std::shared_ptr<SegmentFile> file;
  std::vector<std::unique_ptr<Transfer>> written;
};

// Writes to one file that are done but not yet synced.
struct FileSync {
  bool in_flight = false;
  std::vector<std::unique_ptr<Transfer>> waiting;
};

}  // namespace

class IoRing::Thread {
 public:
  explicit Thread(Options options) : options_(std::move(options)) {}
  ~Thread();
  absl::Status Start();
  void Stop();
  void Push(std::unique_ptr<Transfer> transfer);
  void Push(std::shared_ptr<SegmentFile> file, absl::Status status);
  const std::string& engine() const { return engine_; }
  double read_bytes_per_s() const { return read_bytes_per_s_.load(std::memory_order_relaxed); }

 private:
  struct Request {
    std::unique_ptr<Transfer> transfer;
    std::shared_ptr<SegmentFile> file;  // without a transfer: is ready, or failed with `status`
    absl::Status status;
  };

  absl::Status CreateRing();
  void Run();
  void Wake();
  bool TakeRequests();
  void Accept(std::unique_ptr<Transfer> transfer);
  void SetFileState(const std::shared_ptr<SegmentFile>& file, absl::Status status);
  void AbandonReads();

  void IssuePieces();
  void SubmitPiece(Op* op);
  void SubmitSync(Op* op);
  void SubmitWake();
  io_uring_sqe* NextSqe();
  void SubmitAndWait();
  void ReapCompletions();
  void Complete(Op* op, int result);
  void CompletePiece(std::unique_ptr<Op> op, int result);
  void CompleteSync(std::unique_ptr<Op> op, int result);

  void PieceArrived(Active& active, uint64_t begin, uint64_t end);
  void Fail(Active& active, absl::Status status);
  void MarkDirty(Active& active);
  void SettleDirty();
  void Finish(Active& active);
  void QueueSync(std::unique_ptr<Transfer> transfer);
  void CountRead(uint64_t bytes);

  const Options options_;
  std::string engine_;
  std::atomic<double> read_bytes_per_s_{0};
  int wake_fd_ = -1;
  std::mutex mutex_;
  std::vector<Request> inbox_;  // guarded by mutex_
  bool stopping_ = false;       // guarded by mutex_

  // Of the io thread.
  io_uring ring_ = {};
  Op wake_;
  bool reads_abandoned_ = false;
  uint64_t next_arrival_ = 0;
  uint32_t pieces_in_flight_ = 0;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Active>> active_;  // by arrival
  std::map<Urgency, Active*> ready_;                               // those with pieces to issue
  std::vector<Active*> dirty_;                                     // those that changed this round
  std::map<SegmentFile*, std::vector<std::unique_ptr<Transfer>>> unready_;
  std::map<SegmentFile*, FileSync> syncs_;
  uint32_t reads_in_flight_ = 0;
  uint64_t window_bytes_ = 0;
  Clock::time_point window_begin_;

  std::thread thread_;
};

IoRing::Thread::~Thread() {
  Stop();
  if (wake_fd_ >= 0) close(wake_fd_);
}

void IoRing::Thread::Stop() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
}

absl::Status IoRing::Thread::Start() {
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd_ < 0) return ErrnoStatus(errno, "eventfd");
  // A single-issuer ring belongs to the thread that made it.
  std::promise<absl::Status> created;
  std::future<absl::Status> status = created.get_future();
  thread_ = std::thread([this, &created] {
    absl::Status ring_status = CreateRing();
    const bool ok = ring_status.ok();
    created.set_value(std::move(ring_status));
    if (ok) Run();
  });
  return status.get();
}

absl::Status IoRing::Thread::CreateRing() {
  const uint32_t entries = std::bit_ceil(options_.queue_depth + kSpareEntries);
  int result =
      io_uring_queue_init(entries, &ring_, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  engine_ = "io_uring (single_issuer, defer_taskrun)";
  if (result == -EINVAL) {
    result = io_uring_queue_init(entries, &ring_, 0);
    engine_ = "io_uring";
  }
  if (result == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the kernel grants no io_uring: ", std::strerror(-result)));
}

void IoRing::Thread::Wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread is awake.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof one);
}

void IoRing::Thread::Push(std::unique_ptr<Transfer> transfer) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    inbox_.push_back({std::move(transfer), nullptr, absl::OkStatus()});
  }
  Wake();
}

void IoRing::Thread::Push(std::shared_ptr<SegmentFile> file, absl::Status status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    inbox_.push_back({nullptr, std::move(file), std::move(status)});
  }
  Wake();
}

void IoRing::Thread::Run() {
  wake_.kind = Op::Kind::kWake;
  SubmitWake();
  while (true) {
    const bool stopping = TakeRequests();
    if (stopping) AbandonReads();
    IssuePieces();
    SettleDirty();
    if (stopping && active_.empty() && unready_.empty() && syncs_.empty()) break;
    SubmitAndWait();
    ReapCompletions();
    // The device gets its next pieces before this thread spends time on checksums.
    IssuePieces();
    io_uring_submit(&ring_);
    SettleDirty();
    options_.round_done();
  }
  options_.round_done();
  io_uring_queue_exit(&ring_);
}

bool IoRing::Thread::TakeRequests() {
  std::vector<Request> requests;
  bool stopping;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    requests.swap(inbox_);
    stopping = stopping_;
  }
  for (Request& request : requests) {
    if (request.transfer != nullptr) {
      Accept(std::move(request.transfer));
    } else {
      SetFileState(request.file, std::move(request.status));
    }
  }
  return stopping;
}

void IoRing::Thread::Accept(std::unique_ptr<Transfer> transfer) {
  SegmentFile& file = *transfer->file;
  if (file.state == SegmentFile::State::kPreparing) {
    unready_[&file].push_back(std::move(transfer));
    return;
  }
  if (file.state == SegmentFile::State::kFailed) {
    transfer->finished(file.failure);
    return;
  }
  auto active = std::make_unique<Active>();
  active->arrival = next_arrival_++;
  active->total = kBlockBytes + transfer->payload_bytes;
  active->transfer = std::move(transfer);
  ready_.emplace(active->urgency(), active.get());
  active_.emplace(active->arrival, std::move(active));
}

void IoRing::Thread::SetFileState(const std::shared_ptr<SegmentFile>& file, absl::Status status) {
  file->state = status.ok() ? SegmentFile::State::kReady : SegmentFile::State::kFailed;
  file->failure = std::move(status);
  auto waiting = unready_.extract(file.get());
  if (waiting.empty()) return;
  for (std::unique_ptr<Transfer>& transfer : waiting.mapped()) Accept(std::move(transfer));
}

void IoRing::Thread::AbandonReads() {
  if (reads_abandoned_) return;
  reads_abandoned_ = true;
  for (auto& [arrival, active] : active_) {
    if (active->is_write() || active->next == active->total) continue;
    Fail(*active, absl::UnavailableError("the NVMe tier is stopping"));
    MarkDirty(*active);
  }
}

void IoRing::Thread::IssuePieces() {
  while (pieces_in_flight_ < options_.queue_depth && !ready_.empty()) {
    Active& active = *ready_.begin()->second;
    ready_.erase(ready_.begin());
    auto* op = new Op;
    op->active = &active;
    op->begin = op->position = active.next;
    op->end = std::min(active.total, active.next + options_.piece_bytes);
    active.next = op->end;
    ++active.in_flight;
    ++pieces_in_flight_;
    if (active.next < active.total) ready_.emplace(active.urgency(), &active);
    if (!active.is_write() && reads_in_flight_++ == 0) {
      window_begin_ = Clock::now();
      window_bytes_ = 0;
    }
    SubmitPiece(op);
  }
}

io_uring_sqe* IoRing::Thread::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    // The kernel takes everything queued unless it is short of memory for the moment.
    if (io_uring_submit(&ring_) <= 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void IoRing::Thread::SubmitPiece(Op* op) {
  const Transfer& transfer = *op->active->transfer;
  int count = 0;
  uint64_t at = op->position;
  if (at < kBlockBytes) {
    op->buffers[count++] = {transfer.header.data() + at, kBlockBytes - at};
    at = kBlockBytes;
  }
  if (at < op->end) {
    op->buffers[count++] = {transfer.payload + (at - kBlockBytes), op->end - at};
  }
  io_uring_sqe* sqe = NextSqe();
  const uint64_t offset = transfer.file_offset + op->position;
  if (op->active->is_write()) {
    io_uring_prep_writev(sqe, transfer.file->fd, op->buffers, count, offset);
  } else {
    io_uring_prep_readv(sqe, transfer.file->fd, op->buffers, count, offset);
  }
  io_uring_sqe_set_data(sqe, op);
}

void IoRing::Thread::SubmitSync(Op* op) {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_fsync(sqe, op->file->fd, IORING_FSYNC_DATASYNC);
  io_uring_sqe_set_data(sqe, op);
}

void IoRing::Thread::SubmitWake() {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_poll_add(sqe, wake_fd_, POLLIN);
  io_uring_sqe_set_data(sqe, &wake_);
}

void IoRing::Thread::SubmitAndWait() {
  const int result = io_uring_submit_and_wait(&ring_, 1);
  if (result >= 0 || result == -EINTR) return;
  if (result == -EAGAIN || result == -EBUSY) {  // short of memory, or completions to be reaped
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return;
  }
  // Only a defect of this file leads here, with requests of unknown fate in the kernel: their
  // memory must not be handed to anyone.
  std::fprintf(stderr, "io_uring_submit_and_wait: %s\n", std::strerror(-result));
  std::abort();
}

void IoRing::Thread::ReapCompletions() {
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
    auto* op = static_cast<Op*>(io_uring_cqe_get_data(cqe));
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    Complete(op, result);
  }
}

void IoRing::Thread::Complete(Op* op, int result) {
  switch (op->kind) {
    case Op::Kind::kPiece:
      CompletePiece(std::unique_ptr<Op>(op), result);
      return;
    case Op::Kind::kSync:
      CompleteSync(std::unique_ptr<Op>(op), result);
      return;
    case Op::Kind::kWake: {
      uint64_t count;
      [[maybe_unused]] const ssize_t taken = read(wake_fd_, &count, sizeof count);
      SubmitWake();
      return;
    }
  }
}

void IoRing::Thread::CompletePiece(std::unique_ptr<Op> op, int result) {
  Active& active = *op->active;
  const bool write = active.is_write();
  const auto where = [&] {
    return absl::StrCat(write ? "write " : "read ", active.transfer->file->path, " at ",
                        active.transfer->file_offset + op->position);
  };
  if (result > 0) op->position += result;
  const bool done = op->position >= op->end;
  const bool again =
      IsTransient(result) ? ++op->retries <= kMaxRetries : result > 0 && result % kBlockBytes == 0;
  if (!done && again && active.status.ok()) {
    SubmitPiece(op.release());
    return;
  }
  --active.in_flight;
  --pieces_in_flight_;
  if (!write) {
    --reads_in_flight_;
    CountRead(done ? op->end - op->begin : 0);
  }
  MarkDirty(active);
  if (done) {
    PieceArrived(active, op->begin, op->end);
  } else if (result < 0) {
    Fail(active, ErrnoStatus(-result, where()));
  } else if (write) {
    Fail(active, absl::UnavailableError(absl::StrCat(where(), ": short write")));
  } else {
    Fail(active, absl::DataLossError(absl::StrCat(where(), ": the file ends")));
  }
}

void IoRing::Thread::CompleteSync(std::unique_ptr<Op> op, int result) {
  if (IsTransient(result) && ++op->retries <= kMaxRetries) {
    SubmitSync(op.release());
    return;
  }
  const absl::Status status = result < 0
                                  ? ErrnoStatus(-result, absl::StrCat("fdatasync ", op->file->path))
                                  : absl::OkStatus();
  for (std::unique_ptr<Transfer>& transfer : op->written) transfer->finished(status);
  op->written.clear();
  auto sync = syncs_.find(op->file.get());
  if (sync->second.waiting.empty()) {
    syncs_.erase(sync);
    return;
  }
  op->retries = 0;
  op->written.swap(sync->second.waiting);
  SubmitSync(op.release());
}

void IoRing::Thread::PieceArrived(Active& active, uint64_t begin, uint64_t end) {
  active.islands.emplace(begin, end);
  while (!active.islands.empty() && active.islands.begin()->first == active.prefix) {
    active.prefix = active.islands.begin()->second;
    active.islands.erase(active.islands.begin());
  }
}

void IoRing::Thread::Fail(Active& active, absl::Status status) {
  if (!active.status.ok()) return;
  if (active.next < active.total) ready_.erase(active.urgency());
  active.status = std::move(status);
}

void IoRing::Thread::MarkDirty(Active& active) {
  if (std::exchange(active.dirty, true)) return;
  dirty_.push_back(&active);
}

void IoRing::Thread::SettleDirty() {
  for (Active* active : std::exchange(dirty_, {})) {
    active->dirty = false;
    if (active->status.ok() && active->transfer->advanced && active->prefix > active->reported) {
      active->reported = active->prefix;
      absl::Status status = active->transfer->advanced(active->prefix);
      if (!status.ok()) Fail(*active, std::move(status));
    }
    const bool ended = !active->status.ok() || active->prefix == active->total;
    if (ended && active->in_flight == 0) Finish(*active);
  }
}

void IoRing::Thread::Finish(Active& active) {
  std::unique_ptr<Transfer> transfer = std::move(active.transfer);
  const absl::Status status = std::move(active.status);
  active_.erase(active.arrival);
  if (status.ok() && transfer->direction == Transfer::Direction::kWrite) {
    QueueSync(std::move(transfer));
  } else {
    transfer->finished(status);
  }
}

// The first write to finish is synced at once; those that finish meanwhile share the next sync.
void IoRing::Thread::QueueSync(std::unique_ptr<Transfer> transfer) {
  const std::shared_ptr<SegmentFile> file = transfer->file;
  FileSync& sync = syncs_[file.get()];
  sync.waiting.push_back(std::move(transfer));
  if (std::exchange(sync.in_flight, true)) return;
  auto* op = new Op;
  op->kind = Op::Kind::kSync;
  op->file = file;
  op->written.swap(sync.waiting);
  SubmitSync(op);
}

void IoRing::Thread::CountRead(uint64_t bytes) {
  window_bytes_ += bytes;
  if (reads_in_flight_ > 0 && window_bytes_ < kRateWindowBytes) return;
  if (window_bytes_ < kMinRateWindowBytes) return;
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - window_begin_).count();
  const double rate = static_cast<double>(window_bytes_) / std::max(seconds, 1e-6);
  const double before = read_bytes_per_s();
  read_bytes_per_s_.store(before == 0 ? rate : before + (rate - before) / 4,
                          std::memory_order_relaxed);
  window_begin_ = now;
  window_bytes_ = 0;
}

IoRing::IoRing(std::unique_ptr<Thread> thread) : thread_(std::move(thread)) {}
IoRing::~IoRing() = default;

absl::StatusOr<std::unique_ptr<IoRing>> IoRing::Start(Options options) {
  auto thread = std::make_unique<Thread>(std::move(options));
  absl::Status status = thread->Start();
  if (!status.ok()) return status;
  return std::unique_ptr<IoRing>(new IoRing(std::move(thread)));
}

void IoRing::Stop() { thread_->Stop(); }

void IoRing::Submit(std::unique_ptr<Transfer> transfer) { thread_->Push(std::move(transfer)); }

void IoRing::FileReady(std::shared_ptr<SegmentFile> file, absl::Status status) {
  thread_->Push(std::move(file), std::move(status));
}

const std::string& IoRing::engine() const { return thread_->engine(); }
double IoRing::read_bytes_per_s() const { return thread_->read_bytes_per_s(); }

}  // namespace terrace::nvme
