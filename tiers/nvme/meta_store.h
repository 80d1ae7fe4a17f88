// The index on disk: RocksDB, metadata only, never payload. One row a sealed segment, one note a
// record that was pinned or erased since. Kept small in memory; every call blocks. Reads from any
// thread, writes from one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/segment_format.h"
#include "tiers/nvme/system.h"

namespace rocksdb {
class DB;
class WriteBatch;
}  // namespace rocksdb

namespace terrace::nvme {

class MetaStore {
 public:
  // Creates the database if absent. DataLoss when it is there but cannot be trusted.
  static absl::StatusOr<std::unique_ptr<MetaStore>> Open(System& system,
                                                         const std::string& directory);
  // For tools that change nothing.
  static absl::StatusOr<std::unique_ptr<MetaStore>> OpenReadOnly(System& system,
                                                                 const std::string& directory);
  ~MetaStore();

  // The store that this index is complete for; absent in one that is new or half rebuilt. DataLoss
  // when it cannot be read.
  absl::StatusOr<std::optional<StoreId>> store_id() const;
  // Visits all rows whose key begins with `prefix`, in order of keys. DataLoss when a block of the
  // database does not check.
  using VisitRow = absl::FunctionRef<void(std::string_view key, std::string_view value)>;
  absl::Status ForEachRow(char prefix, VisitRow visit) const;

  // Of all rows together.
  uint64_t ApproximateBytes() const;

  // Writes are durable on return when they say so. ResourceExhausted when the disk is full.
  //
  // Everything a sealed segment holds, in one batch; durable.
  absl::Status PutSegment(uint32_t segment_id, const std::string& row);
  // The segment's row and notes; not durable: rows of an earlier generation are stale by
  // themselves.
  absl::Status DeleteSegment(uint32_t segment_id);
  // What is not so, or no longer: rows of these segments or all of them, what is noted of these,
  // and these notes. Durable: their ids and places may be given again.
  struct Stale {
    bool every_row = false;
    std::vector<uint32_t> rows, noted;
    std::vector<Place> notes;
  };
  absl::Status Clean(const Stale& stale);
  // The same note of all these places, or of none.
  absl::Status PutNotes(const std::vector<Place>& places, Note note, bool durable);
  // Marks the index as complete for this store: see store_id(). Durable.
  absl::Status PutStoreId(const StoreId& store_id);

 private:
  MetaStore(System& system, std::unique_ptr<rocksdb::DB> db);
  static absl::StatusOr<std::unique_ptr<MetaStore>> Open(System& system,
                                                         const std::string& directory,
                                                         bool read_only);
  absl::Status Write(rocksdb::WriteBatch& batch, bool durable);

  System& system_;
  std::unique_ptr<rocksdb::DB> db_;
  bool failed_ = false;  // the last write did
};

}  // namespace terrace::nvme
