#include "tiers/extent_allocator.h"

#include <bit>
#include <cstdio>
#include <cstdlib>

namespace terrace {

namespace {

// How many runs of the request's own class are looked at, to stay O(1).
constexpr int kOwnClassLooks = 32;

}  // namespace

ExtentAllocator::ExtentAllocator() {
  for (auto& row : heads_) row.fill(kNone);
}

// Classes of fewer than 16 pages hold one size each; above, every power of two is cut in 16.
ExtentAllocator::Class ExtentAllocator::ClassOf(uint32_t pages) {
  if (pages < kSecond) return {0, static_cast<int>(pages)};
  const int log = std::bit_width(pages) - 1;
  return {log - kSecondBits + 1, static_cast<int>(pages >> (log - kSecondBits)) - kSecond};
}

uint32_t ExtentAllocator::NewBlock() {
  if (unused_ == kNone) {
    blocks_.push_back({});
    return blocks_.size() - 1;
  }
  const uint32_t block = unused_;
  unused_ = blocks_[block].next_free;
  return block;
}

void ExtentAllocator::DropBlock(uint32_t block) {
  blocks_[block] = Block{};
  blocks_[block].free = 1;  // so that a second Free of it is caught
  blocks_[block].next_free = unused_;
  unused_ = block;
}

void ExtentAllocator::Link(uint32_t block) {
  Block& b = blocks_[block];
  const Class c = ClassOf(b.pages);
  uint32_t& head = heads_[c.first][c.second];
  b.free = 1;
  b.previous_free = kNone;
  b.next_free = head;
  if (head != kNone) blocks_[head].previous_free = block;
  head = block;
  second_map_[c.first] |= 1u << c.second;
  first_map_ |= 1u << c.first;
}

void ExtentAllocator::Unlink(uint32_t block) {
  Block& b = blocks_[block];
  const Class c = ClassOf(b.pages);
  if (b.previous_free != kNone) {
    blocks_[b.previous_free].next_free = b.next_free;
  } else {
    heads_[c.first][c.second] = b.next_free;
  }
  if (b.next_free != kNone) blocks_[b.next_free].previous_free = b.previous_free;
  if (heads_[c.first][c.second] == kNone) {
    second_map_[c.first] &= ~(1u << c.second);
    if (second_map_[c.first] == 0) first_map_ &= ~(1u << c.first);
  }
  b.free = 0;
}

void ExtentAllocator::Grow(uint64_t bytes) {
  const uint32_t pages = bytes / kPageBytes;
  if (pages == 0) return;
  if (last_ != kNone && blocks_[last_].free) {
    Unlink(last_);
    blocks_[last_].pages += pages;
    Link(last_);
  } else {
    const uint32_t block = NewBlock();
    blocks_[block] = {total_pages_, pages, 0, last_, kNone, kNone, kNone};
    if (last_ != kNone) blocks_[last_].after = block;
    last_ = block;
    Link(block);
  }
  total_pages_ += pages;
}

uint32_t ExtentAllocator::FindFree(uint32_t pages) const {
  // Round up to a class boundary: every run of that class and above is large enough.
  const uint32_t step = pages < kSecond ? 0 : (1u << (std::bit_width(pages) - 1 - kSecondBits)) - 1;
  const Class c = ClassOf(pages + step);
  if (c.first < kFirst) {
    if (const uint32_t seconds = second_map_[c.first] & (~0u << c.second)) {
      return heads_[c.first][std::countr_zero(seconds)];
    }
    const uint32_t firsts = c.first + 1 < 32 ? first_map_ & (~0u << (c.first + 1)) : 0;
    if (firsts != 0) {
      const int first = std::countr_zero(firsts);
      return heads_[first][std::countr_zero(uint32_t{second_map_[first]})];
    }
  }
  // The request's own class may still hold a run that is large enough: worth a look before the
  // caller evicts something.
  const Class own = ClassOf(pages);
  uint32_t run = heads_[own.first][own.second];
  for (int looks = 0; run != kNone && looks < kOwnClassLooks; ++looks) {
    if (blocks_[run].pages >= pages) return run;
    run = blocks_[run].next_free;
  }
  return kNone;
}

std::optional<ExtentAllocator::Allocation> ExtentAllocator::Allocate(uint64_t bytes) {
  const uint64_t wanted = bytes == 0 ? 1 : (bytes + kPageBytes - 1) / kPageBytes;
  if (wanted > total_pages_ - used_pages_) return std::nullopt;
  const uint32_t pages = static_cast<uint32_t>(wanted);
  const uint32_t block = FindFree(pages);
  if (block == kNone) return std::nullopt;
  Unlink(block);
  if (blocks_[block].pages > pages) {
    const uint32_t rest = NewBlock();
    Block& b = blocks_[block];
    blocks_[rest] = {b.page + pages, b.pages - pages, 0, block, b.after, kNone, kNone};
    if (b.after != kNone) {
      blocks_[b.after].before = rest;
    } else {
      last_ = rest;
    }
    b.after = rest;
    b.pages = pages;
    Link(rest);
  }
  used_pages_ += pages;
  ++allocations_;
  return Allocation{uint64_t{blocks_[block].page} * kPageBytes, block};
}

void ExtentAllocator::Free(uint32_t block) {
  if (block >= blocks_.size() || blocks_[block].free) {
    std::fprintf(stderr, "ExtentAllocator: block %u is not allocated\n", block);
    std::abort();
  }
  used_pages_ -= blocks_[block].pages;
  --allocations_;
  const uint32_t after = blocks_[block].after;
  if (after != kNone && blocks_[after].free) {
    Unlink(after);
    blocks_[block].pages += blocks_[after].pages;
    blocks_[block].after = blocks_[after].after;
    if (blocks_[after].after != kNone) blocks_[blocks_[after].after].before = block;
    if (last_ == after) last_ = block;
    DropBlock(after);
  }
  const uint32_t before = blocks_[block].before;
  if (before != kNone && blocks_[before].free) {
    Unlink(before);
    blocks_[before].pages += blocks_[block].pages;
    blocks_[before].after = blocks_[block].after;
    if (blocks_[block].after != kNone) blocks_[blocks_[block].after].before = before;
    if (last_ == block) last_ = before;
    DropBlock(block);
    block = before;
  }
  Link(block);
}

uint64_t ExtentAllocator::largest_free_bytes() const {
  if (first_map_ == 0) return 0;
  const int first = std::bit_width(first_map_) - 1;
  const int second = std::bit_width(uint32_t{second_map_[first]}) - 1;
  uint32_t pages = 0;
  for (uint32_t b = heads_[first][second]; b != kNone; b = blocks_[b].next_free) {
    pages = pages > blocks_[b].pages ? pages : blocks_[b].pages;
  }
  return uint64_t{pages} * kPageBytes;
}

}  // namespace terrace
