// Sessions: what each connected client holds. A lease or reservation belongs to one session and
// ends with it. This file keeps the books; what a lease means for an object is the mover's and the
// service's business. Loop thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "daemon/catalog.h"
#include "kernels/shared_memory.h"
#include "transport/service.h"

namespace terrace {

// The session's ready words, in a memfd that its client can only read (see transport/messages.h),
// and the eventfd that tells an event loop to look at them.
class ReadyBoard {
 public:
  static absl::StatusOr<ReadyBoard> Create(uint32_t slots);
  ReadyBoard() = default;
  ReadyBoard(ReadyBoard&& other) noexcept;
  ReadyBoard& operator=(ReadyBoard&& other) noexcept;
  ~ReadyBoard();

  // A slot in state kLoading with no part ready; nullopt when all are taken.
  std::optional<uint32_t> Take();
  void Give(uint32_t slot);
  // Stores the word, wakes futex waiters of the slot and raises the eventfd.
  void Publish(uint32_t slot, uint32_t word);
  uint32_t Word(uint32_t slot) const;

  uint32_t slots() const { return slots_; }
  int fd() const { return memory_.fd(); }
  int event_fd() const { return event_fd_; }

 private:
  std::atomic<uint32_t>* words() const;

  kernels::SharedMemory memory_;
  int event_fd_ = -1;
  uint32_t slots_ = 0;
  uint32_t next_unused_ = 0;
  std::vector<uint32_t> free_;
};

struct LeasedObject {
  ObjectId object;
  uint32_t slot;
  bool on_device;  // not in host memory
};

struct Lease {
  uint64_t deadline_us = 0;  // CLOCK_MONOTONIC
  std::vector<LeasedObject> objects;
};

struct VerifyProgress {
  bool busy = false;  // a record is being read back
  VerifyReply step;   // result of the finished step, not yet told
  bool has_step = false;
};

struct Session {
  SessionId id = 0;
  PeerCredentials peer;
  std::string client_name;
  uint16_t tenant = 0;
  bool knows_hbm = false;
  uint64_t opened_us = 0;
  ReadyBoard board;
  // Of a session inside the daemon: told what is published on the board. It must not call back.
  std::function<void(uint32_t slot, uint32_t word)> on_ready;
  absl::flat_hash_map<uint64_t, Lease> leases;
  absl::flat_hash_map<uint64_t, ObjectId> reservations;
  VerifyProgress verify;
};

class SessionTable {
 public:
  // The session is owned by the table until Close.
  Session& Open();
  Session* Find(SessionId id);
  void Close(SessionId id);
  size_t size() const { return sessions_.size(); }

  uint64_t NextId() { return ++last_id_; }

  // The book of deadlines, across sessions.
  void TrackDeadline(uint64_t deadline_us, SessionId session, uint64_t lease);
  void ForgetDeadline(uint64_t deadline_us, SessionId session, uint64_t lease);
  // A lease whose deadline has passed, removed from the book; nullopt when none.
  std::optional<std::pair<SessionId, uint64_t>> PopExpired(uint64_t now_us);

  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const auto& [id, session] : sessions_) visit(*session);
  }

 private:
  struct Deadline {
    uint64_t at_us;
    SessionId session;
    uint64_t lease;
    auto operator<=>(const Deadline&) const = default;
  };
  absl::flat_hash_map<SessionId, std::unique_ptr<Session>> sessions_;
  absl::btree_set<Deadline> deadlines_;
  uint64_t last_id_ = 0;  // sessions, leases and reservations share one sequence
};

uint64_t MonotonicUs();

}  // namespace terrace
