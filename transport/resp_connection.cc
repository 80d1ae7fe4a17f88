#include "transport/resp_connection.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "transport/resp_reply.h"

namespace terrace {
namespace {

constexpr uint64_t kShareBytes = 2 << 20;  // one connection moves before another has its turn
constexpr uint64_t kPieceBytes = 256
                                 << 10;   // received at once: still in the cache for its checksum
constexpr uint64_t kWakeBytes = 1 << 20;  // of a value: fewer are not worth a thread's waking up
constexpr size_t kSmallRead = 4 << 10;    // after a large value: what is read ahead is copied
constexpr size_t kUsualRead = 16 << 10;
constexpr uint64_t kLargeValue = 64 << 10;
constexpr size_t kFlushBytes = 16 << 10;  // small replies wait for each other up to this
constexpr uint32_t kRetryMs = 10;
constexpr uint64_t kMostSpareBytes = 8 << 20;  // of larger values the wait for room is little
constexpr uint32_t kSpareMs = 100;             // that spare room waits for its value
constexpr char kLineEnd[] = "\r\n";

}  // namespace

RespConnection::RespConnection(RespHost& host, uint64_t id, int fd)
    : host_(host),
      id_(id),
      fd_(fd),
      authenticated_(host.options().password.empty()),
      moved_us_(host.now_us()),
      read_bytes_(kUsualRead) {}

RespConnection::~RespConnection() {
  if (room_.id != 0) {
    host_.Tell([id = room_.id](RespService& service) { service.Abort(id); });
  }
  GiveSpareBack();
  if (sending_) EndSend();
  close(fd_);
}

bool RespConnection::Stalled(uint64_t now_us, uint64_t timeout_us) const {
  const bool waits = step_ == Step::kAsked || step_ == Step::kRoom;
  const bool midway = Output() || step_ != Step::kCommand || parser_.inside();
  return midway && (Output() || !waits) && now_us - moved_us_ > timeout_us;
}

RespConnection::Next RespConnection::Unsent() const {
  if (gone_) return Next::kClosed;
  return writable_ ? Next::kAgain : Next::kWait;
}

// Closed with bytes that nobody read, the connection would be reset, and the last reply lost.
void RespConnection::Part() {
  shutdown(fd_, SHUT_WR);
  char nowhere[16 << 10];
  for (int i = 0; i < 64 && recv(fd_, nowhere, sizeof nowhere, 0) > 0; ++i) {
  }
}

RespConnection::Next RespConnection::Drive() {
  budget_ = kShareBytes;
  while (true) {
    const bool flush_first =
        sending_ || step_ == Step::kClosing || head_.size() - head_at_ > kFlushBytes;
    if (flush_first && Output() && !Flush()) return Unsent();
    if (step_ == Step::kClosing) Part();
    if (gone_ || step_ == Step::kClosing) return Next::kClosed;
    bool more = false;
    switch (step_) {
      case Step::kCommand:
        more = ReadCommand();
        break;
      case Step::kReceiving:
        more = Receive();
        break;
      case Step::kDropping:
        more = Drop();
        break;
      case Step::kAsked:
      case Step::kRoom:
      case Step::kClosing:
        break;
    }
    if (!more) {
      if (Output() && !Flush()) return Unsent();
      return gone_ ? Next::kClosed : Next::kWait;
    }
    if (budget_ == 0) return Next::kAgain;
  }
}

// --- reading ------------------------------------------------------------------------------------

RespConnection::Input RespConnection::Received(ssize_t bytes) {
  if (bytes > 0) {
    moved_us_ = host_.now_us();
    budget_ -= std::min<uint64_t>(budget_, bytes);
    return Input::kSome;
  }
  if (bytes < 0 && errno == EINTR) return Input::kSome;
  if (bytes < 0 && errno == EAGAIN) {
    readable_ = false;
    return Input::kNone;
  }
  gone_ = true;
  return Input::kGone;
}

RespConnection::Input RespConnection::ReadMore() {
  if (!readable_) return Input::kNone;
  in_.erase(0, in_at_);
  in_at_ = 0;
  const size_t before = in_.size();
  in_.resize(before + read_bytes_);
  const ssize_t bytes = recv(fd_, in_.data() + before, read_bytes_, 0);
  const int error = errno;
  in_.resize(before + std::max<ssize_t>(bytes, 0));
  if (in_.empty()) std::string().swap(in_);  // of an idle client, nothing is kept
  errno = error;
  return Received(bytes);
}

bool RespConnection::ReadCommand() {
  size_t used = 0;
  const RespParser::Event event = parser_.Next(std::string_view(in_).substr(in_at_), used);
  in_at_ += used;
  switch (event) {
    case RespParser::Event::kNeedMore:
      return ReadMore() == Input::kSome;
    case RespParser::Event::kValue:
      StartValue();
      return true;
    case RespParser::Event::kValueEnd:
      EndValue();
      return true;
    case RespParser::Event::kTooLarge:
      Error("ERR arguments are too long");
      return true;
    case RespParser::Event::kViolation:
      Error(absl::StrCat("ERR Protocol error: ", parser_.error()));
      step_ = Step::kClosing;
      return true;
    case RespParser::Event::kCommand:
      Dispatch();
      return true;
  }
  return false;
}

bool RespConnection::Receive() {
  if (left_ == 0) {
    parser_.ValueTaken();
    step_ = Step::kCommand;
    WakeFrom(1);
    return true;
  }
  if (!readable_) return false;
  // The last piece brings the value's line end along, and what is behind it.
  char behind[512];
  const size_t piece = std::min(left_, kPieceBytes);
  iovec pieces[2] = {{room_.data + taken_, piece}, {behind, sizeof behind}};
  const ssize_t bytes = readv(fd_, pieces, piece == left_ ? 2 : 1);
  if (Received(bytes) != Input::kSome) {
    WakeFrom(std::min(left_, kWakeBytes));
    return false;
  }
  if (bytes <= 0) return true;
  const size_t got = std::min<size_t>(bytes, piece);
  crc_ = host_.service().Checksum(room_.data + taken_, got, crc_);
  taken_ += got;
  left_ -= got;
  host_.stats().received_bytes += got;
  in_.assign(behind, bytes - got);
  in_at_ = 0;
  return true;
}

bool RespConnection::Drop() {
  const uint64_t have = std::min<uint64_t>(left_, in_.size() - in_at_);
  in_at_ += have;
  left_ -= have;
  if (left_ == 0) {
    parser_.ValueTaken();
    step_ = Step::kCommand;
    return true;
  }
  if (!readable_) return false;
  static thread_local char nowhere[64 << 10];
  const ssize_t bytes = recv(fd_, nowhere, std::min<uint64_t>(left_, sizeof nowhere), 0);
  if (Received(bytes) != Input::kSome) return false;
  left_ -= std::max<ssize_t>(bytes, 0);
  return true;
}

// --- values in ----------------------------------------------------------------------------------

void RespConnection::DropValue(std::string error) {
  if (command_error_.empty()) command_error_ = std::move(error);
  step_ = Step::kDropping;
}

void RespConnection::StartValue() {
  left_ = parser_.value_bytes();
  taken_ = 0;
  crc_ = 0;
  read_bytes_ = left_ >= kLargeValue ? kSmallRead : kUsualRead;
  if (!authenticated_) {
    DropValue("NOAUTH Authentication required.");
  } else if (parser_.name() == "SET" && parser_.announced() != 3) {
    DropValue(
        "ERR SET takes a key and a value: there is no time to live, and a value is always "
        "replaced");
  } else if (parser_.name() == "MSET" && parser_.announced() % 2 == 0) {
    DropValue("ERR wrong number of arguments for 'mset' command");
  } else if (left_ > host_.options().max_value_bytes) {
    DropValue(absl::StrCat(
        "ERR value is longer than resp.max_value = ", host_.options().max_value_bytes, " bytes"));
  } else if (!command_error_.empty()) {
    step_ = Step::kDropping;
  } else {
    if (host_.options().lmcache) host_.lmcache_sizes().Seen(parser_.args().back(), left_);
    asked_since_us_ = host_.now_us();
    if (spare_.id != 0 && spare_bytes_ == left_) {
      UseRoom(std::exchange(spare_, {}));
      return;
    }
    GiveSpareBack();
    AskForRoom();
  }
}

void RespConnection::AskForRoom() {
  step_ = Step::kAsked;
  host_.Ask(id_, [bytes = left_, host = &host_](RespService& service, RespHost::Reply reply) {
    reply([room = service.Reserve(bytes), host](RespConnection* connection) {
      if (connection != nullptr) {
        connection->GotRoom(room);
      } else if (room.id != 0) {
        host->Tell([id = room.id](RespService& service) { service.Abort(id); });
      }
    });
  });
}

void RespConnection::GotRoom(RespRoom room) {
  if (AskAgain(room.status, room.retry_after_ms)) return;
  if (!room.status.ok()) {
    const char* code = absl::IsResourceExhausted(room.status) ? "OOM " : "ERR ";
    DropValue(absl::StrCat(code, room.status.message()));
    return;
  }
  UseRoom(std::move(room));
}

void RespConnection::UseRoom(RespRoom room) {
  moved_us_ = host_.now_us();
  room_ = std::move(room);
  taken_ = std::min<uint64_t>(left_, in_.size() - in_at_);
  std::memcpy(room_.data, in_.data() + in_at_, taken_);
  crc_ = host_.service().Checksum(room_.data, taken_, crc_);
  host_.stats().received_bytes += taken_;
  in_at_ += taken_;
  left_ -= taken_;
  step_ = Step::kReceiving;
  WakeFrom(std::min(left_, kWakeBytes));
}

// Of a large value not every packet is worth waking up for.
void RespConnection::WakeFrom(uint64_t bytes) {
  const int wanted = static_cast<int>(std::max<uint64_t>(bytes, 1));
  if (wanted == wake_bytes_) return;
  wake_bytes_ = wanted;
  setsockopt(fd_, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof wanted);
}

void RespConnection::EndValue() {
  if (room_.id == 0) return;  // it was dropped
  step_ = Step::kAsked;
  const size_t name_at = parser_.args().size() - 2;  // of the value's own argument, empty, before
  host_.Ask(id_, [id = std::exchange(room_.id, 0), name = parser_.args()[name_at], crc = crc_,
                  bytes = taken_, host = &host_](RespService& service, RespHost::Reply reply) {
    absl::Status status = service.Commit(id, name, crc);
    RespRoom spare;
    if (bytes <= kMostSpareBytes) spare = service.Reserve(bytes);
    reply([status = std::move(status), spare = std::move(spare), bytes,
           host](RespConnection* connection) mutable {
      if (connection == nullptr) {
        if (spare.id != 0) {
          host->Tell([id = spare.id](RespService& service) { service.Abort(id); });
        }
        return;
      }
      connection->step_ = Step::kCommand;
      ++host->stats().sets;
      if (!status.ok()) connection->command_error_ = absl::StrCat("ERR ", status.message());
      connection->GotSpare(std::move(spare), bytes);
    });
  });
}

void RespConnection::GotSpare(RespRoom room, uint64_t bytes) {
  spare_ = std::move(room);
  spare_bytes_ = bytes;
  spare_since_us_ = host_.now_us();
  if (spare_.id != 0 && spare_wake_us_ == 0) WatchSpare();
}

void RespConnection::WatchSpare() {
  const uint64_t now_us = host_.now_us();
  const uint64_t wait_ms =
      kSpareMs - std::min<uint64_t>((now_us - spare_since_us_) / 1000, kSpareMs);
  spare_wake_us_ = now_us + wait_ms * 1000;
  host_.WakeAfter(id_, static_cast<uint32_t>(wait_ms));
}

void RespConnection::GiveSpareBack() {
  if (spare_.id == 0) return;
  host_.Tell([id = std::exchange(spare_.id, 0)](RespService& service) { service.Abort(id); });
}

// --- values out ---------------------------------------------------------------------------------

bool RespConnection::AskAgain(const absl::Status& status, uint32_t after_ms) {
  const uint64_t waited_us = host_.now_us() - asked_since_us_;
  if (!absl::IsResourceExhausted(status) ||
      waited_us >= uint64_t{host_.options().room_timeout_ms} * 1000) {
    return false;
  }
  ++host_.stats().waiting_for_room;
  step_ = Step::kRoom;
  const uint32_t wait_ms = after_ms != 0 ? after_ms : kRetryMs;
  retry_us_ = host_.now_us() + uint64_t{wait_ms} * 1000;
  host_.WakeAfter(id_, wait_ms);
  return true;
}

void RespConnection::Woken() {
  const uint64_t now_us = host_.now_us();
  if (spare_wake_us_ != 0 && now_us >= spare_wake_us_) {
    spare_wake_us_ = 0;
    const bool idle = now_us - spare_since_us_ >= uint64_t{kSpareMs} * 1000;
    if (idle) GiveSpareBack();
    if (spare_.id != 0) WatchSpare();
  }
  if (step_ != Step::kRoom || now_us < retry_us_) return;
  if (keys_.empty()) {
    AskForRoom();
  } else {
    AskForValue(keys_[next_key_]);
  }
}

void RespConnection::AskForValue(std::string key) {
  step_ = Step::kAsked;
  host_.Ask(id_, [key = std::move(key), host = &host_](RespService& service,
                                                       RespHost::Reply reply) mutable {
    service.Acquire(key, [reply = std::move(reply), host](RespValue value) mutable {
      reply([value = std::move(value), host](RespConnection* connection) {
        if (connection != nullptr) {
          connection->GotValue(value);
        } else if (value.lease != 0) {
          host->Tell([lease = value.lease](RespService& service) { service.Release(lease); });
        }
      });
    });
  });
}

void RespConnection::GotValue(RespValue value) {
  if (AskAgain(value.status, value.retry_after_ms)) return;
  const bool damaged = value.status.ok() && value.check && !host_.service().Check(value);
  if (!value.status.ok() || damaged) {
    host_.Tell([lease = value.lease, damaged, key = keys_[next_key_]](RespService& service) {
      if (lease != 0) service.Release(lease);
      if (damaged) service.Remove(key);
    });
    Missed();
    return;
  }
  if (host_.options().lmcache) host_.lmcache_sizes().Seen(keys_[next_key_], value.bytes);
  moved_us_ = host_.now_us();
  value_ = std::move(value);
  value_sent_ = 0;
  sending_ = true;
  RespReply(head_).BulkHeader(value_.bytes);
}

void RespConnection::Missed() {
  ++host_.stats().get_misses;
  if (host_.options().lmcache && !array_) {
    head_ += host_.lmcache_sizes().MissLine(keys_[0]);
  } else {
    RespReply(head_).Nil(protocol_);
  }
  NextValue();
}

void RespConnection::NextValue() {
  ++host_.stats().gets;
  if (++next_key_ < keys_.size()) {
    asked_since_us_ = host_.now_us();
    AskForValue(keys_[next_key_]);
    return;
  }
  keys_.clear();
  step_ = Step::kCommand;
}

void RespConnection::EndSend() {
  sending_ = false;
  host_.Tell([lease = value_.lease](RespService& service) { service.Release(lease); });
}

bool RespConnection::Flush() {
  while (Output()) {
    if (!writable_) return false;
    const uint64_t value_at = std::min(value_sent_, value_.bytes);
    const uint64_t end_at = value_sent_ - value_at;  // of the line end
    iovec pieces[3] = {{head_.data() + head_at_, head_.size() - head_at_},
                       {const_cast<uint8_t*>(value_.data) + value_at, value_.bytes - value_at},
                       {const_cast<char*>(kLineEnd) + end_at, 2 - end_at}};
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = sending_ ? 3 : 1;
    const ssize_t bytes = sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0 && errno == EAGAIN) {
      writable_ = false;
      return false;
    }
    if (bytes <= 0) return Fail();
    Sent(bytes);
    if (budget_ == 0 && Output()) return false;
  }
  return true;
}

bool RespConnection::Fail() {
  gone_ = true;
  return false;
}

void RespConnection::Sent(size_t bytes) {
  moved_us_ = host_.now_us();
  budget_ -= std::min<uint64_t>(budget_, bytes);
  const size_t of_head = std::min(bytes, head_.size() - head_at_);
  head_at_ += of_head;
  if (head_at_ == head_.size()) {
    head_.clear();
    head_at_ = 0;
  }
  if (!sending_) return;
  const uint64_t of_value = bytes - of_head;
  value_sent_ += of_value;
  host_.stats().sent_bytes += of_value;
  if (value_sent_ < value_.bytes + 2) return;
  EndSend();
  NextValue();
}

}  // namespace terrace
