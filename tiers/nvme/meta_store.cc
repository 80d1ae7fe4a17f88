#include "tiers/nvme/meta_store.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rocksdb/cache.h"
#include "rocksdb/db.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"

namespace terrace::nvme {

namespace {

const rocksdb::Slice kStoreIdKey("store");  // the keys of rows begin with 'r'

constexpr size_t kWriteBufferBytes = size_t{4} << 20;
constexpr size_t kCacheBytes = size_t{4} << 20;

rocksdb::Options DatabaseOptions() {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.paranoid_checks = true;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = kWriteBufferBytes;
  options.max_write_buffer_number = 2;
  options.max_open_files = 64;
  options.max_background_jobs = 2;
  options.max_file_opening_threads = 1;
  options.skip_stats_update_on_db_open = true;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.max_log_file_size = size_t{1} << 20;
  options.keep_log_file_num = 2;
  // A torn tail is what a power cut leaves of rows nobody was told of; damage before it is not.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kCacheBytes, 2);
  table.cache_index_and_filter_blocks = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

absl::Status FromRocks(const rocksdb::Status& status, const char* what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat("index ", what, ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(message);
  if (status.IsCorruption() || status.IsInvalidArgument() || status.IsPathNotFound() ||
      status.IsNotFound() || status.IsNotSupported()) {
    return absl::DataLossError(message);
  }
  return absl::UnavailableError(message);
}

std::string_view View(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

}  // namespace

MetaBatch::MetaBatch() : batch_(std::make_unique<rocksdb::WriteBatch>()) {}
MetaBatch::MetaBatch(MetaBatch&& other) noexcept = default;
MetaBatch& MetaBatch::operator=(MetaBatch&& other) noexcept = default;
MetaBatch::~MetaBatch() = default;

void MetaBatch::Put(const RowKey& key, const std::string& value) {
  batch_->Put(EncodeRowKey(key), value);
}

void MetaBatch::Delete(const RowKey& key) { batch_->Delete(EncodeRowKey(key)); }

void MetaBatch::DeleteRaw(std::string_view key) { batch_->Delete({key.data(), key.size()}); }

void MetaBatch::DeleteSegment(uint32_t segment_id) {
  batch_->DeleteRange(EncodeRowKey({segment_id, 0}), EncodeRowKey({segment_id, UINT64_MAX}));
}

void MetaBatch::PutStoreId(const StoreId& store_id) {
  batch_->Put(kStoreIdKey, {reinterpret_cast<const char*>(store_id.data()), store_id.size()});
}

MetaStore::MetaStore(std::unique_ptr<rocksdb::DB> db) : db_(std::move(db)) {}
MetaStore::~MetaStore() = default;

absl::StatusOr<std::unique_ptr<MetaStore>> MetaStore::Open(const std::string& directory) {
  rocksdb::DB* db = nullptr;
  rocksdb::Status status = rocksdb::DB::Open(DatabaseOptions(), directory, &db);
  if (!status.ok()) return FromRocks(status, "open");
  return std::unique_ptr<MetaStore>(new MetaStore(std::unique_ptr<rocksdb::DB>(db)));
}

absl::StatusOr<std::optional<StoreId>> MetaStore::store_id() const {
  std::string value;
  const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), kStoreIdKey, &value);
  if (status.IsNotFound()) return std::optional<StoreId>();
  if (!status.ok()) return FromRocks(status, "read");
  StoreId store_id;
  if (value.size() != store_id.size()) return absl::DataLossError("index: length of the store id");
  std::memcpy(store_id.data(), value.data(), store_id.size());
  return std::optional<StoreId>(store_id);
}

absl::Status MetaStore::ForEachRow(
    absl::FunctionRef<void(std::string_view, std::string_view)> visit) const {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  options.readahead_size = size_t{1} << 20;
  std::unique_ptr<rocksdb::Iterator> rows(db_->NewIterator(options));
  for (rows->SeekToFirst(); rows->Valid(); rows->Next()) {
    if (rows->key() != kStoreIdKey) visit(View(rows->key()), View(rows->value()));
  }
  return FromRocks(rows->status(), "read");
}

absl::StatusOr<std::string> MetaStore::Get(const RowKey& key) const {
  std::string value;
  const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), EncodeRowKey(key), &value);
  if (status.IsNotFound()) return absl::NotFoundError("index: no such row");
  if (!status.ok()) return FromRocks(status, "read");
  return value;
}

absl::Status MetaStore::Write(MetaBatch batch, bool durable) {
  // After a full disk RocksDB refuses writes until it is told to try again.
  if (failed_) {
    rocksdb::Status resumed = db_->Resume();
    if (!resumed.ok()) return FromRocks(resumed, "resume");
  }
  rocksdb::WriteOptions options;
  options.sync = durable;
  const rocksdb::Status status = db_->Write(options, batch.batch_.get());
  failed_ = !status.ok();
  return FromRocks(status, "write");
}

}  // namespace terrace::nvme
