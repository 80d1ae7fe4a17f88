#include "daemon/session.h"

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <utility>

namespace terrace {

uint64_t MonotonicUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000 + now.tv_nsec / 1000;
}

absl::StatusOr<ReadyBoard> ReadyBoard::Create(uint32_t slots) {
  const uint64_t bytes = AlignUp(uint64_t{slots} * sizeof(uint32_t), kExtentAlignment);
  auto memory = kernels::SharedMemory::Create("terrace-ready", bytes);
  if (!memory.ok()) return memory.status();
  absl::Status sealed = memory->SealFutureWrites();
  if (!sealed.ok()) return sealed;
  ReadyBoard board;
  board.memory_ = *std::move(memory);
  board.slots_ = slots;
  board.event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (board.event_fd_ < 0) return absl::ErrnoToStatus(errno, "eventfd for a session");
  return board;
}

ReadyBoard::ReadyBoard(ReadyBoard&& other) noexcept { *this = std::move(other); }

ReadyBoard& ReadyBoard::operator=(ReadyBoard&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(event_fd_, other.event_fd_);
  std::swap(slots_, other.slots_);
  std::swap(next_unused_, other.next_unused_);
  std::swap(free_, other.free_);
  return *this;
}

ReadyBoard::~ReadyBoard() {
  if (event_fd_ >= 0) close(event_fd_);
}

std::atomic<uint32_t>* ReadyBoard::words() const {
  return reinterpret_cast<std::atomic<uint32_t>*>(memory_.data());
}

std::optional<uint32_t> ReadyBoard::Take() {
  uint32_t slot;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (next_unused_ < slots_) {
    slot = next_unused_++;
  } else {
    return std::nullopt;
  }
  words()[slot].store(MakeReadyWord(ReadyState::kLoading, 0), std::memory_order_release);
  return slot;
}

void ReadyBoard::Give(uint32_t slot) {
  words()[slot].store(MakeReadyWord(ReadyState::kFree, 0), std::memory_order_release);
  free_.push_back(slot);
}

void ReadyBoard::Publish(uint32_t slot, uint32_t word) {
  words()[slot].store(word, std::memory_order_release);
  syscall(SYS_futex, &words()[slot], FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  const uint64_t one = 1;
  // EAGAIN means the counter is saturated: the reader is already due to wake.
  [[maybe_unused]] ssize_t written = write(event_fd_, &one, sizeof one);
}

uint32_t ReadyBoard::Word(uint32_t slot) const {
  return words()[slot].load(std::memory_order_acquire);
}

Session& SessionTable::Open() {
  auto session = std::make_unique<Session>();
  session->id = NextId();
  session->opened_us = MonotonicUs();
  Session& reference = *session;
  sessions_.emplace(reference.id, std::move(session));
  return reference;
}

Session* SessionTable::Find(SessionId id) {
  auto it = sessions_.find(id);
  return it == sessions_.end() ? nullptr : it->second.get();
}

void SessionTable::Close(SessionId id) { sessions_.erase(id); }

void SessionTable::TrackDeadline(uint64_t deadline_us, SessionId session, uint64_t lease) {
  deadlines_.insert({deadline_us, session, lease});
}

void SessionTable::ForgetDeadline(uint64_t deadline_us, SessionId session, uint64_t lease) {
  deadlines_.erase({deadline_us, session, lease});
}

std::optional<std::pair<SessionId, uint64_t>> SessionTable::PopExpired(uint64_t now_us) {
  auto first = deadlines_.begin();
  if (first == deadlines_.end() || first->at_us > now_us) return std::nullopt;
  std::pair<SessionId, uint64_t> expired{first->session, first->lease};
  deadlines_.erase(first);
  return expired;
}

}  // namespace terrace
