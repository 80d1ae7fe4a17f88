// Moves objects between host memory and a device's, a piece at a time, so that what is waited for
// overtakes what is not: a demand waits for one piece of the others. Pieces hold parts of several
// objects where these are small: one transfer, its latency paid once.
//
// Checksums are compared on the host's side of the crossing: of what goes up before it is copied,
// of what comes down behind it. As with every write from memory that clients share, one that
// changes bytes at that very moment can spoil them.
//
// A range of the device's memory may be freed, and moved to, while a move from it is under way: the
// move to it waits.
//
// Loop thread, except for a private thread that checks.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "config/object_layout.h"
#include "config/post.h"
#include "kernels/device.h"

namespace terrace {

struct DeviceMove {
  kernels::CopyDirection direction = kernels::CopyDirection::kToDevice;
  uint8_t* host = nullptr;            // of the payload; both stay valid until `done`
  kernels::DeviceAddress device = 0;  // of the payload
  std::vector<PartSpan> parts;
  std::vector<uint32_t> part_crcs;  // what they must be, one a part
  bool demand = true;               // somebody waits
  // The first so many parts are there, and right; not called for the last of them.
  std::function<void(uint32_t parts)> progress;
  // Once: OK when all are. DataLoss: a part is not what its checksum says. Else what the device
  // said.
  absl::AnyInvocable<void(absl::Status)> done;
};

class DeviceLink {
 public:
  using Ticket = uint64_t;  // never 0

  // `device` outlives it.
  DeviceLink(kernels::Device* device, PostFn post);
  // Waits for the pieces under way; no callback runs any more.
  ~DeviceLink();

  Ticket Start(DeviceMove move);
  // Somebody waits for it from now on. Ignored when it is over.
  void Hasten(Ticket ticket);

  // Bytes asked for and not there yet, of one direction.
  uint64_t pending_bytes(kernels::CopyDirection direction) const {
    return lanes_[Index(direction)].pending_bytes;
  }
  // As measured, up; as a fast link is until then. Above 0.
  double bytes_per_s() const { return bytes_per_s_; }

 private:
  struct Run;    // a stretch of one part
  struct Piece;  // one transfer
  struct Moving;
  struct Lane {
    std::deque<Ticket> waiting[2];  // what is waited for; what is not
    uint32_t in_flight = 0;         // pieces
    uint64_t pending_bytes = 0;
    uint64_t landed_ns = 0;  // when the last one did
  };

  static size_t Index(kernels::CopyDirection direction) { return static_cast<size_t>(direction); }
  void Pump(kernels::CopyDirection direction);
  std::shared_ptr<Piece> NextPiece(kernels::CopyDirection direction);
  void Fill(Ticket ticket, Piece& piece);
  bool Blocked(const Moving& move) const;
  void Issue(std::shared_ptr<Piece> piece);
  void Copy(std::shared_ptr<Piece> piece);
  void Landed(const Piece& piece);
  void Measure(const Piece& piece);
  void End(Ticket ticket);
  void RunAside(absl::AnyInvocable<void()> job);
  void RunThread();

  kernels::Device* const device_;
  const PostFn post_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  absl::flat_hash_map<Ticket, std::unique_ptr<Moving>> moves_;
  std::array<Lane, 2> lanes_;
  Ticket last_ticket_ = 0;
  double bytes_per_s_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<absl::AnyInvocable<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace terrace
