#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/engines.h"

namespace terrace::nvme {

namespace {

constexpr uint32_t kMaxThreads = 16;

int64_t Execute(const IoOp& op) {
  const auto offset = static_cast<off_t>(op.offset);
  int64_t result = 0;
  switch (op.kind) {
    case IoOp::Kind::kRead:
      result = preadv2(op.fd, op.buffers, op.buffer_count, offset, 0);
      break;
    case IoOp::Kind::kWrite:
      result = pwritev2(op.fd, op.buffers, op.buffer_count, offset, 0);
      break;
    case IoOp::Kind::kSync:
      result = fdatasync(op.fd);
      break;
  }
  return result < 0 ? -errno : result;
}

class ThreadEngine final : public IoEngine {
 public:
  ThreadEngine(uint32_t threads, std::string name) : name_(std::move(name)) {
    for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~ThreadEngine() override;

  void Submit(IoOp* op) override { submitted_.push_back(op); }
  void Poll(bool wait, std::vector<IoOp*>& completed) override;
  void Wake() override;
  std::string name() const override { return name_; }

 private:
  void Work();

  const std::string name_;
  std::vector<IoOp*> submitted_;  // of the engine's thread, not yet handed on

  std::mutex mutex_;
  std::condition_variable work_;   // there is something in queue_, or stopping_
  std::condition_variable event_;  // there is something in completed_, or woken_
  // Guarded by mutex_.
  std::deque<IoOp*> queue_;
  std::vector<IoOp*> completed_;
  bool woken_ = false;
  bool stopping_ = false;

  std::vector<std::thread> threads_;
};

ThreadEngine::~ThreadEngine() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadEngine::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return !queue_.empty() || stopping_; });
    if (queue_.empty()) return;
    IoOp* op = queue_.front();
    queue_.pop_front();
    lock.unlock();
    op->result = Execute(*op);
    lock.lock();
    completed_.push_back(op);
    event_.notify_one();
  }
}

void ThreadEngine::Poll(bool wait, std::vector<IoOp*>& completed) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (IoOp* op : submitted_) {
    queue_.push_back(op);
    work_.notify_one();
  }
  submitted_.clear();
  if (wait) {
    event_.wait(lock, [this] { return !completed_.empty() || woken_; });
    woken_ = false;
  }
  completed.insert(completed.end(), completed_.begin(), completed_.end());
  completed_.clear();
}

void ThreadEngine::Wake() {
  std::lock_guard<std::mutex> lock(mutex_);
  woken_ = true;
  event_.notify_one();
}

}  // namespace

std::unique_ptr<IoEngine> MakeThreadEngine(uint32_t depth, const std::string& note) {
  const uint32_t threads = std::clamp<uint32_t>(depth, 1, kMaxThreads);
  return std::make_unique<ThreadEngine>(
      threads, absl::StrCat("preadv2 on ", threads, threads == 1 ? " thread" : " threads",
                            note.empty() ? "" : absl::StrCat(" (", note, ")")));
}

}  // namespace terrace::nvme
