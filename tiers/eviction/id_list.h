// A doubly linked list threaded through the entries of an IdTable, oldest first. Several lists may
// share a table; an id is in one of them at most. Every call is O(1).
#pragma once

#include <cstdint>

#include "tiers/eviction/id_table.h"

namespace terrace {

inline constexpr uint32_t kEndOfList = 0xffffffffu;

// Base of an entry that can be in a list. Ids are below kEndOfList - 1.
struct IdLink {
  static constexpr uint32_t kUnlinked = kEndOfList - 1;
  uint32_t older = kUnlinked, newer = kUnlinked;
  bool placed() const { return older != kUnlinked; }
};

template <class Entry>
class IdList {
 public:
  explicit IdList(IdTable<Entry>* entries) : entries_(entries) {}

  bool empty() const { return oldest_ == kEndOfList; }
  uint32_t oldest() const { return oldest_; }  // kEndOfList when empty
  uint32_t newest() const { return newest_; }
  // kEndOfList after the newest. Requires that the id is in the list.
  uint32_t NewerThan(uint32_t id) const { return (*entries_)[id].newer; }

  // Requires an entry that is in no list.
  void Append(uint32_t id) {
    Entry& entry = (*entries_)[id];
    entry.older = newest_;
    entry.newer = kEndOfList;
    (newest_ != kEndOfList ? (*entries_)[newest_].newer : oldest_) = id;
    newest_ = id;
  }

  // Requires that the id is in this list.
  void Remove(uint32_t id) {
    Entry& entry = (*entries_)[id];
    (entry.older != kEndOfList ? (*entries_)[entry.older].newer : oldest_) = entry.newer;
    (entry.newer != kEndOfList ? (*entries_)[entry.newer].older : newest_) = entry.older;
    entry.older = entry.newer = IdLink::kUnlinked;
  }

  void MoveToNewest(uint32_t id) {
    if (id == newest_) return;
    Remove(id);
    Append(id);
  }

 private:
  IdTable<Entry>* entries_;
  uint32_t oldest_ = kEndOfList, newest_ = kEndOfList;
};

}  // namespace terrace
