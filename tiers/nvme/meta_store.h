// The index of durable records: RocksDB, metadata only, never payload. Kept small in memory; every
// call blocks. Reads from any thread, writes from one.
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
#include "tiers/nvme/record.h"

namespace rocksdb {
class DB;
class WriteBatch;
}  // namespace rocksdb

namespace terrace::nvme {

// Changes that become visible together.
class MetaBatch {
 public:
  MetaBatch();
  MetaBatch(MetaBatch&& other) noexcept;
  MetaBatch& operator=(MetaBatch&& other) noexcept;
  ~MetaBatch();
  void Put(const RowKey& key, const std::string& value);
  void Delete(const RowKey& key);
  void DeleteRaw(std::string_view key);  // of a row that may not decode
  void DeleteSegment(uint32_t segment_id);
  // Marks the index as complete for this store: see MetaStore::store_id.
  void PutStoreId(const StoreId& store_id);

 private:
  friend class MetaStore;
  std::unique_ptr<rocksdb::WriteBatch> batch_;
};

class MetaStore {
 public:
  // Creates the database if absent. DataLoss when it is there but cannot be trusted.
  static absl::StatusOr<std::unique_ptr<MetaStore>> Open(const std::string& directory);
  ~MetaStore();

  // The store that this index is complete for; absent in one that is new or half rebuilt. DataLoss
  // when it cannot be read.
  absl::StatusOr<std::optional<StoreId>> store_id() const;
  // Visits all rows in order of their keys. DataLoss when a block of the database does not check.
  absl::Status ForEachRow(
      absl::FunctionRef<void(std::string_view key, std::string_view value)> visit) const;
  // The value of one row. NotFound when there is none, DataLoss when it cannot be read.
  absl::StatusOr<std::string> Get(const RowKey& key) const;
  // `durable`: returns once it would survive a power cut. ResourceExhausted when the disk is full.
  absl::Status Write(MetaBatch batch, bool durable);

 private:
  explicit MetaStore(std::unique_ptr<rocksdb::DB> db);
  std::unique_ptr<rocksdb::DB> db_;
  bool failed_ = false;  // the last write did
};

}  // namespace terrace::nvme
