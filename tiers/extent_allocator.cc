#include "tiers/extent_allocator.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace terrace {

namespace {

// How many runs of the request's own class are looked at, to stay O(1).
constexpr int kOwnClassLooks = 32;
constexpr uint32_t kHugePages = 512;  // in a huge page

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

uint32_t ExtentAllocator::SplitAfter(uint32_t block, uint32_t pages) {
  const uint32_t rest = NewBlock();
  Block& b = blocks_[block];
  blocks_[rest] = {b.page + pages, b.pages - pages, b.free, block, b.after, kNone, kNone};
  if (b.after != kNone) {
    blocks_[b.after].before = rest;
  } else {
    last_ = rest;
  }
  b.after = rest;
  b.pages = pages;
  if (edge_ == block && !above(rest)) edge_ = rest;
  return rest;
}

void ExtentAllocator::Absorb(uint32_t block, uint32_t after) {
  Block& b = blocks_[block];
  b.pages += blocks_[after].pages;
  b.after = blocks_[after].after;
  if (b.after != kNone) {
    blocks_[b.after].before = block;
  } else {
    last_ = block;
  }
  if (edge_ == after) edge_ = block;
  DropBlock(after);
}

uint32_t ExtentAllocator::Settle(uint32_t block) {
  const bool is_above = above(block);
  blocks_[block].free = 1;
  const uint32_t after = blocks_[block].after;
  if (after != kNone && blocks_[after].free && above(after) == is_above) {
    if (!is_above) Unlink(after);
    Absorb(block, after);
  }
  const uint32_t before = blocks_[block].before;
  if (before != kNone && blocks_[before].free && above(before) == is_above) {
    if (!is_above) Unlink(before);
    Absorb(before, block);
    block = before;
  }
  blocks_[block].free = 1;  // also when Unlink took it out of its list
  if (!is_above) Link(block);
  return block;
}

void ExtentAllocator::Emptied(uint32_t block, uint32_t page, uint32_t pages) {
  const Block& b = blocks_[block];
  const uint32_t begin = std::max(b.page, page / kHugePages * kHugePages);
  const uint64_t last = (uint64_t{page} + pages + kHugePages - 1) / kHugePages * kHugePages;
  const uint64_t end = std::min(uint64_t{b.page} + b.pages, last);
  emptied_.push_back({uint64_t{begin} * kPageBytes, (end - begin) * kPageBytes});
}

uint32_t ExtentAllocator::PagesFrom(uint32_t block, uint32_t page) const {
  const uint32_t begin = std::max(blocks_[block].page, page);
  const uint32_t end = blocks_[block].page + blocks_[block].pages;
  return end > begin ? end - begin : 0;
}

void ExtentAllocator::Grow(uint64_t bytes) {
  const uint32_t pages = bytes / kPageBytes;
  if (pages == 0) return;
  const uint32_t limit = limit_page_ + pages;
  if (limit > total_pages_) {
    const uint32_t added = NewBlock();
    blocks_[added] = {total_pages_, limit - total_pages_, 1, last_, kNone, kNone, kNone};
    if (last_ != kNone) blocks_[last_].after = added;
    const uint32_t before = std::exchange(last_, added);
    total_pages_ = limit;
    // What is free below the limit joins it further down.
    if (before != kNone && blocks_[before].free && above(before)) Absorb(before, added);
  }
  uint32_t block = edge_ == kNone ? 0 : blocks_[edge_].after;
  if (edge_ != kNone && !blocks_[edge_].free) {
    used_above_pages_ -= PagesFrom(edge_, limit_page_) - PagesFrom(edge_, limit);
  }
  limit_page_ = limit;
  while (block != kNone && !above(block)) {
    edge_ = block;
    if (blocks_[block].free) {
      if (PagesFrom(block, limit) > 0) SplitAfter(block, limit - blocks_[block].page);
      Settle(block);
      block = edge_;
    } else {
      used_above_pages_ -= blocks_[block].pages - PagesFrom(block, limit);
    }
    block = blocks_[block].after;
  }
}

bool ExtentAllocator::Lower(uint64_t bytes, uint32_t max_blocks) {
  const uint32_t goal = bytes / kPageBytes;
  while (limit_page_ > goal) {
    if (max_blocks-- == 0) return false;
    uint32_t block = edge_;
    const uint32_t limit = std::max(goal, blocks_[block].page);
    if (!blocks_[block].free) {
      used_above_pages_ += PagesFrom(block, limit) - PagesFrom(block, limit_page_);
      limit_page_ = limit;
      if (above(block)) edge_ = blocks_[block].before;
      continue;
    }
    Unlink(block);
    blocks_[block].free = 1;
    const uint32_t emptied = PagesFrom(block, limit);
    limit_page_ = limit;
    if (!above(block)) {
      const uint32_t rest = SplitAfter(block, limit - blocks_[block].page);
      Link(block);
      block = rest;
    } else {
      edge_ = blocks_[block].before;
    }
    Emptied(Settle(block), limit, emptied);
  }
  return true;
}

std::vector<ExtentAllocator::Range> ExtentAllocator::TakeEmptied() {
  return std::exchange(emptied_, {});
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
  if (wanted > limit_page_) return std::nullopt;
  const uint32_t pages = static_cast<uint32_t>(wanted);
  const uint32_t block = FindFree(pages);
  if (block == kNone) return std::nullopt;
  Unlink(block);
  if (blocks_[block].pages > pages) Link(SplitAfter(block, pages));
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
  if (const uint32_t over = PagesFrom(block, limit_page_); over > 0) {
    used_above_pages_ -= over;
    const uint32_t first = blocks_[block].page + blocks_[block].pages - over;
    if (above(block)) {
      Emptied(Settle(block), first, over);
      return;
    }
    Emptied(Settle(SplitAfter(block, blocks_[block].pages - over)), first, over);
  }
  Settle(block);
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
