// A set of ids without order that can be drawn from at random. Several sets may share the table of
// entries; an id is in one of them at most. O(1) but where said.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <utility>

#include "absl/functional/function_ref.h"
#include "tiers/eviction/id_table.h"

namespace terrace {

// Entries derive from IdPosition.
template <class Entry>
class IdSet {
 public:
  explicit IdSet(IdTable<Entry>* entries) : entries_(entries) {}

  uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // In no order; position < size().
  uint32_t operator[](uint32_t position) const { return ids_[position]; }

  // Requires an entry that is in no set.
  void Add(uint32_t id) {
    ids_.At(size_);
    Place(size_++, id);
  }

  // Requires that the id is in this set.
  void Remove(uint32_t id) {
    const uint32_t position = (*entries_)[id].position;
    (*entries_)[id].position = IdPosition::kNone;
    if (position != --size_) Place(position, ids_[size_]);
  }

  // One of those that `accept` accepts, each as likely. O(1 + refused).
  std::optional<uint32_t> Draw(std::mt19937_64& random, absl::FunctionRef<bool(uint32_t)> accept) {
    for (uint32_t left = size_; left > 0; --left) {
      const uint32_t position = std::uniform_int_distribution<uint32_t>(0, left - 1)(random);
      const uint32_t id = ids_[position];
      if (accept(id)) return id;
      Place(position, ids_[left - 1]);  // the refused are drawn once
      Place(left - 1, id);
    }
    return std::nullopt;
  }

  // Takes all that the other set has. O(the smaller set). Requires one table of entries.
  void Merge(IdSet& other) {
    if (other.size_ > size_) std::swap(*this, other);
    for (; other.size_ > 0; --other.size_) {
      ids_.At(size_);
      Place(size_++, other.ids_[other.size_ - 1]);
    }
  }

 private:
  void Place(uint32_t position, uint32_t id) {
    ids_[position] = id;
    (*entries_)[id].position = position;
  }

  IdTable<Entry>* entries_;
  IdTable<uint32_t> ids_;
  uint32_t size_ = 0;
};

}  // namespace terrace
