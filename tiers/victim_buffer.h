// What the upper tier evicted and the future wants back: which objects lie in the part of host
// memory that is set aside for them, in buckets by predicted time of use. A bucket moves up in one
// bulk copy before its time. After the Preemptive Victim-buffer Prefetcher of LSM-GNN (Park et al.,
// arXiv:2407.15264), whose rows are the batches to come; here a bucket is a span of time, as wide
// as is worth one copy, and capacity is shared by all.
//
// What does not fit, or has no predicted use, takes the normal path down. The furthest bucket gives
// way first: it has most time to come back otherwise.
//
// Metadata only: the owner copies the bytes, and frees what is dropped. One thread; no call blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"

namespace terrace {

struct VictimBufferOptions {
  uint64_t capacity_bytes = 0;  // 0: nothing is ever held
  uint64_t bucket_span = 1;     // of predicted time, on the owner's clock; above 0
};

class VictimBuffer {
 public:
  struct Entry {
    uint64_t key_head = 0;
    uint64_t bytes = 0;
    uint64_t due = 0;
  };
  // A bucket on its way up.
  struct Bucket {
    uint64_t begin = 0;  // of its span
    uint64_t bytes = 0;
    std::vector<Entry> entries;
  };

  explicit VictimBuffer(const VictimBufferOptions& options) : options_(options) {}

  // The object was evicted and is wanted at `due`. What has to give way is appended to `dropped`.
  // False when it finds no room: all that is held is wanted no later. Requires that it is not held.
  // O(log buckets).
  bool Put(const Entry& entry, std::vector<Entry>* dropped);
  // The object is predicted for another time. Ignored when not held. O(log buckets).
  void Reschedule(uint64_t key_head, uint64_t due);
  // The object was demanded, or is wanted by nobody: no longer held. nullopt when it was not.
  std::optional<Entry> Take(uint64_t key_head);
  // The earliest bucket, if moving it must begin now to be done by the begin of its span: it is
  // emptied, its entries by time of use. `per_byte` and `latency`: of the link up, in clock units.
  std::optional<Bucket> TakeDue(uint64_t now, double per_byte, uint64_t latency);
  // When TakeDue has something to give next; nullopt while nothing is held.
  std::optional<uint64_t> NextMove(double per_byte, uint64_t latency) const;
  // Less room from now on: appends what has to go to `dropped`, the furthest first.
  void SetCapacity(uint64_t bytes, std::vector<Entry>* dropped);

  bool Holds(uint64_t key_head) const { return places_.contains(key_head); }
  uint64_t held_bytes() const { return held_bytes_; }
  size_t held() const { return places_.size(); }

 private:
  struct Place {
    uint64_t bucket;
    size_t index;  // among its entries
  };

  uint64_t BucketOf(uint64_t due) const { return due / options_.bucket_span; }
  void Insert(const Entry& entry);
  Entry Remove(uint64_t key_head);
  // Drops what is furthest away until `bytes` fit, in buckets behind `bucket` only.
  bool MakeRoom(uint64_t bytes, std::optional<uint64_t> bucket, std::vector<Entry>* dropped);

  VictimBufferOptions options_;
  uint64_t held_bytes_ = 0;
  absl::btree_map<uint64_t, Bucket> buckets_;
  absl::flat_hash_map<uint64_t, Place> places_;  // by key head
};

}  // namespace terrace
