// What exists, and where: the daemon's index of objects. It decides nothing and moves nothing.
// Loop thread.
//
// Memory matters here (256 bytes an object for everything): entries live in a slab and are named
// by 32-bit slots; the two hash sets store slots only and read the key through the slab.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "config/object_key.h"
#include "config/object_layout.h"
#include "kernels/block_array.h"
#include "tiers/memory_tier.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace {

using ObjectId = uint32_t;
inline constexpr ObjectId kNoObject = 0xffffffffu;

enum class EntryState : uint8_t {
  kFree,      // slot unused
  kReserved,  // being written by a client: not visible, but its key is taken
  kHidden,    // being written, to be named when it is complete: not in the index, without a key
  kVisible,   // published
  kDead,      // removed while leased: not in the index, freed with its last lease
};

// A copy in the tenant's arena, which exists from Reserve or from the start of a promotion; or in
// its part of a device's memory (DeviceCopy). One piece of memory with the checksums of its parts
// at the end.
struct MemoryCopy {
  struct Delete {
    void operator()(MemoryCopy* copy) const { ::operator delete(copy); }
  };
  using Ptr = std::unique_ptr<MemoryCopy, Delete>;
  static Ptr New(const Extent& extent, uint32_t layout, uint32_t part_count,
                 uint32_t position = kUnknownPosition);

  Extent extent;
  ObjectKey parent;
  uint32_t layout;    // of the session that stored or first loaded it
  uint32_t position;  // as ReserveItem::position
  uint32_t part_count : 28;
  uint32_t ready : 1;    // every part is there and checked
  uint32_t writing : 1;  // the NVMe tier is reading it: must not move
  uint32_t moving : 1;   // being copied to another extent: this one must not be freed
  uint32_t rising : 1;   // being copied to the device: must not move
  uint16_t depth = 0;  // extents before it in its prefix, as far as known; of an expert, its layer

  absl::Span<uint32_t> part_crcs() { return {reinterpret_cast<uint32_t*>(this + 1), part_count}; }
  absl::Span<const uint32_t> part_crcs() const {
    return {reinterpret_cast<const uint32_t*>(this + 1), part_count};
  }
};
static_assert(std::is_trivially_destructible_v<MemoryCopy>);

struct Entry {
  ObjectKey key;
  uint64_t parent_head = 0;  // ObjectKey::Head64 of the parent; 0 = none
  MemoryCopy::Ptr host;
  std::unique_ptr<GrainFilter[]> grain_filters;  // grain_count - 1 entries
  uint32_t payload_units = 0;                    // of 64 bytes
  uint32_t fingerprint = 0;                      // Catalog::fingerprint()
  uint32_t cost_us = 0;
  RecordId record = kNoRecord;
  uint32_t record_blocks = 0;         // of 4 KiB, that the record takes
  ObjectId next_sibling = kNoObject;  // children of the same parent
  uint32_t lease_count = 0;
  uint16_t token_count = 0;
  uint16_t grain_count = 0;
  uint16_t tenant = 0;  // index into the tenant table
  ObjectKind kind = ObjectKind::kKv;
  EntryState state : 4 = EntryState::kFree;
  bool pinned : 1 = false;
  bool queued : 1 = false;     // waits for write-behind
  bool reused : 1 = false;     // wanted again since it was stored
  bool placed : 1 = false;     // Placement counts it: it is in host memory, on the device, or both
  bool in_device : 1 = false;  // has a DeviceCopy

  uint64_t payload_bytes() const { return uint64_t{payload_units} * kPartAlignment; }
  bool visible() const { return state == EntryState::kVisible; }
};

// Told of objects that become visible, and that cease to be. Calls nothing of the catalog.
class CatalogObserver {
 public:
  virtual ~CatalogObserver() = default;
  virtual void Appeared(const Entry& entry) = 0;
  virtual void Disappeared(const Entry& entry) = 0;
};

class Catalog {
 public:
  Catalog();

  // One observer, of a tenant's objects with these fingerprints; it is told at once of those that
  // are visible by now. Null: no more.
  void Observe(CatalogObserver* observer, uint16_t tenant, std::vector<uint32_t> fingerprints);

  // Makes room for so many objects at once, for when they come all together.
  void Reserve(uint64_t objects);
  // The object is about to be inserted: its places in the indexes move towards the caches.
  void Prefetch(const ObjectKey& key, uint64_t parent_head) const {
    by_key_.prefetch(key);
    first_child_.prefetch(parent_head);
  }

