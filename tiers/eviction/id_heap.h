// A priority queue of ids with the least key first that knows where each id is: a 4-ary heap, whose
// nodes lie in an IdTable, so that growing copies nothing. Several heaps may share the table of
// entries; an id is in one of them at most.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "tiers/eviction/id_table.h"

namespace terrace {

// Entries derive from IdPosition.
template <class Entry, class Key>
class IdHeap {
 public:
  explicit IdHeap(IdTable<Entry>* entries) : entries_(entries) {}

  uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // Requires that it is not empty.
  uint32_t top() const { return nodes_[0].id; }
  Key top_key() const { return nodes_[0].key; }
  // Requires that the id is in this heap.
  Key KeyOf(uint32_t id) const { return nodes_[(*entries_)[id].position].key; }

  // O(log n). Requires an entry that is in no heap.
  void Push(uint32_t id, Key key) {
    nodes_.At(size_) = {key, id};
    Up(size_++);
  }

  // O(log n). Requires that the id is in this heap.
  void Update(uint32_t id, Key key) {
    const uint32_t position = (*entries_)[id].position;
    nodes_[position].key = key;
    Down(Up(position));
  }

  // O(log n). Requires that the id is in this heap.
  void Remove(uint32_t id) {
    const uint32_t position = (*entries_)[id].position;
    (*entries_)[id].position = IdPosition::kNone;
    if (position == --size_) return;
    nodes_[position] = nodes_[size_];
    Down(Up(position));
  }

  // The first in order that `accept` accepts. O(1) for the top; after r refused ones O(r log r).
  // Nothing moves.
  std::optional<uint32_t> First(absl::FunctionRef<bool(uint32_t)> accept) const {
    if (size_ == 0) return std::nullopt;
    if (accept(nodes_[0].id)) return nodes_[0].id;
    const auto later = [this](uint32_t a, uint32_t b) { return nodes_[b].key < nodes_[a].key; };
    std::vector<uint32_t> frontier = {0};  // positions whose parents were refused, the least first
    while (!frontier.empty()) {
      std::pop_heap(frontier.begin(), frontier.end(), later);
      const uint32_t position = frontier.back();
      frontier.pop_back();
      if (position != 0 && accept(nodes_[position].id)) return nodes_[position].id;
      const uint32_t end = std::min(kArity * position + kArity + 1, size_);
      for (uint32_t child = kArity * position + 1; child < end; ++child) {
        frontier.push_back(child);
        std::push_heap(frontier.begin(), frontier.end(), later);
      }
    }
    return std::nullopt;
  }

 private:
  static constexpr uint32_t kArity = 4;
  struct Node {
    Key key;
    uint32_t id;
  };

  void Place(uint32_t position, const Node& node) {
    nodes_[position] = node;
    (*entries_)[node.id].position = position;
  }

  uint32_t Up(uint32_t position) {
    const Node node = nodes_[position];
    while (position > 0) {
      const uint32_t parent = (position - 1) / kArity;
      if (!(node.key < nodes_[parent].key)) break;
      Place(position, nodes_[parent]);
      position = parent;
    }
    Place(position, node);
    return position;
  }

  void Down(uint32_t position) {
    const Node node = nodes_[position];
    for (;;) {
      const uint32_t first = kArity * position + 1;
      if (first >= size_) break;
      uint32_t least = first;
      for (uint32_t child = first + 1; child < std::min(first + kArity, size_); ++child) {
        if (nodes_[child].key < nodes_[least].key) least = child;
      }
      if (!(nodes_[least].key < node.key)) break;
      Place(position, nodes_[least]);
      position = least;
    }
    Place(position, node);
  }

  IdTable<Entry>* entries_;
  IdTable<Node> nodes_;
  uint32_t size_ = 0;
};

}  // namespace terrace
