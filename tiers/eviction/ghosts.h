// What policies remember of objects that left: a queue, oldest first, of the 64-bit heads of their
// keys, with their sizes and a value each. The owner bounds it by dropping the oldest. Two objects
// with one head share a ghost, which costs a wrong guess. Calls are O(1), amortised over growth.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

#include "tiers/eviction/id_list.h"
#include "tiers/eviction/id_table.h"

namespace terrace {

template <class Value>
class Ghosts {
 public:
  Ghosts() : buckets_(kLeastBuckets, kEndOfList), order_(&slots_) {}
  Ghosts(const Ghosts&) = delete;
  Ghosts& operator=(const Ghosts&) = delete;

  uint32_t size() const { return size_; }
  uint64_t bytes() const { return bytes_; }  // of the objects

  // The newest ghost. Head 0 means an object without history: nothing is remembered.
  void Add(uint64_t head, uint64_t bytes, const Value& value) {
    if (head == 0) return;
    Take(head);
    if (size_ == buckets_.size()) Grow();
    const uint32_t slot = NewSlot();
    Slot& ghost = slots_[slot];
    ghost.head = head;
    ghost.bytes = bytes;
    ghost.value = value;
    uint32_t& bucket = buckets_[BucketOf(head)];
    ghost.next = bucket;
    bucket = slot;
    order_.Append(slot);
    ++size_;
    bytes_ += bytes;
  }

  // Its value, and it is forgotten. nullopt when it is not remembered.
  std::optional<Value> Take(uint64_t head) {
    uint32_t* link = &buckets_[BucketOf(head)];
    while (*link != kEndOfList && slots_[*link].head != head) link = &slots_[*link].next;
    if (*link == kEndOfList) return std::nullopt;
    const uint32_t slot = *link;
    Slot& ghost = slots_[slot];
    *link = ghost.next;
    order_.Remove(slot);
    --size_;
    bytes_ -= ghost.bytes;
    ghost.next = free_;
    free_ = slot;
    return ghost.value;
  }

  // Requires that it is not empty.
  void DropOldest() { Take(slots_[order_.oldest()].head); }
  void TrimTo(uint32_t size) {
    while (size_ > size) DropOldest();
  }

 private:
  static constexpr size_t kLeastBuckets = 64;
  struct Slot : IdLink {
    uint32_t next = kEndOfList;  // in its bucket, or among the free
    [[no_unique_address]] Value value{};
    uint64_t head = 0;
    uint64_t bytes = 0;
  };

  // Heads come from a hash, or, in a replay, are small numbers.
  size_t BucketOf(uint64_t head) const { return head * 0x9e3779b97f4a7c15u >> shift_; }

  uint32_t NewSlot() {
    if (free_ == kEndOfList) {
      slots_.At(used_);
      return used_++;
    }
    const uint32_t slot = free_;
    free_ = slots_[slot].next;
    return slot;
  }

  void Grow() {
    buckets_.assign(2 * buckets_.size(), kEndOfList);
    --shift_;
    for (uint32_t slot = order_.oldest(); slot != kEndOfList; slot = order_.NewerThan(slot)) {
      uint32_t& bucket = buckets_[BucketOf(slots_[slot].head)];
      slots_[slot].next = bucket;
      bucket = slot;
    }
  }

  std::vector<uint32_t> buckets_;  // a power of two of them
  int shift_ = 64 - std::countr_zero(kLeastBuckets);
  IdTable<Slot> slots_;
  IdList<Slot> order_;
  uint32_t used_ = 0, free_ = kEndOfList, size_ = 0;
  uint64_t bytes_ = 0;
};

struct NoValue {};  // of ghosts that are only remembered to have been

// How many a policy keeps that counts them: of half as many objects as it tracks, and always 65,536
// (about 3 MiB), so that a cache of a few percent of a model's experts knows the past of all.
inline uint32_t MostGhosts(uint32_t tracked) { return std::max(uint32_t{65536}, tracked / 2); }

}  // namespace terrace