  // kNoObject when absent. Reserved entries are found too: check visible().
  ObjectId Find(const ObjectKey& key) const;
  // The same by ObjectKey::Head64, of which a stranger's key may have the same.
  ObjectId FindByHead(uint64_t key_head) const;
  // A new entry for `key`, in state kReserved, indexed. Requires that the key is absent.
  ObjectId Insert(const ObjectKey& key);
  // A new entry in state kHidden, for EnterIndex.
  ObjectId InsertHidden();
  // From kHidden to kReserved. False, and nothing changes, when the key names another entry.
  bool EnterIndex(ObjectId id, const ObjectKey& key);
  // The same as Insert, but kNoObject when the key is there.
  ObjectId InsertIfAbsent(const ObjectKey& key);
  // Makes the entry findable by its parent and grains. Called when it becomes visible.
  void LinkToParent(ObjectId id);
  // Removes the entry from every index; the slot stays until Free.
  void Unindex(ObjectId id);
  void Free(ObjectId id);

  Entry& at(ObjectId id) { return entries_[id]; }
  const Entry& at(ObjectId id) const { return entries_[id]; }

  // The visible child of `parent` with this fingerprint and tenant that shares the most leading
  // grains with `grains` (by 32-bit filters), or nullopt when none shares one.
  struct Tail {
    ObjectId id;
    uint32_t matched_grains;
  };
  std::optional<Tail> BestTail(const ObjectKey& parent, uint32_t fingerprint, uint16_t tenant,
                               absl::Span<const ObjectKey> grains) const;

  uint32_t InternFingerprint(const Fingerprint& fingerprint);
  // The interned id, or nullopt when no object and no layout has it.
  std::optional<uint32_t> FindFingerprint(const Fingerprint& fingerprint) const;
  const Fingerprint& fingerprint(uint32_t id) const { return fingerprints_[id]; }

  uint64_t visible_count() const { return visible_count_; }
  ObjectId slot_count() const { return static_cast<ObjectId>(entries_.size()); }

 private:
  struct KeyHash {
    using is_transparent = void;
    const Catalog* catalog;
    size_t operator()(ObjectId id) const { return catalog->at(id).key.Head64(); }
    size_t operator()(const ObjectKey& key) const { return key.Head64(); }
    size_t operator()(uint64_t head) const { return head; }
  };
  struct KeyEqual {
    using is_transparent = void;
    const Catalog* catalog;
    bool operator()(ObjectId a, ObjectId b) const { return a == b; }
    bool operator()(ObjectId a, const ObjectKey& b) const { return catalog->at(a).key == b; }
    bool operator()(const ObjectKey& a, ObjectId b) const { return catalog->at(b).key == a; }
    bool operator()(ObjectId a, uint64_t b) const { return catalog->at(a).key.Head64() == b; }
    bool operator()(uint64_t a, ObjectId b) const { return catalog->at(b).key.Head64() == a; }
  };
  // First child of each parent, found by the parent's head.
  struct ParentHash {
    using is_transparent = void;
    const Catalog* catalog;
    size_t operator()(ObjectId id) const { return catalog->at(id).parent_head; }
    size_t operator()(uint64_t head) const { return head; }
  };
  struct ParentEqual {
    using is_transparent = void;
    const Catalog* catalog;
    bool operator()(ObjectId a, ObjectId b) const { return a == b; }
    bool operator()(ObjectId a, uint64_t head) const { return catalog->at(a).parent_head == head; }
    bool operator()(uint64_t head, ObjectId b) const { return catalog->at(b).parent_head == head; }
  };

  bool Observed(const Entry& entry) const;
  ObjectId NewSlot();
  void UnlinkFromParent(ObjectId id);

  kernels::BlockArray<Entry> entries_;
  std::vector<ObjectId> free_slots_;
  uint64_t visible_count_ = 0;
  absl::flat_hash_set<ObjectId, KeyHash, KeyEqual> by_key_;
  absl::flat_hash_set<ObjectId, ParentHash, ParentEqual> first_child_;
  std::vector<Fingerprint> fingerprints_;
  CatalogObserver* observer_ = nullptr;
  uint16_t observed_tenant_ = 0;
  std::vector<uint32_t> observed_fingerprints_;
};

}  // namespace terrace
