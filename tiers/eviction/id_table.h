// An array indexed by dense ids that grows in chunks: nothing moves when it grows, no call copies
// what is there, and unused ranges cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace terrace {

template <class T>
class IdTable {
 public:
  // Requires that At was called with it before.
  T& operator[](uint32_t id) { return chunks_[id / kChunk][id % kChunk]; }
  const T& operator[](uint32_t id) const { return chunks_[id / kChunk][id % kChunk]; }

  // The entry of the id; a new one is a T{}.
  T& At(uint32_t id) {
    const size_t chunk = id / kChunk;
    if (chunk >= chunks_.size()) chunks_.resize(chunk + 1);
    if (chunks_[chunk] == nullptr) chunks_[chunk] = std::make_unique<T[]>(kChunk);
    return chunks_[chunk][id % kChunk];
  }

  // Null where At was never called in the id's neighbourhood.
  T* Find(uint32_t id) {
    const size_t chunk = id / kChunk;
    if (chunk >= chunks_.size() || chunks_[chunk] == nullptr) return nullptr;
    return &chunks_[chunk][id % kChunk];
  }

 private:
  static constexpr size_t kChunk = 4096;
  std::vector<std::unique_ptr<T[]>> chunks_;
};

// Base of an entry whose place in a container of ids (IdHeap, IdSet) is kept with it.
struct IdPosition {
  static constexpr uint32_t kNone = 0xffffffffu;
  uint32_t position = kNone;
  bool placed() const { return position != kNone; }
};

// Whether the id is in a container, of entries that are in one while they are tracked.
template <class Entry>
bool Placed(IdTable<Entry>& entries, uint32_t id) {
  const Entry* entry = entries.Find(id);
  return entry != nullptr && entry->placed();
}

}  // namespace terrace
