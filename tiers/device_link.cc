#include "tiers/device_link.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace {

using kernels::CopyDirection;

namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;
// One crosses while the next is checked.
constexpr uint32_t kDemandPieces = 2;
constexpr double kUnmeasuredBytesPerS = 10e9;
constexpr double kMeasureWeight = 0.1;  // of a whole piece

uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

struct DeviceLink::Run {
  Ticket ticket = 0;
  uint32_t part = 0;
  bool ends_part = false;
  const uint8_t* host = nullptr;
  uint64_t bytes = 0;
  uint32_t expected_crc = 0;
  std::shared_ptr<uint32_t> crc;  // of the part so far; the private thread's
  bool right = true;              // of a run that ends its part
};

struct DeviceLink::Piece {
  CopyDirection direction = CopyDirection::kToDevice;
  std::vector<Run> runs;
  std::vector<kernels::DeviceCopy> copies;
  uint64_t bytes = 0;
  uint64_t issued_ns = 0;
  absl::Status status;  // the device's
};

struct DeviceLink::Moving {
  DeviceMove move;
  uint64_t bytes = 0;
  uint32_t next_part = 0;  // to issue, from `next_offset` on
  uint64_t next_offset = 0;
  std::shared_ptr<uint32_t> crc;
  uint32_t parts_ready = 0;
  uint32_t in_flight = 0;      // pieces
  std::vector<Ticket> awaits;  // moves from the memory that this one goes to
  absl::Status status;

  bool issued() const { return next_part == move.parts.size() || !status.ok(); }
  kernels::DeviceAddress end() const {
    return move.device + move.parts.back().offset + move.parts.back().bytes;
  }
};

DeviceLink::DeviceLink(kernels::Device* device, PostFn post)
    : device_(device),
      post_(std::move(post)),
      bytes_per_s_(kUnmeasuredBytesPerS),
      thread_([this] { RunThread(); }) {}

DeviceLink::~DeviceLink() {
  *alive_ = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
  device_->Synchronize();
}

DeviceLink::Ticket DeviceLink::Start(DeviceMove move) {
  const Ticket ticket = ++last_ticket_;
  const CopyDirection direction = move.direction;
  auto moving = std::make_unique<Moving>();
  moving->move = std::move(move);
  for (const PartSpan& part : moving->move.parts) moving->bytes += part.bytes;
  if (direction == CopyDirection::kToDevice) {
    for (const auto& [other, from] : moves_) {
      if (from->move.direction == CopyDirection::kFromDevice && from->move.device < moving->end() &&
          moving->move.device < from->end()) {
        moving->awaits.push_back(other);
      }
    }
  }
  Lane& lane = lanes_[Index(direction)];
  lane.pending_bytes += moving->bytes;
  lane.waiting[moving->move.demand ? 0 : 1].push_back(ticket);
  moves_.emplace(ticket, std::move(moving));
  Pump(direction);
  return ticket;
}

void DeviceLink::Hasten(Ticket ticket) {
  const auto found = moves_.find(ticket);
  if (found == moves_.end() || found->second->move.demand) return;
  found->second->move.demand = true;
  Lane& lane = lanes_[Index(found->second->move.direction)];
  if (std::erase(lane.waiting[1], ticket) == 0) return;  // all of it has been issued
  lane.waiting[0].push_back(ticket);
  Pump(found->second->move.direction);
}

bool DeviceLink::Blocked(const Moving& move) const {
  return std::any_of(move.awaits.begin(), move.awaits.end(),
                     [this](Ticket ticket) { return moves_.contains(ticket); });
}

void DeviceLink::Pump(CopyDirection direction) {
  while (auto piece = NextPiece(direction)) Issue(std::move(piece));
}

std::shared_ptr<DeviceLink::Piece> DeviceLink::NextPiece(CopyDirection direction) {
  Lane& lane = lanes_[Index(direction)];
  for (int urgency = 0; urgency < 2; ++urgency) {
    if (lane.in_flight >= (urgency == 0 ? kDemandPieces : 1)) return nullptr;
    auto piece = std::make_shared<Piece>();
    piece->direction = direction;
    std::deque<Ticket>& waiting = lane.waiting[urgency];
    for (auto it = waiting.begin(); it != waiting.end() && piece->bytes < kPieceBytes;) {
      const Moving& move = *moves_.at(*it);
      if (move.issued()) {  // it failed
        it = waiting.erase(it);
        continue;
      }
      if (Blocked(move)) {
        ++it;
        continue;
      }
      Fill(*it, *piece);
      it = move.issued() ? waiting.erase(it) : it + 1;
    }
    if (!piece->runs.empty()) return piece;
  }
  return nullptr;
}

