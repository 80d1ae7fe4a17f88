#include "transport/server_stream.h"

#include <capnp/rpc.capnp.h>
#include <kj/debug.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace terrace {
namespace {

constexpr size_t kMaxIov = 1024;  // IOV_MAX

kj::Exception Disconnected(int error) {
  return KJ_EXCEPTION(DISCONNECTED, kj::str("client socket: ", strerror(error)));
}

}  // namespace

ServerStream::ServerStream(kj::UnixEventPort& port, int fd, uint64_t max_message_bytes)
    : fd_(fd),
      observer_(port, fd, kj::UnixEventPort::FdObserver::OBSERVE_READ_WRITE),
      buffer_(max_message_bytes),
      ended_promise_(nullptr) {
  auto ended = kj::newPromiseAndFulfiller<void>();
  ended_ = kj::mv(ended.fulfiller);
  ended_promise_ = kj::mv(ended.promise);
}

kj::Promise<kj::Maybe<capnp::MessageReaderAndFds>> ServerStream::tryReadMessage(
    kj::ArrayPtr<kj::AutoCloseFd>, capnp::ReaderOptions options, kj::ArrayPtr<capnp::word>) {
  return Read(options);
}

kj::Promise<kj::Maybe<capnp::MessageReaderAndFds>> ServerStream::Read(
    capnp::ReaderOptions options) {
  if (write_blocked_) {
    auto resume = kj::newPromiseAndFulfiller<void>();
    reader_resume_ = kj::mv(resume.fulfiller);
    return resume.promise.then([this, options] { return Read(options); });
  }
  for (;;) {
    KJ_IF_MAYBE (message, buffer_.Pop(options)) {
      Account(**message);
      return kj::Maybe<capnp::MessageReaderAndFds>(
          capnp::MessageReaderAndFds{kj::mv(*message), nullptr});
    }
    auto space = buffer_.Space();
    const ssize_t n = read(fd_, space.begin(), space.size());
    if (n > 0) {
      buffer_.Added(n);
    } else if (n == 0) {
      ended_->fulfill();
      return kj::Maybe<capnp::MessageReaderAndFds>(nullptr);
    } else if (errno == EAGAIN) {
      return observer_.whenBecomesReadable().then([this, options] { return Read(options); });
    } else if (errno != EINTR) {
      ended_->fulfill();
      return Disconnected(errno);
    }
  }
}

// The library keeps an answer until the peer finishes it; its flow limit does not count those.
void ServerStream::Account(capnp::MessageReader& message) {
  switch (message.getRoot<capnp::rpc::Message>().which()) {
    case capnp::rpc::Message::BOOTSTRAP:
    case capnp::rpc::Message::CALL:
      KJ_REQUIRE(++unfinished_calls_ <= kMaxUnfinishedCalls, "too many unfinished calls");
      break;
    case capnp::rpc::Message::FINISH:
      --unfinished_calls_;
      break;
    default:
      break;
  }
}

kj::Promise<void> ServerStream::writeMessage(
    kj::ArrayPtr<const int> fds, kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>> segments) {
  table_.assign((segments.size() + 2) & ~size_t{1}, 0);
  table_[0] = static_cast<uint32_t>(segments.size() - 1);
  pending_.clear();
  pending_index_ = 0;
  pending_.push_back({table_.data(), table_.size() * sizeof(uint32_t)});
  for (size_t i = 0; i < segments.size(); ++i) {
    table_[i + 1] = static_cast<uint32_t>(segments[i].size());
    pending_.push_back(
        {const_cast<capnp::word*>(segments[i].begin()), segments[i].size() * sizeof(capnp::word)});
  }
  if (fds.size() == 0) return ContinueWrite();

  // Descriptors go with the first byte, in a message of its own so that a partial write of the
  // rest never repeats them. They are valid only now, so this one write must not wait.
  union {
    char bytes[CMSG_SPACE(8 * sizeof(int))];
    cmsghdr align;
  } control{};
  KJ_REQUIRE(fds.size() <= 8, "too many descriptors in one message", fds.size());
  msghdr header{};
  header.msg_iov = pending_.data();
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = SCM_RIGHTS;
  cmsg->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(cmsg), fds.begin(), fds.size() * sizeof(int));
  ssize_t n;
  do {
    n = sendmsg(fd_, &header, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n != static_cast<ssize_t>(pending_[0].iov_len)) {
    ended_->fulfill();
    return Disconnected(n < 0 ? errno : EIO);
  }
  pending_index_ = 1;
  return ContinueWrite();
}

kj::Promise<void> ServerStream::ContinueWrite() {
  while (pending_index_ < pending_.size()) {
    msghdr header{};
    header.msg_iov = pending_.data() + pending_index_;
    header.msg_iovlen = std::min(pending_.size() - pending_index_, kMaxIov);
    ssize_t n = sendmsg(fd_, &header, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      write_blocked_ = true;
      return observer_.whenBecomesWritable().then([this] { return ContinueWrite(); });
    }
    if (n < 0) {
      const int error = errno;
      ended_->fulfill();
      FinishWrite();
      return Disconnected(error);
    }
    while (pending_index_ < pending_.size() &&
           static_cast<size_t>(n) >= pending_[pending_index_].iov_len) {
      n -= pending_[pending_index_++].iov_len;
    }
    if (n > 0) {
      auto& piece = pending_[pending_index_];
      piece.iov_base = static_cast<char*>(piece.iov_base) + n;
      piece.iov_len -= n;
    }
  }
  FinishWrite();
  return kj::READY_NOW;
}

void ServerStream::FinishWrite() {
  write_blocked_ = false;
  if (reader_resume_.get() != nullptr) {
    reader_resume_->fulfill();
    reader_resume_ = nullptr;
  }
}

kj::Promise<void> ServerStream::writeMessages(
    kj::ArrayPtr<kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>>> messages) {
  if (messages.size() == 0) return kj::READY_NOW;
  return writeMessage(nullptr, messages[0]).then([this, messages]() mutable {
    return writeMessages(messages.slice(1, messages.size()));
  });
}

kj::Promise<void> ServerStream::end() {
  shutdown(fd_, SHUT_WR);
  return kj::READY_NOW;
}

}  // namespace terrace
