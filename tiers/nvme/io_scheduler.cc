#include "tiers/nvme/io_scheduler.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "tiers/nvme/io_queue.h"
#include "tiers/nvme/limited_engine.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

namespace {

using Clock = IoQueue::Clock;

// No space stays what it is; whatever else the device says is Unavailable, for the record may be
// fine.
absl::Status IoFailure(int64_t error, const std::string& what) {
  absl::Status status = ErrnoStatus(static_cast<int>(error), what);
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) return status;
  return absl::UnavailableError(status.message());
}

absl::Status Stopping() { return absl::UnavailableError("the NVMe tier is stopping"); }

// Bytes a second while something is in flight; read from any thread.
class Bandwidth {
 public:
  void Begin(Clock::time_point now) {
    window_begin_ = now;
    window_bytes_ = 0;
  }
  void Count(uint64_t bytes, bool idle, Clock::time_point now) {
    window_bytes_ += bytes;
    if (!idle && window_bytes_ < kWindowBytes) return;
    if (window_bytes_ < kMinWindowBytes) return;
    const double seconds = std::chrono::duration<double>(now - window_begin_).count();
    const double rate = static_cast<double>(window_bytes_) / std::max(seconds, 1e-6);
    const double before = bytes_per_s();
    rate_.store(before == 0 ? rate : before + (rate - before) / 4, std::memory_order_relaxed);
    Begin(now);
  }
  double bytes_per_s() const { return rate_.load(std::memory_order_relaxed); }

 private:
  // Timed over windows of at least this much, or latency would pass for bandwidth.
  static constexpr uint64_t kWindowBytes = uint64_t{8} << 20;
  static constexpr uint64_t kMinWindowBytes = uint64_t{256} << 10;

  std::atomic<double> rate_{0};
  uint64_t window_bytes_ = 0;
  Clock::time_point window_begin_;
};

// What is asked for a read that was submitted before.
struct ReadChange {
  uint64_t ticket = 0;
  bool cancel = false;  // else:
  IoPriority priority = IoPriority::kDemand;
  uint64_t batch = 0;
};

// Writes to one file that are done but not yet synced.
struct FileSync {
  bool in_flight = false;
  std::vector<std::unique_ptr<Transfer>> waiting;
};

}  // namespace

class IoScheduler::Thread {
 public:
  explicit Thread(const Options& options) : options_(options), queue_(options) {}
  ~Thread() { Stop(); }
  absl::Status Start();
  void Stop();
  void Push(std::unique_ptr<Transfer> transfer);
  void Push(std::shared_ptr<SegmentFile> file, absl::Status status);
  void Push(const ReadChange& change);
  const std::string& engine() const { return engine_name_; }
  double read_bytes_per_s() const { return read_bandwidth_.bytes_per_s(); }
  double write_bytes_per_s() const { return write_bandwidth_.bytes_per_s(); }

 private:
  // Of another thread.
  struct Message {
    std::unique_ptr<Transfer> transfer;
    std::shared_ptr<SegmentFile> file;  // without a transfer: is ready, or failed with `status`
    absl::Status status;
    ReadChange change;  // without either
  };

  void Push(Message message);
  void Run();
  bool IsIdle() const { return jobs_.empty() && unready_.empty() && syncs_.empty(); }
  bool TakeMessages();
  void Accept(std::unique_ptr<Transfer> transfer);
  void SetFileState(const std::shared_ptr<SegmentFile>& file, absl::Status status);
  void AbandonReads();
  void Apply(const ReadChange& change);

  void IssueReads();
  bool IssueWrite();
  absl::Status AnnounceWrite(const Request::Part& part);
  void Submit(std::unique_ptr<Request> request);
  void CompleteAll();
  void CompletePiece(std::unique_ptr<Request> request);
  bool TakeResult(Request& request);
  absl::Status FailureOf(const Request& request) const;
  void CompleteSync(std::unique_ptr<Request> request);

