// Out-of-band extent allocator: two-level segregated fit (Masmano et al., "TLSF: a New Dynamic
// Memory Allocator for Real-Time Systems", ECRTS 2004) over a range of offsets it never touches,
// because the memory behind it is writable by clients. O(1) allocate and free with immediate
// coalescing, in units of 4 KiB; 24 bytes a block. Not thread-safe: loop thread.
//
// The range has a limit, which moves: nothing is handed out above it, what was stays until it is
// freed, and what becomes free there is reported rather than kept for use.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

namespace terrace {

class ExtentAllocator {
 public:
  struct Allocation {
    uint64_t offset;
    uint32_t block;  // names the allocation for Free
  };
  struct Range {
    uint64_t offset;
    uint64_t bytes;
  };

  static constexpr uint64_t kMaxBytes = uint64_t{4096} << 30;  // 4 TiB

  ExtentAllocator();
  // Raises the limit by `bytes` (a 4 KiB multiple). Requires that it stays within kMaxBytes. Visits
  // the blocks between the old limit and the new one.
  void Grow(uint64_t bytes);
  // Lowers the limit to `bytes` (a 4 KiB multiple above 0), visiting `max_blocks` blocks at most:
  // false when it is not there yet and must be called again.
  bool Lower(uint64_t bytes, uint32_t max_blocks);
  // What has become free above the limit since the last call, widened to whole huge pages as far as
  // what is around it is free, too: a huge page that is given back in parts may stay. Stale as far
  // as Grow has been called since.
  std::vector<Range> TakeEmptied();
  // A free run of at least `bytes` (rounded up to 4 KiB), or nullopt. A good fit: from the smallest
  // class whose every run is large enough. It never fails while a run of 17/16 of `bytes` is free;
  // shorter runs are found when they are among the first few of their class.
  std::optional<Allocation> Allocate(uint64_t bytes);
  // Requires a block returned by Allocate and not yet freed (checked).
  void Free(uint32_t block);

  uint64_t limit_bytes() const { return uint64_t{limit_page_} * kPageBytes; }
  // Allocated, below the limit and above; of it, above.
  uint64_t used_above_bytes() const { return uint64_t{used_above_pages_} * kPageBytes; }
  uint64_t used_bytes() const { return uint64_t{used_pages_} * kPageBytes; }
  uint64_t largest_free_bytes() const;  // walks one class: for status and tests
  uint64_t allocation_count() const { return allocations_; }

 private:
  static constexpr uint64_t kPageBytes = 4096;
  static constexpr uint32_t kNone = 0xffffffffu;
  static constexpr int kSecondBits = 4;  // 16 classes between two powers of two
  static constexpr int kSecond = 1 << kSecondBits;
  static constexpr int kFirst = 32 - kSecondBits + 1;

  struct Block {
    uint32_t page;
    uint32_t pages : 31;
    uint32_t free : 1;
    uint32_t before, after;  // neighbours in the range
    // List of its class, unless it is above the limit; next_free also links unused slots.
    uint32_t previous_free, next_free;
  };
  struct Class {
    int first, second;
  };

  static Class ClassOf(uint32_t pages);
  uint32_t FindFree(uint32_t pages) const;
  void Link(uint32_t block);
  void Unlink(uint32_t block);
  uint32_t NewBlock();
  void DropBlock(uint32_t block);
  // The block ends after `pages`; what is behind becomes a block of its own, returned, in no list.
  uint32_t SplitAfter(uint32_t block, uint32_t pages);
  // Takes the block behind it, which is in no list, into the block.
  void Absorb(uint32_t block, uint32_t after);
  // The block, in no list, is free: joins its free neighbours on the same side of the limit, of
  // which those below it are in lists. Does not cross the limit itself. Returns the block it is
  // part of.
  uint32_t Settle(uint32_t block);
  // Says that `pages` from `page` on, of a free block, have become free.
  void Emptied(uint32_t block, uint32_t page, uint32_t pages);
  bool above(uint32_t block) const { return blocks_[block].page >= limit_page_; }
  // Pages of the block at or above `page`.
  uint32_t PagesFrom(uint32_t block, uint32_t page) const;

  std::deque<Block> blocks_;  // grows without moving or doubling
  uint32_t unused_ = kNone;   // free slots of blocks_
  uint32_t last_ = kNone;     // the block at the end of the range
  uint32_t edge_ = kNone;     // the last block that begins below the limit
  std::array<std::array<uint32_t, kSecond>, kFirst> heads_;
  std::array<uint16_t, kFirst> second_map_{};
  uint32_t first_map_ = 0;
  uint32_t total_pages_ = 0;  // the highest that the limit has been
  uint32_t limit_page_ = 0;
  uint32_t used_pages_ = 0, used_above_pages_ = 0;
  uint64_t allocations_ = 0;
  std::vector<Range> emptied_;
};

}  // namespace terrace
