#include "daemon/catalog.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <new>
#include <utility>

namespace terrace {

namespace {

// Leading grains of `query` that the entry holds. The entry's last grain is its own key.
uint32_t SharedGrains(const Entry& entry, absl::Span<const ObjectKey> query) {
  const uint32_t limit = std::min<uint32_t>(entry.grain_count, query.size());
  for (uint32_t i = 0; i < limit; ++i) {
    const bool last = i + 1 == entry.grain_count;
    if (last ? entry.key != query[i] : entry.grain_filters[i] != FilterOf(query[i])) return i;
  }
  return limit;
}

}  // namespace

MemoryCopy::Ptr MemoryCopy::New(const Extent& extent, uint32_t layout, uint32_t part_count,
                                uint32_t position) {
  void* memory = ::operator new(sizeof(MemoryCopy) + part_count * sizeof(uint32_t));
  Ptr copy(new (memory) MemoryCopy{extent, {}, layout, position, part_count, 0, 0, 0, 0, 0});
  std::fill_n(copy->part_crcs().begin(), part_count, 0);
  return copy;
}

Catalog::Catalog()
    : by_key_(0, KeyHash{this}, KeyEqual{this}),
      first_child_(0, ParentHash{this}, ParentEqual{this}) {}

ObjectId Catalog::Find(const ObjectKey& key) const {
  auto it = by_key_.find(key);
  return it == by_key_.end() ? kNoObject : *it;
}

ObjectId Catalog::FindByHead(uint64_t key_head) const {
  auto it = by_key_.find(key_head);
  return it == by_key_.end() ? kNoObject : *it;
}

void Catalog::Reserve(uint64_t objects) {
  by_key_.reserve(objects);
  first_child_.reserve(objects);
}

ObjectId Catalog::Insert(const ObjectKey& key) {
  const ObjectId id = InsertIfAbsent(key);
  assert(id != kNoObject);
  return id;
}

ObjectId Catalog::NewSlot() {
  if (!free_slots_.empty()) {
    const ObjectId id = free_slots_.back();
    free_slots_.pop_back();
    return id;
  }
  entries_.Append();
  return slot_count() - 1;
}

ObjectId Catalog::InsertIfAbsent(const ObjectKey& key) {
  ObjectId id = kNoObject;
  by_key_.lazy_emplace(key, [&](const auto& construct) {
    id = NewSlot();
    Entry& entry = at(id);
    entry.key = key;
    entry.state = EntryState::kReserved;
    construct(id);
  });
  return id;
}

ObjectId Catalog::InsertHidden() {
  const ObjectId id = NewSlot();
  at(id).state = EntryState::kHidden;
  return id;
}

bool Catalog::EnterIndex(ObjectId id, const ObjectKey& key) {
  if (Find(key) != kNoObject) return false;
  Entry& entry = at(id);
  entry.key = key;
  by_key_.insert(id);
  entry.state = EntryState::kReserved;
  return true;
}

bool Catalog::Observed(const Entry& entry) const {
  return observer_ != nullptr && entry.tenant == observed_tenant_ &&
         std::find(observed_fingerprints_.begin(), observed_fingerprints_.end(),
                   entry.fingerprint) != observed_fingerprints_.end();
}

void Catalog::Observe(CatalogObserver* observer, uint16_t tenant,
                      std::vector<uint32_t> fingerprints) {
  observer_ = observer;
  observed_tenant_ = tenant;
  observed_fingerprints_ = std::move(fingerprints);
  if (observer == nullptr) return;
  for (ObjectId id = 0; id < slot_count(); ++id) {
    if (at(id).visible() && Observed(at(id))) observer_->Appeared(at(id));
  }
}

void Catalog::LinkToParent(ObjectId id) {
  Entry& entry = at(id);
  entry.state = EntryState::kVisible;
  ++visible_count_;
  if (Observed(entry)) observer_->Appeared(entry);
  if (entry.parent_head == 0 || entry.grain_count == 0) return;
  bool inserted = false;
  const auto first = first_child_.lazy_emplace(entry.parent_head, [&](const auto& construct) {
    construct(id);
    inserted = true;
  });
  if (inserted) return;
  // Second place in the list: the set's own element stays as it is.
  entry.next_sibling = at(*first).next_sibling;
  at(*first).next_sibling = id;
}

void Catalog::UnlinkFromParent(ObjectId id) {
  Entry& entry = at(id);
  if (entry.parent_head == 0 || entry.grain_count == 0) return;
  auto it = first_child_.find(entry.parent_head);
  if (it == first_child_.end()) return;
  if (*it == id) {
    first_child_.erase(it);
    if (entry.next_sibling != kNoObject) first_child_.insert(entry.next_sibling);
  } else {
    ObjectId previous = *it;
    while (at(previous).next_sibling != id) previous = at(previous).next_sibling;
    at(previous).next_sibling = entry.next_sibling;
  }
  entry.next_sibling = kNoObject;
}

void Catalog::Unindex(ObjectId id) {
  Entry& entry = at(id);
  if (entry.state == EntryState::kVisible) {
    UnlinkFromParent(id);
    --visible_count_;
    if (Observed(entry)) observer_->Disappeared(entry);
  }
  const bool indexed = entry.state != EntryState::kDead && entry.state != EntryState::kHidden;
  if (indexed) by_key_.erase(by_key_.find(entry.key));
  entry.state = EntryState::kDead;
}

void Catalog::Free(ObjectId id) {
  Entry& entry = at(id);
  if (entry.state != EntryState::kDead) Unindex(id);
  entry = Entry{};
  free_slots_.push_back(id);
}

std::optional<Catalog::Tail> Catalog::BestTail(const ObjectKey& parent, uint32_t fingerprint,
                                               uint16_t tenant,
                                               absl::Span<const ObjectKey> grains) const {
  auto it = first_child_.find(parent.Head64());
  if (it == first_child_.end()) return std::nullopt;
  std::optional<Tail> best;
  for (ObjectId id = *it; id != kNoObject; id = at(id).next_sibling) {
    const Entry& entry = at(id);
    if (entry.fingerprint != fingerprint || entry.tenant != tenant) continue;
    const uint32_t shared = SharedGrains(entry, grains);
    if (shared > 0 && (!best || shared > best->matched_grains)) best = Tail{id, shared};
  }
  return best;
}

uint32_t Catalog::InternFingerprint(const Fingerprint& fingerprint) {
  if (auto found = FindFingerprint(fingerprint)) return *found;
  fingerprints_.push_back(fingerprint);
  return fingerprints_.size() - 1;
}

std::optional<uint32_t> Catalog::FindFingerprint(const Fingerprint& fingerprint) const {
  // A node serves a handful of models: a scan beats a map.
  for (uint32_t i = 0; i < fingerprints_.size(); ++i) {
    if (fingerprints_[i] == fingerprint) return i;
  }
  return std::nullopt;
}

}  // namespace terrace
