// Out-of-band extent allocator: two-level segregated fit (Masmano et al., "TLSF: a New Dynamic
// Memory Allocator for Real-Time Systems", ECRTS 2004) over a range of offsets it never touches,
// because the memory behind it is writable by clients. O(1) allocate and free with immediate
// coalescing, in units of 4 KiB; 24 bytes a block. Not thread-safe: loop thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>

namespace terrace {

class ExtentAllocator {
 public:
  struct Allocation {
    uint64_t offset;
    uint32_t block;  // names the allocation for Free
  };

  static constexpr uint64_t kMaxBytes = uint64_t{4096} << 30;  // 4 TiB

  ExtentAllocator();
  // Appends `bytes` (a 4 KiB multiple) of free range at the end. Requires that the whole range
  // stays within kMaxBytes.
  void Grow(uint64_t bytes);
  // A free run of at least `bytes` (rounded up to 4 KiB), or nullopt. A good fit: from the smallest
  // class whose every run is large enough. It never fails while a run of 17/16 of `bytes` is free;
  // shorter runs are found when they are among the first few of their class.
  std::optional<Allocation> Allocate(uint64_t bytes);
  // Requires a block returned by Allocate and not yet freed (checked).
  void Free(uint32_t block);

  uint64_t size_bytes() const { return uint64_t{total_pages_} * kPageBytes; }  // used and free
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
    uint32_t before, after;             // neighbours in the range
    uint32_t previous_free, next_free;  // list of its class; next_free also links unused slots
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

  std::deque<Block> blocks_;  // grows without moving or doubling
  uint32_t unused_ = kNone;   // free slots of blocks_
  uint32_t last_ = kNone;     // the block at the end of the range
  std::array<std::array<uint32_t, kSecond>, kFirst> heads_;
  std::array<uint16_t, kFirst> second_map_{};
  uint32_t first_map_ = 0;
  uint32_t total_pages_ = 0, used_pages_ = 0;
  uint64_t allocations_ = 0;
};

}  // namespace terrace
