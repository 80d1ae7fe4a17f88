#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "tiers/nvme/engines.h"

namespace terrace::nvme {

namespace {

constexpr uint32_t kSpareEntries = 16;  // of the ring, beside pieces: syncs and the wake-up
// With the deferred task work comes a flag that says whether any waits: without it, every look for
// completions would be a system call.
constexpr uint32_t kPreferredFlags =
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;

// The kernel is short of memory, or has completions to be reaped first.
bool IsShortage(int result) { return result == -EAGAIN || result == -EBUSY; }

void Pause() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

class UringEngine final : public IoEngine {
 public:
  UringEngine(const io_uring& ring, int wake_fd, std::string name)
      : ring_(ring), wake_fd_(wake_fd), name_(std::move(name)) {
    ArmWake();
  }
  ~UringEngine() override {
    io_uring_queue_exit(&ring_);
    close(wake_fd_);
  }

  void Submit(IoOp* op) override;
  void Poll(bool wait, std::vector<IoOp*>& completed) override;
  void Wake() override;
  std::string name() const override { return name_; }

 private:
  void ArmWake();
  io_uring_sqe* NextSqe();
  void Enter(bool wait);
  void Reap(std::vector<IoOp*>& completed);

  io_uring ring_;
  const int wake_fd_;
  const std::string name_;
  bool woken_ = false;  // by a Wake() that has not ended a wait yet
};

io_uring_sqe* UringEngine::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    if (io_uring_submit(&ring_) <= 0) Pause();
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void UringEngine::ArmWake() {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_poll_add(sqe, wake_fd_, POLLIN);
  io_uring_sqe_set_data(sqe, nullptr);
}

void UringEngine::Submit(IoOp* op) {
  io_uring_sqe* sqe = NextSqe();
  switch (op->kind) {
    case IoOp::Kind::kRead:
      io_uring_prep_readv(sqe, op->fd, op->buffers, op->buffer_count, op->offset);
      break;
    case IoOp::Kind::kWrite:
      io_uring_prep_writev(sqe, op->fd, op->buffers, op->buffer_count, op->offset);
      break;
    case IoOp::Kind::kSync:
      io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
      break;
  }
  io_uring_sqe_set_data(sqe, op);
}

void UringEngine::Poll(bool wait, std::vector<IoOp*>& completed) {
  const size_t before = completed.size();
  while (true) {
    Enter(wait && !woken_);
    Reap(completed);
    // An interrupted wait brings neither.
    if (!wait || woken_ || completed.size() > before) break;
  }
  if (wait) woken_ = false;
}

void UringEngine::Enter(bool wait) {
  int result = 0;
  if (wait) {
    result = io_uring_submit_and_wait(&ring_, 1);
  } else {
    if (io_uring_sq_ready(&ring_) > 0) result = io_uring_submit(&ring_);
    const uint32_t flags = IO_URING_READ_ONCE(*ring_.sq.kflags);
    if (result >= 0 && (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0) {
      result = io_uring_get_events(&ring_);
    }
  }
  if (result >= 0 || result == -EINTR) return;
  if (IsShortage(result)) {
    Pause();
    return;
  }
  // Only a defect of this file leads here, with requests of unknown fate in the kernel: their
  // memory must not be handed to anyone.
  std::fprintf(stderr, "io_uring_enter: %s\n", std::strerror(-result));
  std::abort();
}

void UringEngine::Reap(std::vector<IoOp*>& completed) {
  io_uring_cqe* cqe = nullptr;
  bool rearm = false;
  uint32_t head = 0, count = 0;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++count;
    auto* op = static_cast<IoOp*>(io_uring_cqe_get_data(cqe));
    if (op == nullptr) {
      rearm = true;
    } else {
      op->result = cqe->res;
      completed.push_back(op);
    }
  }
  io_uring_cq_advance(&ring_, count);
  if (!rearm) return;
  uint64_t wakes;
  [[maybe_unused]] const ssize_t taken = read(wake_fd_, &wakes, sizeof wakes);
  woken_ = true;
  ArmWake();
}

void UringEngine::Wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the wait ends anyway.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof one);
}

// Some sandboxes grant a ring that may not be entered.
int TryRing(io_uring& ring) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  io_uring_prep_nop(sqe);
  const int submitted = io_uring_submit_and_wait(&ring, 1);
  if (submitted < 0) return submitted;
  io_uring_cqe* cqe = nullptr;
  const int result = io_uring_peek_cqe(&ring, &cqe);
  if (result < 0) return result;
  io_uring_cqe_seen(&ring, cqe);
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeUringEngine(uint32_t depth) {
  const uint32_t entries = std::bit_ceil(depth + kSpareEntries);
  const auto refused = [](const char* call, int error) {
    return absl::FailedPreconditionError(
        absl::StrCat("the kernel grants no io_uring: ", call, ": ", std::strerror(error)));
  };
  io_uring ring = {};
  std::string name = "io_uring (single_issuer, defer_taskrun)";
  int result = io_uring_queue_init(entries, &ring, kPreferredFlags);
  if (result == -EINVAL) {
    name = "io_uring (plain)";
    result = io_uring_queue_init(entries, &ring, 0);
  }
  if (result < 0) return refused("io_uring_setup", -result);
  absl::Cleanup close_ring = [&ring] { io_uring_queue_exit(&ring); };
  result = TryRing(ring);
  if (result < 0) return refused("io_uring_enter", -result);
  const int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake_fd < 0) return refused("eventfd", errno);
  std::move(close_ring).Cancel();
  return std::make_unique<UringEngine>(ring, wake_fd, std::move(name));
}

}  // namespace terrace::nvme
