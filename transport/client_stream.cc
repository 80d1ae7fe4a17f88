#include "transport/client_stream.h"

#include <capnp/rpc.capnp.h>
#include <kj/debug.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

constexpr size_t kMaxFds = 8;
constexpr size_t kKeepOutgoingBytes = 1 << 20;
constexpr std::chrono::microseconds kPatience{200};

uint64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

// An answer is tens of microseconds away, while a core that sleeps until then takes a hundred to
// come back: looks for it for a while before it blocks. Does not yield: whom Linux 6.18 takes for
// generous, it lets wait for milliseconds where cores are busy.
ssize_t ReceiveSoon(int fd, msghdr& header) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  do {
    const ssize_t n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n >= 0 || errno != EAGAIN) return n;
  } while (std::chrono::steady_clock::now() < end);
  return recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
}

}  // namespace

ClientStream::ClientStream(int fd, uint32_t timeout_ms, uint64_t max_message_bytes)
    : fd_(fd), timeout_ms_(std::max(timeout_ms, 1u)), buffer_(max_message_bytes) {
  timeval timeout{};
  timeout.tv_sec = timeout_ms_ / 1000;
  timeout.tv_usec = timeout_ms_ % 1000 * 1000;
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  StartCall();
}

void ClientStream::StartCall() { call_start_ms_ = NowMs(); }

kj::Promise<void> ClientStream::writeMessage(
    kj::ArrayPtr<const int>, kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>> segments) {
  const size_t table_words = segments.size() / 2 + 1;
  size_t bytes = table_words * sizeof(capnp::word);
  for (auto& segment : segments) bytes += segment.size() * sizeof(capnp::word);
  const size_t start = outgoing_.size();
  outgoing_.resize(start + bytes);
  uint8_t* out = outgoing_.data() + start;
  const uint32_t last = static_cast<uint32_t>(segments.size() - 1);
  std::memset(out, 0, table_words * sizeof(capnp::word));
  std::memcpy(out, &last, sizeof last);
  for (size_t i = 0; i < segments.size(); ++i) {
    const uint32_t words = static_cast<uint32_t>(segments[i].size());
    std::memcpy(out + sizeof words * (i + 1), &words, sizeof words);
  }
  out += table_words * sizeof(capnp::word);
  for (auto& segment : segments) {
    std::memcpy(out, segment.begin(), segment.size() * sizeof(capnp::word));
    out += segment.size() * sizeof(capnp::word);
  }
  return kj::READY_NOW;
}

kj::Promise<void> ClientStream::writeMessages(
    kj::ArrayPtr<kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>>> messages) {
  for (auto& segments : messages) {
    auto ready = writeMessage(nullptr, segments);
    (void)ready;
  }
  return kj::READY_NOW;
}

void ClientStream::Flush() {
  size_t sent = 0;
  while (sent < outgoing_.size() && !write_failed_ && !ended_) {
    const ssize_t n = send(fd_, outgoing_.data() + sent, outgoing_.size() - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += n;
    } else if (n < 0 && errno == EAGAIN) {
      End(absl::UnavailableError(
          absl::StrCat("terraced did not take a call within ", timeout_ms_, " ms")));
    } else if (n < 0 && errno != EINTR) {
      // The peer closed, perhaps after telling why: Receive() finds its last words or the end.
      write_failed_ = true;
    }
  }
  outgoing_.clear();
  if (outgoing_.capacity() > kKeepOutgoingBytes) outgoing_.shrink_to_fit();
}

kj::Promise<kj::Maybe<capnp::MessageReaderAndFds>> ClientStream::tryReadMessage(
    kj::ArrayPtr<kj::AutoCloseFd> fd_space, capnp::ReaderOptions options,
    kj::ArrayPtr<capnp::word>) {
  reader_fds_ = fd_space;
  reader_options_ = options;
  auto message = Pop();
  if (message != nullptr) return kj::mv(message);
  if (ended_) return Received(nullptr);
  auto paf = kj::newPromiseAndFulfiller<Received>();
  reader_ = kj::mv(paf.fulfiller);
  return kj::mv(paf.promise);
}

ClientStream::Received ClientStream::Pop() {
  const uint64_t before = buffer_.popped();
  KJ_IF_MAYBE (message, buffer_.Pop(reader_options_)) {
    CheckAbort(**message);
    size_t count = 0;
    if (!fds_.empty() && fds_position_ >= before && fds_position_ < buffer_.popped()) {
      count = std::min(fds_.size(), reader_fds_.size());
      for (size_t i = 0; i < count; ++i) reader_fds_[i] = kj::mv(fds_[i]);
      fds_.clear();
    }
    return capnp::MessageReaderAndFds{kj::mv(*message), reader_fds_.slice(0, count)};
  }
  return nullptr;
}

// The library turns every abort into "disconnected"; the reason decides our status.
void ClientStream::CheckAbort(capnp::MessageReader& message) {
  auto root = message.getRoot<capnp::rpc::Message>();
  if (!root.isAbort()) return;
  const auto abort = root.getAbort();
  const std::string reason = abort.getReason().cStr();
  end_status_ =
      abort.getType() == capnp::rpc::Exception::Type::OVERLOADED
          ? absl::ResourceExhaustedError(reason)
          : absl::UnavailableError(absl::StrCat("terraced ended the connection: ", reason));
}

bool ClientStream::wait() {
  Flush();
  if (!ended_) Receive();
  Deliver();
  return false;
}

bool ClientStream::poll() {
  Flush();
  return false;
}

void ClientStream::Receive() {
  // It may be this thread that was kept from a core, with the answer here long since.
  const bool late = NowMs() - call_start_ms_ >= timeout_ms_;
  auto space = buffer_.Space();
  iovec piece{space.begin(), space.size()};
  union {
    char bytes[CMSG_SPACE(kMaxFds * sizeof(int))];
    cmsghdr align;
  } control;
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof control.bytes;
  const ssize_t n =
      late ? recvmsg(fd_, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) : ReceiveSoon(fd_, header);
  if (n < 0) {
    if (errno == EINTR) return;
    if (errno == EAGAIN) {
      return End(absl::UnavailableError(
          absl::StrCat("no answer from terraced within ", timeout_ms_, " ms")));
    }
    return End(absl::UnavailableError(absl::StrCat("terraced socket: ", strerror(errno))));
  }
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      fds_.emplace_back(fd);
    }
    fds_position_ = buffer_.received() + n - 1;
  }
  if (n == 0) return End(absl::UnavailableError("terraced closed the connection"));
  buffer_.Added(n);
}

void ClientStream::Deliver() {
  if (reader_.get() == nullptr) return;
  KJ_IF_MAYBE (exception, kj::runCatchingExceptions([&] {
                 auto message = Pop();
                 if (message != nullptr) {
                   auto reader = kj::mv(reader_);
                   reader->fulfill(kj::mv(message));
                 } else if (ended_) {
                   auto reader = kj::mv(reader_);
                   reader->fulfill(nullptr);
                 }
               })) {
    End(absl::UnavailableError(
        absl::StrCat("terraced sent garbage: ", exception->getDescription().cStr())));
    auto reader = kj::mv(reader_);
    reader->reject(kj::mv(*exception));
  }
}

void ClientStream::End(absl::Status why) {
  if (!ended_ && end_status_.ok()) end_status_ = std::move(why);
  ended_ = true;
}

kj::Promise<void> ClientStream::end() {
  shutdown(fd_, SHUT_WR);
  return kj::READY_NOW;
}

}  // namespace terrace
