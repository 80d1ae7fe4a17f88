// The daemon's end of a connection as a Cap'n Proto message stream over a non-blocking Unix socket.
// Private to transport/; loop thread.
#pragma once

#include <capnp/serialize-async.h>
#include <kj/async-unix.h>
#include <sys/uio.h>

#include <vector>

#include "transport/message_buffer.h"

namespace terrace {

// Bounds what one client can make the daemon hold:
// - while a reply cannot be written nothing is read, so unread replies do not pile up;
// - a peer that leaves more than kMaxUnfinishedCalls answers unfinished is cut off;
// - descriptors sent by the peer are dropped by the kernel (plain reads), never installed.
class ServerStream final : public capnp::MessageStream {
 public:
  static constexpr int kMaxUnfinishedCalls = 64;

  // `fd` is borrowed and non-blocking.
  ServerStream(kj::UnixEventPort& port, int fd, uint64_t max_message_bytes);

  // Resolves as soon as the peer is gone or the stream is unusable.
  kj::Promise<void> WhenEnded() { return kj::mv(ended_promise_); }  // once

  using capnp::MessageStream::tryReadMessage;
  using capnp::MessageStream::writeMessage;
  using capnp::MessageStream::writeMessages;
  kj::Promise<kj::Maybe<capnp::MessageReaderAndFds>> tryReadMessage(
      kj::ArrayPtr<kj::AutoCloseFd> fd_space, capnp::ReaderOptions options,
      kj::ArrayPtr<capnp::word> scratch) override;
  kj::Promise<void> writeMessage(
      kj::ArrayPtr<const int> fds,
      kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>> segments) override;
  kj::Promise<void> writeMessages(
      kj::ArrayPtr<kj::ArrayPtr<const kj::ArrayPtr<const capnp::word>>> messages) override;
  kj::Maybe<int> getSendBufferSize() override { return nullptr; }
  kj::Promise<void> end() override;

 private:
  kj::Promise<kj::Maybe<capnp::MessageReaderAndFds>> Read(capnp::ReaderOptions options);
  void Account(capnp::MessageReader& message);
  kj::Promise<void> ContinueWrite();
  void FinishWrite();

  const int fd_;
  kj::UnixEventPort::FdObserver observer_;
  MessageBuffer buffer_;
  int unfinished_calls_ = 0;

  std::vector<iovec> pending_;  // of the write in progress; borrowed from its message
  size_t pending_index_ = 0;
  std::vector<uint32_t> table_;
  bool write_blocked_ = false;
  kj::Own<kj::PromiseFulfiller<void>> reader_resume_;  // a read that waits for the write

  kj::Own<kj::PromiseFulfiller<void>> ended_;
  kj::Promise<void> ended_promise_;
};

}  // namespace terrace
