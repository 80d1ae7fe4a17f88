#include "client/block_copy.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

// A thread costs some 50 us to start, which is what one copies in 0.5 MiB.
constexpr uint64_t kBytesPerThread = 4 << 20;
constexpr uint32_t kMostThreads = 4;  // memory is the limit beyond

using Pieces = absl::Span<const BlockPiece>;

bool SamePart(const BlockPiece& a, const BlockPiece& b) {
  return a.block == b.block && a.part == b.part;
}

// The leading run of pieces of one part.
size_t RunLength(Pieces pieces) {
  size_t length = 1;
  while (length < pieces.size() && SamePart(pieces[length], pieces.front())) ++length;
  return length;
}

uint64_t Bytes(Pieces pieces) {
  uint64_t bytes = 0;
  for (const BlockPiece& piece : pieces) bytes += piece.bytes;
  return bytes;
}

// What one thread does: whole parts, until its share of the bytes is reached.
Pieces TakeShare(Pieces& rest, uint64_t share) {
  size_t count = 0;
  for (uint64_t bytes = 0; count < rest.size() && bytes < share;) {
    const size_t length = RunLength(rest.subspan(count));
    bytes += Bytes(rest.subspan(count, length));
    count += length;
  }
  const Pieces share_of_one = rest.first(count);
  rest.remove_prefix(count);
  return share_of_one;
}

}  // namespace

absl::Status CopyParts(Pieces pieces, uint32_t threads,
                       absl::FunctionRef<absl::Status(Pieces)> copy) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].address == 0 && pieces[i].bytes != 0) {
      return absl::InvalidArgumentError(absl::StrCat("pieces[", i, "].address: NULL"));
    }
  }
  const uint64_t bytes = Bytes(pieces);
  const uint32_t cores = std::max(std::thread::hardware_concurrency(), 1u);
  const auto useful = static_cast<uint32_t>(std::min<uint64_t>(bytes / kBytesPerThread + 1, 64));
  if (threads == 0) threads = std::min(cores, kMostThreads);
  threads = std::min(threads, useful);

  std::atomic<bool> failed{false};
  std::mutex mutex;  // of `first`
  absl::Status first;
  const auto run = [&](Pieces mine) {
    while (!mine.empty() && !failed.load(std::memory_order_relaxed)) {
      const size_t length = RunLength(mine);
      const absl::Status status = copy(mine.first(length));
      mine.remove_prefix(length);
      if (status.ok()) continue;
      failed = true;
      const std::lock_guard lock(mutex);
      if (first.ok()) first = status;
    }
  };
  std::vector<std::thread> helpers;
  Pieces rest = pieces;
  for (uint32_t i = 1; i < threads; ++i) {
    helpers.emplace_back(run, TakeShare(rest, bytes / threads));
  }
  run(rest);
  for (std::thread& helper : helpers) helper.join();
  return first;
}

absl::Status CheckLength(Pieces of_part, uint64_t part_bytes, bool or_less) {
  uint64_t left = part_bytes;
  bool fits = true;
  for (const BlockPiece& piece : of_part) {  // a sum could wrap around
    fits = fits && piece.bytes <= left;
    if (fits) left -= piece.bytes;
  }
  if (fits && (or_less || left == 0)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pieces: ", Bytes(of_part), " bytes for part ", of_part.front().part,
                   " of block ", of_part.front().block, ", which has ", part_bytes));
}

}  // namespace terrace