  void Arrived(const Request::Part& part);
  void Fail(Job& job, absl::Status status);
  void MarkDirty(Job& job);
  bool SettleOne();
  void Finish(Job& job);
  void StartSyncs();

  const Options options_;
  std::string engine_name_;
  Bandwidth read_bandwidth_, write_bandwidth_;

  std::mutex mutex_;
  std::vector<Message> inbox_;        // guarded by mutex_
  bool stopping_ = false;             // guarded by mutex_
  std::unique_ptr<IoEngine> engine_;  // the io thread's; reset under mutex_, for Wake() meanwhile

  // Of the io thread.
  IoQueue queue_;
  std::vector<IoOp*> completed_;
  bool reads_abandoned_ = false;
  uint64_t next_arrival_ = 0;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Job>> jobs_;  // by arrival
  absl::flat_hash_map<uint64_t, Job*> tickets_;               // reads that have one
  std::vector<Job*> dirty_;                                   // reads that got further
  std::map<SegmentFile*, std::vector<std::unique_ptr<Transfer>>> unready_;
  std::map<SegmentFile*, FileSync> syncs_;

  std::thread thread_;
};

absl::Status IoScheduler::Thread::Start() {
  // An engine belongs to the thread that made it.
  std::promise<absl::Status> started;
  std::future<absl::Status> status = started.get_future();
  thread_ = std::thread([this, &started] {
    auto engine = options_.system->MakeEngine(options_.engine, options_.queue_depth);
    if (!engine.ok()) {
      started.set_value(engine.status());
      return;
    }
    engine_ = *std::move(engine);
    if (options_.read_bytes_per_s != 0) {
      engine_ = std::make_unique<LimitedEngine>(std::move(engine_), options_.read_bytes_per_s);
    }
    engine_name_ = engine_->name();
    started.set_value(absl::OkStatus());
    Run();
    std::lock_guard<std::mutex> lock(mutex_);
    engine_.reset();
  });
  return status.get();
}

void IoScheduler::Thread::Stop() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (engine_ != nullptr) engine_->Wake();
  }
  thread_.join();
}

void IoScheduler::Thread::Push(std::unique_ptr<Transfer> transfer) {
  Push({std::move(transfer), nullptr, absl::OkStatus(), {}});
}

void IoScheduler::Thread::Push(std::shared_ptr<SegmentFile> file, absl::Status status) {
  Push({nullptr, std::move(file), std::move(status), {}});
}

void IoScheduler::Thread::Push(const ReadChange& change) {
  Push({nullptr, nullptr, absl::OkStatus(), change});
}

void IoScheduler::Thread::Push(Message message) {
  std::lock_guard<std::mutex> lock(mutex_);
  inbox_.push_back(std::move(message));
  // Behind another message the thread is awake already, or about to be.
  if (inbox_.size() == 1 && engine_ != nullptr) engine_->Wake();
}

// Between two looks at the inbox lies at most the checksum of one piece read and one written, so
// that a demand read goes to the device soon.
void IoScheduler::Thread::Run() {
  while (true) {
    const bool stopping = TakeMessages();
    if (stopping) AbandonReads();
    IssueReads();
    // The device gets its next pieces before this thread spends time on checksums.
    if (!dirty_.empty()) engine_->Poll(false, completed_);
    bool worked = SettleOne();
    worked |= IssueWrite();
    if (stopping && IsIdle()) return;
    engine_->Poll(!worked && completed_.empty(), completed_);
    CompleteAll();
  }
}

bool IoScheduler::Thread::TakeMessages() {
  std::vector<Message> messages;
  bool stopping;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    messages.swap(inbox_);
    stopping = stopping_;
  }
  for (Message& message : messages) {
    if (message.transfer != nullptr) {
      Accept(std::move(message.transfer));
    } else if (message.file == nullptr) {
      Apply(message.change);
    } else {
      SetFileState(message.file, std::move(message.status));
    }
  }
  return stopping;
}