// The next stretches of the move, as far as the piece has room.
void DeviceLink::Fill(Ticket ticket, Piece& piece) {
  Moving& moving = *moves_.at(ticket);
  const DeviceMove& move = moving.move;
  ++moving.in_flight;
  while (moving.next_part < move.parts.size()) {
    const PartSpan& part = move.parts[moving.next_part];
    const uint64_t left = part.bytes - moving.next_offset;
    if (left > 0 && piece.bytes >= kPieceBytes) return;
    if (moving.next_offset == 0) moving.crc = std::make_shared<uint32_t>(0);
    Run run;
    run.ticket = ticket;
    run.part = moving.next_part;
    run.bytes = std::min(left, kPieceBytes - std::min(piece.bytes, kPieceBytes));
    run.ends_part = run.bytes == left;
    run.host = move.host + part.offset + moving.next_offset;
    run.expected_crc = move.part_crcs[run.part];
    run.crc = moving.crc;
    if (run.bytes > 0) {
      piece.copies.push_back({move.host + part.offset + moving.next_offset,
                              move.device + part.offset + moving.next_offset, run.bytes});
    }
    piece.bytes += run.bytes;
    moving.next_offset += run.bytes;
    if (run.ends_part) {
      ++moving.next_part;
      moving.next_offset = 0;
    }
    piece.runs.push_back(std::move(run));
  }
}

namespace {

template <typename Runs>
void CheckRuns(Runs& runs) {
  for (auto& run : runs) {
    *run.crc = kernels::Crc32c(run.host, run.bytes, *run.crc);
    if (run.ends_part) run.right = *run.crc == run.expected_crc;
  }
}

}  // namespace

void DeviceLink::Issue(std::shared_ptr<Piece> piece) {
  ++lanes_[Index(piece->direction)].in_flight;
  piece->issued_ns = NowNs();
  if (piece->direction == CopyDirection::kFromDevice) {
    Copy(std::move(piece));
    return;
  }
  RunAside([this, piece = std::move(piece)] {
    CheckRuns(piece->runs);
    Copy(piece);
  });
}

// Loop thread, or the private one.
void DeviceLink::Copy(std::shared_ptr<Piece> piece) {
  const auto report = [this](std::shared_ptr<Piece> landed) {
    post_([this, alive = alive_, landed = std::move(landed)] {
      if (*alive) Landed(*landed);
    });
  };
  const Piece& asked = *piece;
  device_->Copy(asked.direction, asked.copies,
                [this, report, piece = std::move(piece)](absl::Status status) mutable {
                  piece->status = std::move(status);
                  if (piece->direction == CopyDirection::kToDevice) {
                    report(std::move(piece));
                    return;
                  }
                  RunAside([report, piece = std::move(piece)]() mutable {
                    CheckRuns(piece->runs);
                    report(std::move(piece));
                  });
                });
}

void DeviceLink::Landed(const Piece& piece) {
  Lane& lane = lanes_[Index(piece.direction)];
  --lane.in_flight;
  Measure(piece);
  std::vector<Ticket> moved;
  for (const Run& run : piece.runs) {
    Moving& moving = *moves_.at(run.ticket);
    if (moved.empty() || moved.back() != run.ticket) moved.push_back(run.ticket);
    lane.pending_bytes -= run.bytes;
    moving.bytes -= run.bytes;
    if (!piece.status.ok()) moving.status.Update(piece.status);
    if (!run.right) {
      moving.status.Update(absl::DataLossError(
          absl::StrCat("part ", run.part, " is not what its checksum says: ",
                       piece.direction == CopyDirection::kToDevice ? "to" : "from", " device ",
                       std::string(device_->name()))));
    }
    if (run.ends_part && moving.status.ok()) moving.parts_ready = run.part + 1;
  }
  for (const Ticket ticket : moved) {
    Moving& moving = *moves_.at(ticket);
    --moving.in_flight;
    if (moving.in_flight == 0 && moving.issued()) {
      End(ticket);
    } else if (moving.status.ok() && moving.move.progress && moving.parts_ready > 0) {
      moving.move.progress(moving.parts_ready);
    }
  }
  Pump(CopyDirection::kToDevice);  // one may have waited for what came down
  Pump(CopyDirection::kFromDevice);
}

void DeviceLink::Measure(const Piece& piece) {
  Lane& lane = lanes_[Index(piece.direction)];
  const uint64_t now_ns = NowNs(), begin_ns = std::max(piece.issued_ns, lane.landed_ns);
  lane.landed_ns = now_ns;
  if (piece.direction != CopyDirection::kToDevice || now_ns <= begin_ns) return;
  const double rate =
      static_cast<double>(piece.bytes) * 1e9 / static_cast<double>(now_ns - begin_ns);
  const double weight =
      kMeasureWeight * static_cast<double>(piece.bytes) / static_cast<double>(kPieceBytes);
  if (rate > 0) bytes_per_s_ += (rate - bytes_per_s_) * std::min(weight, kMeasureWeight);
}

void DeviceLink::End(Ticket ticket) {
  const std::unique_ptr<Moving> moving = std::move(moves_.at(ticket));
  moves_.erase(ticket);
  Lane& lane = lanes_[Index(moving->move.direction)];
  lane.pending_bytes -= moving->bytes;  // of one that failed, what is not moved any more
  for (std::deque<Ticket>& waiting : lane.waiting) std::erase(waiting, ticket);
  moving->move.done(moving->status);
}

void DeviceLink::RunAside(absl::AnyInvocable<void()> job) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void DeviceLink::RunThread() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    absl::AnyInvocable<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

}  // namespace terrace
