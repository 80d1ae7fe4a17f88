#include "transport/message_buffer.h"

#include <kj/debug.h>

#include <algorithm>
#include <cstring>

namespace terrace {
namespace {

constexpr size_t kInitialBytes = 16 << 10;  // a lookup of 256 keys and its header
constexpr size_t kMinSpaceBytes = 4 << 10;
constexpr size_t kKeepBytes = 1 << 20;  // a larger buffer is given back once it is empty
constexpr uint32_t kMaxSegments = 512;  // as the library's own reader

}  // namespace

kj::ArrayPtr<kj::byte> MessageBuffer::Space() {
  if (begin_ == end_) begin_ = end_ = 0;
  const size_t capacity = words_.size() * sizeof(capnp::word);
  if (capacity == 0 || (begin_ == end_ && capacity > kKeepBytes)) {
    words_ = kj::heapArray<capnp::word>(kInitialBytes / sizeof(capnp::word));
  } else if (capacity - end_ < kMinSpaceBytes) {
    // Doubling, and only as bytes arrive: a header that announces 64 MiB costs nothing by itself.
    const size_t used = end_ - begin_;
    const size_t wanted = used * 2 > capacity ? capacity * 2 : capacity;
    auto grown = kj::heapArray<capnp::word>(wanted / sizeof(capnp::word));
    std::memcpy(grown.begin(), words_.asBytes().begin() + begin_, used);
    words_ = kj::mv(grown);
    begin_ = 0;
    end_ = used;
  }
  return words_.asBytes().slice(end_, words_.size() * sizeof(capnp::word));
}

kj::Maybe<kj::Own<capnp::MessageReader>> MessageBuffer::Pop(const capnp::ReaderOptions& options) {
  const size_t available = (end_ - begin_) / sizeof(capnp::word);
  if (available == 0) return nullptr;
  auto prefix =
      words_.slice(begin_ / sizeof(capnp::word), begin_ / sizeof(capnp::word) + available);
  uint32_t segments;
  std::memcpy(&segments, prefix.begin(), sizeof segments);
  KJ_REQUIRE(segments < kMaxSegments, "message has too many segments");
  const size_t needed = capnp::expectedSizeInWordsFromPrefix(prefix);
  KJ_REQUIRE(needed <= max_words_ + kMaxSegments / 2 + 1, "message is larger than the limit",
             needed * sizeof(capnp::word), max_words_ * sizeof(capnp::word));
  if (available < needed) return nullptr;

  auto words = kj::heapArray<capnp::word>(needed);
  std::memcpy(words.begin(), prefix.begin(), needed * sizeof(capnp::word));
  begin_ += needed * sizeof(capnp::word);
  popped_ += needed * sizeof(capnp::word);
  auto bytes = words.asPtr();
  kj::Own<capnp::MessageReader> reader =
      kj::heap<capnp::FlatArrayMessageReader>(bytes, options).attach(kj::mv(words));
  return kj::mv(reader);
}

}  // namespace terrace