void IoScheduler::Thread::Accept(std::unique_ptr<Transfer> transfer) {
  SegmentFile& file = *transfer->file;
  if (file.state == SegmentFile::State::kPreparing) {
    unready_[&file].push_back(std::move(transfer));
    return;
  }
  if (file.state == SegmentFile::State::kFailed) {
    transfer->finished(file.failure);
    return;
  }
  if (reads_abandoned_ && transfer->direction == Transfer::Direction::kRead) {
    transfer->finished(Stopping());
    return;
  }
  auto job = std::make_unique<Job>(std::move(transfer), next_arrival_++);
  queue_.Add(*job);
  if (job->transfer->ticket != 0) tickets_.emplace(job->transfer->ticket, job.get());
  jobs_.emplace(job->arrival, std::move(job));
}

void IoScheduler::Thread::SetFileState(const std::shared_ptr<SegmentFile>& file,
                                       absl::Status status) {
  file->state = status.ok() ? SegmentFile::State::kReady : SegmentFile::State::kFailed;
  file->failure = std::move(status);
  auto waiting = unready_.extract(file.get());
  if (waiting.empty()) return;
  for (std::unique_ptr<Transfer>& transfer : waiting.mapped()) Accept(std::move(transfer));
}

void IoScheduler::Thread::AbandonReads() {
  if (std::exchange(reads_abandoned_, true)) return;
  for (auto& [arrival, job] : jobs_) {
    if (job->is_write() || job->issued == job->total) continue;
    Fail(*job, Stopping());
  }
}

void IoScheduler::Thread::Apply(const ReadChange& change) {
  const auto found = tickets_.find(change.ticket);
  if (found == tickets_.end()) return;
  Job& job = *found->second;
  if (!change.cancel) {
    queue_.Reprioritize(job, change.priority, change.batch);
  } else if (job.issued < job.total) {
    Fail(job, absl::CancelledError("the read was cancelled"));
  }
}

void IoScheduler::Thread::IssueReads() {
  const auto now = Clock::now();
  while (std::unique_ptr<Request> request = queue_.NextRead(now)) {
    if (queue_.reads_in_flight() == 1) read_bandwidth_.Begin(now);
    Submit(std::move(request));
  }
}

// True when there may be more to do.
bool IoScheduler::Thread::IssueWrite() {
  std::unique_ptr<Request> request = queue_.NextWrite(Clock::now());
  if (request == nullptr) return false;
  engine_->Poll(false, completed_);  // as in Run
  for (size_t i = 0; i < request->parts.size(); ++i) {
    Job& job = *request->parts[i].job;
    absl::Status status = AnnounceWrite(request->parts[i]);
    if (status.ok()) continue;
    Fail(job, std::move(status));
    queue_.PutBack(*request, i);
    if (job.in_flight == 0) Finish(job);
    break;
  }
  if (request->parts.empty()) return true;
  if (queue_.writes_in_flight() == 1) write_bandwidth_.Begin(Clock::now());
  Submit(std::move(request));
  return true;
}

absl::Status IoScheduler::Thread::AnnounceWrite(const Request::Part& part) {
  const Transfer& transfer = *part.job->transfer;
  const uint64_t head = transfer.head.size_bytes();
  if (!transfer.advanced) return absl::OkStatus();
  // The head of a split write comes after all of its payload was announced.
  if (part.end <= head && transfer.payload_bytes > 0) return absl::OkStatus();
  return transfer.advanced(part.end - std::min(head, part.end));
}

void IoScheduler::Thread::Submit(std::unique_ptr<Request> request) {
  if (request->kind == IoOp::Kind::kSync) {
    request->fd = request->file->fd;
  } else {
    request->Aim();
  }
  engine_->Submit(request.release());  // comes back in CompleteAll
}

void IoScheduler::Thread::CompleteAll() {
  for (IoOp* op : std::exchange(completed_, {})) {
    std::unique_ptr<Request> request(static_cast<Request*>(op));
    if (request->kind == IoOp::Kind::kSync) {
      CompleteSync(std::move(request));
    } else {
      CompletePiece(std::move(request));
    }
  }
  StartSyncs();
}

