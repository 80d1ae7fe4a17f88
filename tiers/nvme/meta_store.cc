#include "tiers/nvme/meta_store.h"

#include <cstdarg>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rocksdb/cache.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"

namespace terrace::nvme {

namespace {

const rocksdb::Slice kStoreIdKey("store");

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

// Without one RocksDB makes a file, even to read only.
class NoLog : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

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

MetaStore::MetaStore(System& system, std::unique_ptr<rocksdb::DB> db)
    : system_(system), db_(std::move(db)) {}
MetaStore::~MetaStore() = default;

absl::StatusOr<std::unique_ptr<MetaStore>> MetaStore::Open(System& system,
                                                           const std::string& directory,
                                                           bool read_only) {
  absl::Status fault = system.IndexFault();
  if (!fault.ok()) return fault;
  rocksdb::DB* db = nullptr;
  rocksdb::Options options = DatabaseOptions();
  if (read_only) {
    options.info_log = std::make_shared<NoLog>();
    options.create_if_missing = false;
  }
  const rocksdb::Status status = read_only ? rocksdb::DB::OpenForReadOnly(options, directory, &db)
                                           : rocksdb::DB::Open(options, directory, &db);
  if (!status.ok()) return FromRocks(status, "open");
  return std::unique_ptr<MetaStore>(new MetaStore(system, std::unique_ptr<rocksdb::DB>(db)));
}

absl::StatusOr<std::unique_ptr<MetaStore>> MetaStore::Open(System& system,
                                                           const std::string& directory) {
  return Open(system, directory, false);
}

absl::StatusOr<std::unique_ptr<MetaStore>> MetaStore::OpenReadOnly(System& system,
                                                                   const std::string& directory) {
  return Open(system, directory, true);
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

absl::Status MetaStore::ForEachRow(char prefix, VisitRow visit) const {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  options.readahead_size = size_t{2} << 20;
  std::unique_ptr<rocksdb::Iterator> rows(db_->NewIterator(options));
  for (rows->Seek({&prefix, 1}); rows->Valid() && rows->key()[0] == prefix; rows->Next()) {
    visit(View(rows->key()), View(rows->value()));
  }
  return FromRocks(rows->status(), "read");
}

uint64_t MetaStore::ApproximateBytes() const {
  uint64_t tables = 0, memory = 0;
  db_->GetIntProperty(rocksdb::DB::Properties::kEstimateLiveDataSize, &tables);
  db_->GetIntProperty(rocksdb::DB::Properties::kCurSizeAllMemTables, &memory);
  return tables + memory;
}

absl::Status MetaStore::PutSegment(uint32_t segment_id, const std::string& row) {
  rocksdb::WriteBatch batch;
  batch.Put(SegmentRowKey(segment_id), row);
  return Write(batch, true);
}

absl::Status MetaStore::DeleteSegment(uint32_t segment_id) {
  rocksdb::WriteBatch batch;
  batch.Delete(SegmentRowKey(segment_id));
  batch.DeleteRange(FirstNoteKey(segment_id), LastNoteKey(segment_id));
  return Write(batch, false);
}

absl::Status MetaStore::Clean(const Stale& stale) {
  rocksdb::WriteBatch batch;
  if (stale.every_row) batch.DeleteRange(SegmentRowKey(0), SegmentRowKey(UINT32_MAX));
  for (uint32_t segment_id : stale.rows) batch.Delete(SegmentRowKey(segment_id));
  for (uint32_t segment_id : stale.noted) {
    batch.DeleteRange(FirstNoteKey(segment_id), LastNoteKey(segment_id));
  }
  for (const Place& place : stale.notes) batch.Delete(NoteKey(place));
  return batch.Count() == 0 ? absl::OkStatus() : Write(batch, true);
}

absl::Status MetaStore::PutNotes(const std::vector<Place>& places, Note note, bool durable) {
  rocksdb::WriteBatch batch;
  const char value = static_cast<char>(note);
  for (const Place& place : places) batch.Put(NoteKey(place), {&value, 1});
  return Write(batch, durable);
}

absl::Status MetaStore::PutStoreId(const StoreId& store_id) {
  rocksdb::WriteBatch batch;
  batch.Put(kStoreIdKey, {reinterpret_cast<const char*>(store_id.data()), store_id.size()});
  return Write(batch, true);
}

absl::Status MetaStore::Write(rocksdb::WriteBatch& batch, bool durable) {
  absl::Status fault = system_.IndexFault();
  if (!fault.ok()) return fault;
  // After a full disk RocksDB refuses writes until it is told to try again.
  if (failed_) {
    rocksdb::Status resumed = db_->Resume();
    if (!resumed.ok()) return FromRocks(resumed, "resume");
  }
  rocksdb::WriteOptions options;
  options.sync = durable;
  const rocksdb::Status status = db_->Write(options, &batch);
  failed_ = !status.ok();
  return FromRocks(status, "write");
}

}  // namespace terrace::nvme
