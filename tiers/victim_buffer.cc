#include "tiers/victim_buffer.h"

#include <algorithm>
#include <utility>

namespace terrace {

bool VictimBuffer::Put(const Entry& entry, std::vector<Entry>* dropped) {
  if (!MakeRoom(entry.bytes, BucketOf(entry.due), dropped)) return false;
  Insert(entry);
  return true;
}

void VictimBuffer::Reschedule(uint64_t key_head, uint64_t due) {
  const auto place = places_.find(key_head);
  if (place == places_.end()) return;
  if (place->second.bucket == BucketOf(due)) {
    buckets_.at(place->second.bucket).entries[place->second.index].due = due;
    return;
  }
  Entry entry = Remove(key_head);
  entry.due = due;
  Insert(entry);
}

std::optional<VictimBuffer::Entry> VictimBuffer::Take(uint64_t key_head) {
  if (!places_.contains(key_head)) return std::nullopt;
  return Remove(key_head);
}

std::optional<uint64_t> VictimBuffer::NextMove(double per_byte, uint64_t latency) const {
  if (buckets_.empty()) return std::nullopt;
  const Bucket& first = buckets_.begin()->second;
  const uint64_t move =
      latency + static_cast<uint64_t>(per_byte * static_cast<double>(first.bytes));
  return first.begin - std::min(first.begin, move);
}

std::optional<VictimBuffer::Bucket> VictimBuffer::TakeDue(uint64_t now, double per_byte,
                                                          uint64_t latency) {
  const auto move = NextMove(per_byte, latency);
  if (!move || *move > now) return std::nullopt;
  const auto first = buckets_.begin();
  Bucket bucket = std::move(first->second);
  buckets_.erase(first);
  held_bytes_ -= bucket.bytes;
  for (const Entry& entry : bucket.entries) places_.erase(entry.key_head);
  std::sort(bucket.entries.begin(), bucket.entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.due, a.key_head) < std::pair(b.due, b.key_head);
  });
  return bucket;
}

void VictimBuffer::SetCapacity(uint64_t bytes, std::vector<Entry>* dropped) {
  options_.capacity_bytes = bytes;
  MakeRoom(0, std::nullopt, dropped);
}

void VictimBuffer::Insert(const Entry& entry) {
  const uint64_t number = BucketOf(entry.due);
  Bucket& bucket = buckets_[number];
  bucket.begin = number * options_.bucket_span;
  bucket.bytes += entry.bytes;
  held_bytes_ += entry.bytes;
  places_[entry.key_head] = {number, bucket.entries.size()};
  bucket.entries.push_back(entry);
}

VictimBuffer::Entry VictimBuffer::Remove(uint64_t key_head) {
  const auto found = places_.find(key_head);
  const Place place = found->second;
  places_.erase(found);
  const auto bucket = buckets_.find(place.bucket);
  std::vector<Entry>& entries = bucket->second.entries;
  const Entry entry = entries[place.index];
  if (place.index + 1 != entries.size()) {
    entries[place.index] = entries.back();
    places_.at(entries[place.index].key_head).index = place.index;
  }
  entries.pop_back();
  bucket->second.bytes -= entry.bytes;
  held_bytes_ -= entry.bytes;
  if (entries.empty()) buckets_.erase(bucket);
  return entry;
}

bool VictimBuffer::MakeRoom(uint64_t bytes, std::optional<uint64_t> bucket,
                            std::vector<Entry>* dropped) {
  if (bytes > options_.capacity_bytes) return false;
  const uint64_t allowed = options_.capacity_bytes - bytes;
  if (held_bytes_ <= allowed) return true;
  // Whether enough lies behind is known before anything is dropped.
  uint64_t behind = 0;
  for (auto it = buckets_.rbegin(); it != buckets_.rend() && held_bytes_ - behind > allowed; ++it) {
    if (bucket && it->first <= *bucket) return false;
    behind += it->second.bytes;
  }
  while (held_bytes_ > allowed) {
    dropped->push_back(Remove(std::prev(buckets_.end())->second.entries.back().key_head));
  }
  return true;
}

}  // namespace terrace