// Whether the rest of the request is to be asked for (again).
bool IoScheduler::Thread::TakeResult(Request& request) {
  const int64_t result = request.result;
  if (result > 0) {
    // What is not a whole block is moved again: direct I/O goes on at blocks only.
    const uint64_t moved = static_cast<uint64_t>(result) / kBlockBytes * kBlockBytes;
    request.moved += moved;
    if (request.moved >= request.bytes) return false;
    if (moved > 0) {
      request.retries = 0;
      return true;
    }
  } else if (result == 0 ? request.kind == IoOp::Kind::kRead : !IsTransient(result)) {
    return false;
  }
  return ++request.retries <= kMaxRetries;
}

absl::Status IoScheduler::Thread::FailureOf(const Request& request) const {
  const std::string where =
      absl::StrCat(request.kind == IoOp::Kind::kWrite ? "write " : "read ",
                   request.parts.front().job->transfer->file->path, " at ", request.offset);
  if (request.result < 0) return IoFailure(-request.result, where);
  if (request.kind == IoOp::Kind::kRead) {
    return absl::DataLossError(absl::StrCat(where, ": the file ends"));
  }
  return absl::UnavailableError(absl::StrCat(where, ": short write"));
}

void IoScheduler::Thread::CompletePiece(std::unique_ptr<Request> request) {
  const bool again = TakeResult(*request);
  const bool wanted = request->parts.front().job->status.ok();
  if (again && wanted) {
    Submit(std::move(request));
    return;
  }
  const bool write = request->kind == IoOp::Kind::kWrite;
  uint64_t end = 0;  // of the part, within the request
  for (const Request::Part& part : request->parts) {
    end += part.bytes();
    if (request->moved >= end) {
      Arrived(part);
    } else if (part.job->status.ok()) {
      Fail(*part.job, FailureOf(*request));
    }
  }
  queue_.Completed(*request);
  const auto now = Clock::now();
  if (write) {
    write_bandwidth_.Count(request->moved, queue_.writes_in_flight() == 0, now);
  } else {
    read_bandwidth_.Count(request->moved, queue_.reads_in_flight() == 0, now);
  }
  for (const Request::Part& part : request->parts) {
    Job& job = *part.job;
    const bool ended = !job.status.ok() || job.written == job.total;
    if (!write) {
      MarkDirty(job);
    } else if (ended && job.in_flight == 0) {
      Finish(job);
    }
  }
}

void IoScheduler::Thread::Arrived(const Request::Part& part) {
  Job& job = *part.job;
  if (job.is_write()) {
    job.written += part.bytes();
    return;
  }
  job.islands.emplace(part.begin, part.end);
  while (!job.islands.empty() && job.islands.begin()->first == job.prefix) {
    job.prefix = job.islands.begin()->second;
    job.islands.erase(job.islands.begin());
  }
}

void IoScheduler::Thread::CompleteSync(std::unique_ptr<Request> request) {
  if (IsTransient(request->result) && ++request->retries <= kMaxRetries) {
    Submit(std::move(request));
    return;
  }
  absl::Status status;
  if (request->result < 0) {
    status = IoFailure(-request->result, absl::StrCat("fdatasync ", request->file->path));
  }
  syncs_[request->file.get()].in_flight = false;  // StartSyncs goes on with the file
  for (std::unique_ptr<Transfer>& transfer : request->synced) transfer->finished(status);
}

void IoScheduler::Thread::Fail(Job& job, absl::Status status) {
  if (!job.status.ok()) return;
  job.status = std::move(status);
  queue_.Withdraw(job);
  if (!job.is_write()) MarkDirty(job);
}

void IoScheduler::Thread::MarkDirty(Job& job) {
  if (std::exchange(job.dirty, true)) return;
  dirty_.push_back(&job);
}

