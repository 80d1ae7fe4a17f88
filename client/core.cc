#include "client/core.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "config/options.h"

namespace terrace {
namespace {

constexpr uint64_t kPage = 4096;

std::string SocketPath(const ClientOptions& options) {
  if (!options.socket_path.empty()) return options.socket_path;
  const char* named = std::getenv("TERRACE_SOCKET");
  if (named != nullptr && *named != '\0') return named;
  return DefaultSocketPath();
}

}  // namespace

uint64_t MonotonicNowUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + now.tv_nsec / 1000;
}

RoomWait::RoomWait(const ClientOptions& options)
    : end_us_(MonotonicNowUs() + uint64_t{options.room_timeout_ms} * 1000) {}

bool RoomWait::Sleep(uint32_t retry_after_ms) const {
  const uint64_t now_us = MonotonicNowUs();
  if (now_us >= end_us_) return false;
  std::this_thread::sleep_for(
      std::chrono::microseconds(std::min(uint64_t{retry_after_ms} * 1000, end_us_ - now_us)));
  return true;
}

absl::StatusOr<std::shared_ptr<ClientCore>> ClientCore::Open(ClientOptions options) {
  options.socket_path = SocketPath(options);
  ConnectionOptions connection;
  connection.socket_path = options.socket_path;
  connection.hello.client_name = options.client_name;
  connection.hello.tenant = options.tenant;
  connection.call_timeout_ms = options.call_timeout_ms;
  auto opened = Connection::Open(std::move(connection));
  if (!opened.ok()) return opened.status();
  std::shared_ptr<ClientCore> core(new ClientCore(std::move(options)));
  core->connection_ = *std::move(opened);
  absl::Status attached = core->Attach();
  if (!attached.ok()) return attached;
  return core;
}

absl::Status ClientCore::Attach() {
  welcome_ = connection_->TakeWelcome();
  ready_event_fd_ = std::exchange(welcome_.ready_event_fd, -1);
  device_fd_ = std::exchange(welcome_.device_fd, -1);
  // Attach owns its descriptor in every case, so both are handed over before either is looked at.
  auto segment = kernels::SharedMemory::Attach(std::exchange(welcome_.segment_fd, -1),
                                               welcome_.host_capacity_bytes, true);
  auto board = kernels::SharedMemory::Attach(
      std::exchange(welcome_.board_fd, -1),
      AlignUp(uint64_t{welcome_.board_slots} * sizeof(uint32_t), kPage), false);
  if (!segment.ok()) return segment.status();
  if (!board.ok()) return board.status();
  segment_ = *std::move(segment);
  board_ = *std::move(board);
  if (welcome_.max_keys_per_call == 0) {
    return absl::InternalError("the daemon allows 0 keys in a call");
  }
  return absl::OkStatus();
}

ClientCore::~ClientCore() {
  Close();
  if (ready_event_fd_ >= 0) close(ready_event_fd_);
  if (device_fd_ >= 0) close(device_fd_);
}

int32_t ClientCore::spawned_pid() const { return daemon_ == nullptr ? 0 : daemon_->pid(); }

void ClientCore::Close() {
  if (closed_.exchange(true, std::memory_order_acq_rel)) return;
  // The connection may be in use by another thread: it sees the end of the stream.
  if (connection_ != nullptr) shutdown(connection_->socket_fd(), SHUT_RDWR);
  if (daemon_ != nullptr) daemon_->Stop();
}

bool ClientCore::PeerAlive() const {
  if (closed() || !connection_->alive()) return false;
  pollfd socket{connection_->socket_fd(), POLLRDHUP, 0};
  return poll(&socket, 1, 0) <= 0 || (socket.revents & (POLLRDHUP | POLLHUP | POLLERR)) == 0;
}

absl::StatusOr<uint8_t*> ClientCore::At(uint64_t offset, uint64_t bytes) const {
  if (bytes <= segment_.size_bytes() && offset <= segment_.size_bytes() - bytes) {
    return segment_.data() + offset;
  }
  return absl::InternalError(absl::StrCat("the daemon named ", bytes, " bytes at offset ", offset,
                                          " of a segment of ", segment_.size_bytes()));
}

absl::StatusOr<const uint8_t*> ClientCore::OnDevice(uint64_t offset, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(device_mutex_);
  if (device_fd_ >= 0) {
    auto mapped = kernels::SharedMemory::Attach(std::exchange(device_fd_, -1),
                                                welcome_.device_capacity_bytes, false);
    if (!mapped.ok()) return mapped.status();
    device_ = *std::move(mapped);
  }
  if (device_.data() == nullptr) {
    return absl::FailedPreconditionError(
        "memory: device, but the daemon has no HBM tier (hbm.capacity = 0)");
  }
  if (bytes <= device_.size_bytes() && offset <= device_.size_bytes() - bytes) {
    return device_.data() + offset;
  }
  return absl::InternalError(absl::StrCat("the daemon named ", bytes, " bytes at offset ", offset,
                                          " of HBM of ", device_.size_bytes()));
}

absl::StatusOr<uint8_t*> ClientCore::WritableAt(uint64_t offset, uint64_t bytes) const {
  auto data = At(offset, bytes);
  if (data.ok()) kernels::PrefaultRead(*data, bytes);
  return data;
}

absl::StatusOr<const std::atomic<uint32_t>*> ClientCore::Word(uint32_t slot) const {
  if (slot >= welcome_.board_slots) {
    return absl::InternalError(
        absl::StrCat("the daemon named slot ", slot, " of a board of ", welcome_.board_slots));
  }
  return reinterpret_cast<const std::atomic<uint32_t>*>(board_.data()) + slot;
}

}  // namespace terrace
