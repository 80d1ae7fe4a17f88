// Cuts a byte stream into Cap'n Proto messages. One read of the socket usually brings a whole
// message (or several), where the library's own stream reads header and body apart: that saves two
// system calls a message on each side. Private to transport/; one thread at a time.
#pragma once

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/array.h>
#include <kj/common.h>

#include <cstdint>

namespace terrace {

class MessageBuffer {
 public:
  // Messages of more than `max_message_bytes` are refused by Pop().
  explicit MessageBuffer(uint64_t max_message_bytes) : max_words_(max_message_bytes / 8) {}

  // Where to receive: never empty.
  kj::ArrayPtr<kj::byte> Space();
  void Added(size_t bytes) { end_ += bytes; }

  // The next complete message, null when bytes are missing. The reader owns its bytes. Throws a
  // kj::Exception when the framing is not acceptable: the stream is then unusable.
  kj::Maybe<kj::Own<capnp::MessageReader>> Pop(const capnp::ReaderOptions& options);

  // Stream positions, in bytes from the start: of what was received, and of what was popped.
  uint64_t received() const { return popped_ + (end_ - begin_); }
  uint64_t popped() const { return popped_; }

 private:
  const uint64_t max_words_;
  kj::Array<capnp::word> words_;
  size_t begin_ = 0, end_ = 0;  // bytes; begin_ is a multiple of 8
  uint64_t popped_ = 0;
};

}  // namespace terrace