// Reports one piece of the most urgent read that got further, and ends it when it is over. False
// when there was nothing to do.
bool IoScheduler::Thread::SettleOne() {
  if (dirty_.empty()) return false;
  auto first = std::min_element(dirty_.begin(), dirty_.end(), [](const Job* a, const Job* b) {
    return std::tie(a->transfer->priority, a->transfer->batch, a->arrival) <
           std::tie(b->transfer->priority, b->transfer->batch, b->arrival);
  });
  Job& job = **first;
  if (job.status.ok() && job.prefix > job.reported) {
    job.reported = std::min(job.prefix, job.reported + options_.piece_bytes);
    if (job.prefix - job.reported <= options_.piece_bytes / 16) job.reported = job.prefix;
    absl::Status status =
        job.transfer->advanced ? job.transfer->advanced(job.reported) : absl::OkStatus();
    if (!status.ok()) Fail(job, std::move(status));
    if (job.status.ok() && job.prefix > job.reported) return true;
  }
  job.dirty = false;
  *first = dirty_.back();
  dirty_.pop_back();
  const bool ended = !job.status.ok() || job.prefix == job.total;
  if (ended && job.in_flight == 0) Finish(job);
  return true;
}

void IoScheduler::Thread::Finish(Job& job) {
  queue_.Remove(job, Clock::now());
  std::unique_ptr<Transfer> transfer = std::move(job.transfer);
  absl::Status status = std::move(job.status);
  tickets_.erase(transfer->ticket);
  const bool written = status.ok() && transfer->direction == Transfer::Direction::kWrite;
  jobs_.erase(job.arrival);
  if (written) {
    SegmentFile* file = transfer->file.get();
    syncs_[file].waiting.push_back(std::move(transfer));
  } else {
    transfer->finished(std::move(status));  // nothing of it stays here: its message is shared
  }
}

// Writes that finish together share a sync, and those that finish meanwhile share the next.
void IoScheduler::Thread::StartSyncs() {
  for (auto sync = syncs_.begin(); sync != syncs_.end();) {
    FileSync& file_sync = sync->second;
    if (file_sync.in_flight) {
      ++sync;
      continue;
    }
    if (file_sync.waiting.empty()) {
      sync = syncs_.erase(sync);
      continue;
    }
    auto request = std::make_unique<Request>();
    request->kind = IoOp::Kind::kSync;
    request->file = file_sync.waiting.front()->file;
    request->synced.swap(file_sync.waiting);
    file_sync.in_flight = true;
    Submit(std::move(request));
    ++sync;
  }
}

IoScheduler::IoScheduler(std::unique_ptr<Thread> thread) : thread_(std::move(thread)) {}
IoScheduler::~IoScheduler() = default;

absl::StatusOr<std::unique_ptr<IoScheduler>> IoScheduler::Start(Options options) {
  auto thread = std::make_unique<Thread>(options);
  absl::Status status = thread->Start();
  if (!status.ok()) return status;
  return std::unique_ptr<IoScheduler>(new IoScheduler(std::move(thread)));
}

void IoScheduler::Stop() { thread_->Stop(); }

void IoScheduler::Submit(std::unique_ptr<Transfer> transfer) { thread_->Push(std::move(transfer)); }

void IoScheduler::Reprioritize(uint64_t ticket, IoPriority priority, uint64_t batch) {
  thread_->Push({ticket, false, priority, batch});
}

void IoScheduler::Cancel(uint64_t ticket) { thread_->Push({ticket, true}); }

void IoScheduler::FileReady(std::shared_ptr<SegmentFile> file, absl::Status status) {
  thread_->Push(std::move(file), std::move(status));
}

const std::string& IoScheduler::engine() const { return thread_->engine(); }
double IoScheduler::read_bytes_per_s() const { return thread_->read_bytes_per_s(); }
double IoScheduler::write_bytes_per_s() const { return thread_->write_bytes_per_s(); }

}  // namespace terrace::nvme
