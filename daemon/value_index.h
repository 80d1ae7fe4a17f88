// Which values of the RESP front-end there are, for its own thread: the loop's catalog says what
// comes and goes, the other thread asks without a hop to the loop. Exact: what is found is visible
// at that moment, and what is not found is not.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "config/object_key.h"
#include "daemon/catalog.h"

namespace terrace {

class ValueIndex final : public CatalogObserver {
 public:
  // Loop thread.
  void Appeared(const Entry& entry) override;
  void Disappeared(const Entry& entry) override;
  // While one lives, changes are kept back: they happen at once when it ends. So nobody sees a
  // key without a value while one takes the place of another. Loop thread; not one in another.
  class AtOnce {
   public:
    explicit AtOnce(ValueIndex& index) : index_(index) { index_.keeping_back_ = true; }
    ~AtOnce() { index_.Apply(); }
    AtOnce(const AtOnce&) = delete;
    AtOnce& operator=(const AtOnce&) = delete;

   private:
    ValueIndex& index_;
  };

  // The payload's bytes; nullopt: no such value. Any thread.
  std::optional<uint64_t> Find(const ObjectKey& key) const;

 private:
  struct Hash {
    size_t operator()(const ObjectKey& key) const { return key.Head64(); }
  };
  struct Change {
    ObjectKey key;
    uint32_t payload_units;  // of 64 bytes; 0: gone
  };
  void Note(const Change& change);
  void Apply();

  // Loop thread.
  bool keeping_back_ = false;
  std::vector<Change> changes_;

  mutable std::mutex mutex_;
  absl::flat_hash_map<ObjectKey, uint32_t, Hash> payload_units_;
};

}  // namespace terrace
