// A session with the daemon and the memory it shares: what Client, its leases and its stores hold
// in common. Private to client/. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "client/spawned_daemon.h"
#include "client/terrace.h"
#include "kernels/shared_memory.h"
#include "transport/connection.h"

namespace terrace {

uint64_t MonotonicNowUs();  // CLOCK_MONOTONIC, as the daemon's deadlines

// Waiting for room in the host tier, at most ClientOptions::room_timeout_ms for one call.
class RoomWait {
 public:
  explicit RoomWait(const ClientOptions& options);
  // Sleeps for what the daemon advised. False, at once, when the time is up.
  bool Sleep(uint32_t retry_after_ms) const;

 private:
  uint64_t end_us_;
};

class ClientCore {
 public:
  // Connects and maps what the daemon has populated. Statuses of Connection::Open.
  static absl::StatusOr<std::shared_ptr<ClientCore>> Open(ClientOptions options);
  ~ClientCore();
  ClientCore(const ClientCore&) = delete;
  ClientCore& operator=(const ClientCore&) = delete;

  Connection& connection() { return *connection_; }
  const ClientOptions& options() const { return options_; }
  const Welcome& welcome() const { return welcome_; }
  int ready_event_fd() const { return ready_event_fd_; }

  // The daemon ends with this core.
  void Own(std::unique_ptr<SpawnedDaemon> daemon) { daemon_ = std::move(daemon); }
  int32_t spawned_pid() const;

  // Cuts the session; mappings stay. Ends the owned daemon.
  void Close();
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  // Neither closed nor hung up by the daemon: looks at the socket.
  bool PeerAlive() const;

  // [offset, offset + bytes) of the segment. Internal: outside of it.
  absl::StatusOr<uint8_t*> At(uint64_t offset, uint64_t bytes) const;
  // The same of the device's memory, read-only. FailedPrecondition: the daemon has none, or none
  // that can be mapped. Maps it at the first call.
  absl::StatusOr<const uint8_t*> OnDevice(uint64_t offset, uint64_t bytes);
  // At, mapped ahead of writing: a write would fault page by page, a read maps many at once.
  absl::StatusOr<uint8_t*> WritableAt(uint64_t offset, uint64_t bytes) const;
  // A word of the ready board. Internal: no such slot.
  absl::StatusOr<const std::atomic<uint32_t>*> Word(uint32_t slot) const;

 private:
  explicit ClientCore(ClientOptions options) : options_(std::move(options)) {}
  absl::Status Attach();

  ClientOptions options_;
  std::unique_ptr<Connection> connection_;
  Welcome welcome_;
  kernels::SharedMemory segment_, board_;
  std::mutex device_mutex_;
  int device_fd_ = -1;  // until it is mapped
  kernels::SharedMemory device_;
  int ready_event_fd_ = -1;
  std::atomic<bool> closed_{false};
  std::unique_ptr<SpawnedDaemon> daemon_;
};

}  // namespace terrace
