// The client's end of a connection: a Cap'n Proto message stream over a blocking Unix socket, and
// the KJ event port that drives it. Private to transport/.
//
// The library's own UnixEventPort belongs to the thread that made it and needs three or four system
// calls a message. Here the loop may be entered by any thread (one at a time, under the
// connection's mutex): nothing is thread-affine, writes are gathered until the loop has nothing
// else to do, and waiting is one blocking receive, so a call costs one send and one receive.
#pragma once

#include <capnp/serialize-async.h>
#include <kj/async.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "transport/message_buffer.h"

namespace terrace {

class ClientStream final : public capnp::MessageStream, public kj::EventPort {
 public:
  // `fd` is borrowed, connected and blocking; its timeouts are set here.
  ClientStream(int fd, uint32_t timeout_ms, uint64_t max_message_bytes);

  // Starts the time of one call.
  void StartCall();
  // Why the connection ended, when this side of the stream knows; OK otherwise.
  const absl::Status& end_status() const { return end_status_; }
  // Sends what has been gathered.
  void Flush();

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

  bool wait() override;  // sends, then blocks until something was received or the stream ended
  bool poll() override;  // sends only: replies are read by the call that waits for them

 private:
  using Received = kj::Maybe<capnp::MessageReaderAndFds>;

  void Receive();
  void Deliver();
  void End(absl::Status why);
  Received Pop();
  void CheckAbort(capnp::MessageReader& message);

  const int fd_;
  const uint32_t timeout_ms_;
  uint64_t call_start_ms_ = 0;
  MessageBuffer buffer_;
  std::vector<uint8_t> outgoing_;
  bool ended_ = false;
  bool write_failed_ = false;
  absl::Status end_status_;

  // Descriptors belong to the message that holds the last byte received with them: the kernel ends
  // a receive there.
  std::vector<kj::AutoCloseFd> fds_;
  uint64_t fds_position_ = 0;

  // The read in progress, if any.
  kj::Own<kj::PromiseFulfiller<Received>> reader_;
  kj::ArrayPtr<kj::AutoCloseFd> reader_fds_;
  capnp::ReaderOptions reader_options_;
};

}  // namespace terrace
