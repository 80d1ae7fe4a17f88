#include "tiers/nvme/nvme_tier.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/buffer.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/io_scheduler.h"
#include "tiers/nvme/meta_store.h"
#include "tiers/nvme/meta_thread.h"
#include "tiers/nvme/record.h"
#include "tiers/nvme/record_index.h"
#include "tiers/nvme/record_read.h"
#include "tiers/nvme/recovery.h"
#include "tiers/nvme/segment_file.h"
#include "tiers/nvme/segment_table.h"
#include "tiers/nvme/store_directory.h"
#include "tiers/nvme/system.h"

namespace terrace {

namespace {

using nvme::IndexRow;
using nvme::kBlockBytes;
using nvme::RecordBytes;
using nvme::RecordIndex;
using nvme::RowKey;
using nvme::Segment;
using nvme::SegmentFile;
using nvme::SegmentTable;
using nvme::Transfer;
using Clock = std::chrono::steady_clock;

// Reads waiting at the io thread; more are refused rather than queued without bound.
constexpr uint32_t kMaxQueuedReads = 65536;
// After a full disk, how long writes are refused before one may try again.
constexpr std::chrono::seconds kReadOnlyPeriod{5};
constexpr uint64_t kSpareDescriptors = 256;  // beside one a segment

absl::Status CheckOptions(const NvmeOptions& options) {
  const auto bad = [](const char* field, uint64_t value, const char* accepted) {
    return absl::InvalidArgumentError(absl::StrCat("nvme ", field, " = ", value, ": ", accepted));
  };
  if (options.directory.empty()) return absl::InvalidArgumentError("nvme directory is empty");
  if (options.segment_bytes < 2 * kBlockBytes || options.segment_bytes % kBlockBytes != 0) {
    return bad("segment_bytes", options.segment_bytes, "at least 8192 and a multiple of 4096");
  }
  if (options.capacity_bytes < 2 * options.segment_bytes) {
    return bad("capacity_bytes", options.capacity_bytes, "at least two segments");
  }
  if (options.piece_bytes < kBlockBytes || options.piece_bytes % kBlockBytes != 0 ||
      options.piece_bytes > uint64_t{1} << 30) {
    return bad("piece_bytes", options.piece_bytes, "4096 .. 1 GiB and a multiple of 4096");
  }
  if (options.queue_depth == 0 || options.queue_depth > 4096) {
    return bad("queue_depth", options.queue_depth, "1 .. 4096");
  }
  return absl::OkStatus();
}

// Every segment keeps a descriptor open.
absl::Status RaiseDescriptorLimit(const NvmeOptions& options) {
  const uint64_t needed = options.capacity_bytes / options.segment_bytes + kSpareDescriptors;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return nvme::ErrnoStatus(errno, "getrlimit");
  if (limit.rlim_cur >= needed) return absl::OkStatus();
  if (limit.rlim_max < needed) {
    return absl::FailedPreconditionError(
        absl::StrCat("the NVMe tier needs ", needed, " file descriptors and this process may open ",
                     limit.rlim_max, ": raise the limit (ulimit -n), or nvme.segment_size"));
  }
  limit.rlim_cur = needed;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return nvme::ErrnoStatus(errno, "setrlimit");
  return absl::OkStatus();
}

// Meta thread. The row is the authority for flags; the record's header keeps those it was written
// with.
absl::Status RewritePin(nvme::MetaStore& store, const RowKey& place, bool pinned) {
  absl::StatusOr<std::string> value = store.Get(place);
  if (!value.ok()) return value.status();
  absl::StatusOr<IndexRow> row = nvme::DecodeRow(*value);
  if (!row.ok()) return row.status();
  row->meta.flags &= static_cast<uint8_t>(~kRecordPinned);
  if (pinned) row->meta.flags |= kRecordPinned;
  nvme::MetaBatch batch;
  batch.Put(place, nvme::EncodeRow(*row));
  return store.Write(std::move(batch), true);
}

}  // namespace

// All state of the tier. Its methods run on the loop thread unless they say otherwise.
class NvmeTier::Impl : public std::enable_shared_from_this<NvmeTier::Impl> {
 public:
  Impl(NvmeOptions options, PostFn post) : options_(std::move(options)), post_(std::move(post)) {}

  absl::Status Open();
  void Stop();
  void ForEachRecord(absl::FunctionRef<void(RecordId, const RecordMeta&)> visit);
  void Write(WriteRequest request);
  void Read(ReadRequest request);
  void Erase(RecordId id);
  void Touch(RecordId id);
  void SetPinned(RecordId id, bool pinned);
  uint64_t pending_pins() const { return pending_pins_; }
  NvmeStats Stats() const;

  std::function<void(RecordId, const ObjectKey&)> on_dropped;

 private:
  // A write on its way: what the loop needs once it is durable.
  struct PendingWrite {
    RowKey place;
    RecordMeta meta;
    absl::AnyInvocable<void(absl::StatusOr<RecordId>)> done;
  };
  using ReadDone = absl::AnyInvocable<void(absl::StatusOr<RecordMeta>)>;

  void TrimRecovered();
  RecordId AddToIndex(const RowKey& place, const RecordMeta& meta);
  absl::Status Admit(const WriteRequest& request) const;
  void Prepare(SegmentTable::Placement& placement);
  absl::Status PrepareFile(nvme::MetaStore& store, SegmentFile& file, bool reused,
                           std::vector<std::shared_ptr<SegmentFile>> reclaimed);
  std::vector<std::pair<RecordId, ObjectKey>> DropRecords(const SegmentTable::Placement& placement);
  std::unique_ptr<Transfer> MakeWrite(WriteRequest request, kernels::AlignedBuffer header_block,
                                      const SegmentTable::Placement& placement);
  void Written(std::unique_ptr<PendingWrite> write, absl::Status status);
  void FinishWrite(PendingWrite& write, const absl::Status& status);
  void FinishRead(RecordId id, const RowKey& place, absl::StatusOr<RecordMeta> meta, ReadDone done);
  void NoteWriteFailure(const absl::Status& status);

  const NvmeOptions options_;
  const PostFn post_;
  nvme::StoreDirectory directory_;
  std::optional<SegmentTable> segments_;
  RecordIndex index_;
  uint64_t next_sequence_ = 1;
  uint64_t live_bytes_ = 0;
  uint32_t queued_reads_ = 0;
  uint64_t pending_pins_ = 0;
  NvmeStats stats_;  // counters, engine and health; Stats() fills in the rest
  Clock::time_point read_only_until_;
  bool stopped_ = false;

  // The threads, in the order in which they are made; Stop() ends them in reverse.
  std::unique_ptr<nvme::MetaStore> store_;
  std::unique_ptr<nvme::MetaThread> meta_;
  std::unique_ptr<nvme::IoScheduler> io_;
};

absl::Status NvmeTier::Impl::Open() {
  absl::Status status = CheckOptions(options_);
  if (status.ok()) status = RaiseDescriptorLimit(options_);
  if (!status.ok()) return status;
  auto directory = nvme::StoreDirectory::Open(options_.directory, options_.segment_bytes);
  if (!directory.ok()) return directory.status();
  directory_ = *std::move(directory);
  auto found = nvme::OpenSegmentFiles(directory_.segments(), directory_.store_id());
  if (!found.ok()) return found.status();
  auto store = nvme::OpenIndex(directory_, *found);
  if (!store.ok()) return store.status();
  store_ = *std::move(store);

  segments_.emplace(directory_.segments(), options_.capacity_bytes, options_.segment_bytes);
  for (const nvme::FoundSegment& segment : *found) segments_->AddRecovered(segment.file);
  auto lost = nvme::LoadRows(*store_, *found, [this](const RowKey& place, const IndexRow& row) {
    next_sequence_ = std::max(next_sequence_, row.sequence + 1);
    AddToIndex(place, row.meta);
  });
  if (!lost.ok()) return lost.status();
  stats_.corrupt_records = *lost;
  if (*lost == 0) TrimRecovered();

  meta_ = std::make_unique<nvme::MetaThread>(*store_);
  nvme::IoScheduler::Options io_options;
  io_options.system = &nvme::System::Real();
  io_options.queue_depth = options_.queue_depth;
  io_options.piece_bytes = options_.piece_bytes;
  auto io = nvme::IoScheduler::Start(io_options);
  if (!io.ok()) return io.status();
  io_ = *std::move(io);
  stats_.engine = io_->engine();
  stats_.health = "ok";
  return absl::OkStatus();
}

// Segments of earlier runs are never appended to: what lies beyond their last record goes back to
// the file system, and so does a file without records.
void NvmeTier::Impl::TrimRecovered() {
  std::vector<uint32_t> empty;
  for (auto& [id, segment] : segments_->all()) {
    const SegmentFile& file = *segment.file;
    if (segment.records.empty()) {
      if (unlink(file.path.c_str()) == 0) empty.push_back(id);
      continue;
    }
    const RecordIndex::Record& last = *index_.Find(segment.records.back());
    const uint64_t end = last.offset() + last.stored_bytes();
    if (end < file.bytes && ftruncate(file.fd, static_cast<off_t>(end)) == 0) {
      segments_->Resize(segment, end);
    }
  }
  for (uint32_t id : empty) segments_->Remove(id);
}

RecordId NvmeTier::Impl::AddToIndex(const RowKey& place, const RecordMeta& meta) {
  const RecordId id = index_.Add(place, meta);
  const RecordIndex::Record& record = *index_.Find(id);
  live_bytes_ += record.stored_bytes();
  if (Segment* segment = segments_->Find(place.segment_id)) {
    segment->records.push_back(id);
    segment->live_bytes += record.stored_bytes();
    segment->pinned += record.pinned;
  }
  return id;
}

void NvmeTier::Impl::Stop() {
  stopped_ = true;
  if (io_ != nullptr) io_->Stop();  // hands the last writes to the meta thread
  meta_.reset();
  io_.reset();
  store_.reset();
  if (segments_.has_value()) segments_->Clear();
  directory_ = nvme::StoreDirectory();  // unlocks: another may open from here on
}

void NvmeTier::Impl::ForEachRecord(absl::FunctionRef<void(RecordId, const RecordMeta&)> visit) {
  std::optional<uint32_t> segment_id;
  absl::flat_hash_map<uint64_t, RecordId> by_offset;  // live records of that segment
  absl::Status status = store_->ForEachRow([&](std::string_view key, std::string_view value) {
    absl::StatusOr<RowKey> place = nvme::DecodeRowKey(key);
    if (!place.ok()) return;
    if (segment_id != place->segment_id) {
      segment_id = place->segment_id;
      by_offset.clear();
      const Segment* segment = segments_->Find(*segment_id);
      if (segment == nullptr) return;
      for (RecordId id : segment->records) {
        const RecordIndex::Record* record = index_.Find(id);
        if (record != nullptr && record->segment_id == *segment_id)
          by_offset[record->offset()] = id;
      }
    }
    auto id = by_offset.find(place->offset);
    if (id == by_offset.end()) return;
    absl::StatusOr<IndexRow> row = nvme::DecodeRow(value);
    if (row.ok()) visit(id->second, row->meta);
  });
  if (!status.ok()) stats_.health = absl::StrCat("failed: ", std::string(status.message()));
}

absl::Status NvmeTier::Impl::Admit(const WriteRequest& request) const {
  if (stopped_) return absl::UnavailableError("the NVMe tier is stopping");
  absl::Status status = nvme::CheckMeta(request.meta);
  if (!status.ok()) return status;
  if (request.payload == nullptr || reinterpret_cast<uintptr_t>(request.payload) % kBlockBytes) {
    return absl::InvalidArgumentError("nvme write: payload is not aligned to 4096");
  }
  const uint64_t bytes = request.meta.payload_bytes;
  // One record is always let through, however long.
  if (stats_.pending_write_bytes > 0 &&
      stats_.pending_write_bytes + bytes > options_.max_pending_write_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("nvme write queue is full: ", stats_.pending_write_bytes, " bytes of ",
                     options_.max_pending_write_bytes));
  }
  if (read_only_until_ > Clock::now()) {
    return absl::ResourceExhaustedError(absl::StrCat("nvme tier is ", stats_.health));
  }
  return absl::OkStatus();
}

void NvmeTier::Impl::Write(WriteRequest request) {
  kernels::AlignedBuffer header(kBlockBytes);
  absl::Status status = Admit(request);
  if (status.ok() && header.data() == nullptr) {
    status = absl::ResourceExhaustedError("no memory for a record header");
  }
  absl::StatusOr<SegmentTable::Placement> placement = absl::UnknownError("not placed");
  if (status.ok()) {
    placement = segments_->Place(RecordBytes(request.meta.payload_bytes));
    status = placement.status();
  }
  if (!status.ok()) {
    stats_.writes_rejected += absl::IsResourceExhausted(status);
    post_([done = std::move(request.done), status]() mutable { done(status); });
    return;
  }
  ++placement->segment->writes;
  stats_.pending_write_bytes += request.meta.payload_bytes;
  const auto dropped = DropRecords(*placement);
  if (placement->fresh) Prepare(*placement);
  io_->Submit(MakeWrite(std::move(request), std::move(header), *placement));
  // Last, because the owner may call back.
  if (!on_dropped) return;
  for (const auto& [id, key] : dropped) on_dropped(id, key);
}

std::vector<std::pair<RecordId, ObjectKey>> NvmeTier::Impl::DropRecords(
    const SegmentTable::Placement& placement) {
  std::vector<std::pair<RecordId, ObjectKey>> dropped;
  for (const Segment& segment : placement.reclaimed) {
    ++stats_.reclaimed_segments;
    for (RecordId id : segment.records) {
      const RecordIndex::Record* record = index_.Find(id);
      if (record == nullptr || record->segment_id != segment.file->id) continue;
      live_bytes_ -= record->stored_bytes();
      dropped.emplace_back(id, record->key);
      index_.Remove(id);
    }
  }
  return dropped;
}

void NvmeTier::Impl::Prepare(SegmentTable::Placement& placement) {
  std::vector<std::shared_ptr<SegmentFile>> reclaimed;
  for (Segment& segment : placement.reclaimed) reclaimed.push_back(std::move(segment.file));
  meta_->Run([this, file = placement.segment->file, reused = placement.reused,
              reclaimed = std::move(reclaimed)](nvme::MetaStore& store) mutable {
    absl::Status status = PrepareFile(store, *file, reused, std::move(reclaimed));
    io_->FileReady(file, status);
    if (status.ok()) return;
    unlink(file->path.c_str());
    post_([self = shared_from_this(), file, status] {
      self->NoteWriteFailure(status);
      const Segment* segment = self->segments_->Find(file->id);
      if (segment != nullptr && segment->file == file) self->segments_->Remove(file->id);
    });
  });
}

// Meta thread. Rows go before what they point to, so that a row always has its record.
absl::Status NvmeTier::Impl::PrepareFile(nvme::MetaStore& store, SegmentFile& file, bool reused,
                                         std::vector<std::shared_ptr<SegmentFile>> reclaimed) {
  if (!reclaimed.empty()) {
    nvme::MetaBatch batch;
    for (const auto& old : reclaimed) batch.DeleteSegment(old->id);
    absl::Status status = store.Write(std::move(batch), true);
    // Even then: the records are dropped already, their space is counted as free, and rows without
    // a file are dropped at the next start.
    for (const auto& old : reclaimed) {
      if (old->id != file.id) unlink(old->path.c_str());
    }
    reclaimed.clear();  // closes them: this is where their space is given back
    if (!status.ok()) return status;
  }
  return reused ? nvme::RewriteSegmentHeader(file, directory_.store_id())
                : nvme::CreateSegmentFile(file, directory_.store_id());
}

std::unique_ptr<Transfer> NvmeTier::Impl::MakeWrite(WriteRequest request,
                                                    kernels::AlignedBuffer header_block,
                                                    const SegmentTable::Placement& placement) {
  const SegmentFile& file = *placement.segment->file;
  auto transfer = std::make_unique<Transfer>();
  transfer->head = std::move(header_block);
  nvme::RecordHeader header{directory_.store_id(), file.id, file.generation, next_sequence_++,
                            std::move(request.meta)};
  nvme::EncodeRecordHeader(header, {transfer->head.data(), kBlockBytes});
  std::string row = nvme::EncodeRow({header.generation, header.sequence, header.meta});

  auto write = std::make_unique<PendingWrite>();
  write->place = {file.id, placement.offset};
  write->meta = std::move(header.meta);
  write->done = std::move(request.done);

  transfer->direction = Transfer::Direction::kWrite;
  transfer->file = placement.segment->file;
  transfer->file_offset = placement.offset;
  transfer->payload = const_cast<uint8_t*>(request.payload);  // writes only read it
  transfer->payload_bytes = AlignUp(write->meta.payload_bytes, kBlockBytes);
  transfer->priority = request.priority;
  transfer->finished = [this, row = std::move(row),
                        write = std::move(write)](absl::Status status) mutable {
    if (!status.ok()) {
      Written(std::move(write), std::move(status));
      return;
    }
    const RowKey place = write->place;
    meta_->Put(place, std::move(row),
               [this, write = std::move(write)](absl::Status status) mutable {
                 Written(std::move(write), std::move(status));
               });
    meta_->Flush();
  };
  return transfer;
}

// Io thread or meta thread.
void NvmeTier::Impl::Written(std::unique_ptr<PendingWrite> write, absl::Status status) {
  post_([self = shared_from_this(), write = std::move(write), status = std::move(status)] {
    self->FinishWrite(*write, status);
  });
}

void NvmeTier::Impl::FinishWrite(PendingWrite& write, const absl::Status& status) {
  stats_.pending_write_bytes -= write.meta.payload_bytes;
  if (Segment* segment = segments_->Find(write.place.segment_id)) --segment->writes;
  if (!status.ok()) {
    NoteWriteFailure(status);
    write.done(status);
    return;
  }
  stats_.health = "ok";
  stats_.written_bytes += write.meta.payload_bytes;
  write.done(AddToIndex(write.place, write.meta));
}

void NvmeTier::Impl::NoteWriteFailure(const absl::Status& status) {
  const bool full = absl::IsResourceExhausted(status);
  if (full) read_only_until_ = Clock::now() + kReadOnlyPeriod;
  stats_.health = absl::StrCat(full ? "read-only: " : "failed: ", std::string(status.message()));
}

void NvmeTier::Impl::Read(ReadRequest request) {
  const RecordIndex::Record* record = index_.Find(request.record);
  absl::Status status;
  if (stopped_) {
    status = absl::UnavailableError("the NVMe tier is stopping");
  } else if (record == nullptr || record->key != request.key) {
    status = absl::DataLossError(
        absl::StrCat("nvme record ", request.record, " is not of object ", request.key.ToHex()));
  } else if (queued_reads_ >= kMaxQueuedReads) {
    status = absl::UnavailableError(absl::StrCat(queued_reads_, " nvme reads are queued already"));
  }
  auto transfer = std::make_unique<Transfer>();
  transfer->head = kernels::AlignedBuffer(kBlockBytes);
  if (status.ok() && transfer->head.data() == nullptr) {
    status = absl::UnavailableError("no memory for a record header");
  }
  if (!status.ok()) {
    post_([done = std::move(request.done), status]() mutable { done(status); });
    return;
  }
  Segment& segment = *segments_->Find(record->segment_id);
  ++segment.reads;
  ++queued_reads_;
  segments_->Use(segment);

  transfer->file = segment.file;
  transfer->file_offset = record->offset();
  transfer->payload = request.destination;
  transfer->payload_bytes = AlignUp(record->payload_bytes(), kBlockBytes);
  transfer->priority = request.priority;
  transfer->batch = request.batch;
  const nvme::RecordIdentity identity{
      directory_.store_id(),   segment.file->id, segment.file->generation,
      record->payload_bytes(), request.key,      request.fingerprint};
  auto check =
      std::make_shared<nvme::RecordRead>(identity, transfer->head.data(), request.destination);
  transfer->advanced = [this, check, progress = std::move(request.on_progress)](uint64_t bytes) {
    const uint32_t before = check->parts_ready();
    absl::Status status = check->Advance(bytes);
    const uint32_t ready = check->parts_ready();
    if (progress && ready > before) post_([progress, ready] { progress(ready); });
    return status;
  };
  transfer->finished = [this, check, id = request.record,
                        place = RowKey{segment.file->id, record->offset()},
                        done = std::move(request.done)](absl::Status status) mutable {
    absl::StatusOr<RecordMeta> meta = absl::UnknownError("not read");
    if (status.ok()) {
      meta = check->TakeMeta();
    } else {
      meta = std::move(status);
    }
    post_([self = shared_from_this(), id, place, meta = std::move(meta),
           done = std::move(done)]() mutable {
      self->FinishRead(id, place, std::move(meta), std::move(done));
    });
  };
  io_->Submit(std::move(transfer));
}

void NvmeTier::Impl::FinishRead(RecordId id, const RowKey& place, absl::StatusOr<RecordMeta> meta,
                                ReadDone done) {
  --queued_reads_;
  if (Segment* segment = segments_->Find(place.segment_id)) --segment->reads;
  if (meta.ok()) {
    stats_.read_bytes += meta->payload_bytes;
  } else if (absl::IsDataLoss(meta.status())) {
    ++stats_.corrupt_records;
    const RecordIndex::Record* record = index_.Find(id);
    const bool same = record != nullptr && record->segment_id == place.segment_id &&
                      record->offset() == place.offset;
    if (same) Erase(id);
  } else if (!stopped_) {
    ++stats_.read_errors;
    // Whatever the device said, the record may be fine and is kept.
    meta = absl::UnavailableError(meta.status().message());
  }
  done(std::move(meta));
}

void NvmeTier::Impl::Erase(RecordId id) {
  const RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr) return;
  const RowKey place{record->segment_id, record->offset()};
  live_bytes_ -= record->stored_bytes();
  if (Segment* segment = segments_->Find(place.segment_id)) {
    segment->live_bytes -= record->stored_bytes();
    segment->pinned -= record->pinned;
  }
  index_.Remove(id);
  if (!stopped_) meta_->Delete(place);
}

void NvmeTier::Impl::Touch(RecordId id) {
  const RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr) return;
  if (Segment* segment = segments_->Find(record->segment_id)) segments_->Use(*segment);
}

void NvmeTier::Impl::SetPinned(RecordId id, bool pinned) {
  const RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr || (record->pinned != 0) == pinned || stopped_) return;
  const RowKey place{record->segment_id, record->offset()};
  index_.SetPinned(id, pinned);
  if (Segment* segment = segments_->Find(place.segment_id)) segment->pinned += pinned ? 1 : -1;
  ++pending_pins_;
  meta_->Run([this, place, pinned](nvme::MetaStore& store) {
    absl::Status status = RewritePin(store, place, pinned);
    // NotFound: erased meanwhile.
    if (!status.ok() && !absl::IsNotFound(status)) {
      spdlog::warn("nvme index: a pin was not written: {}", status.ToString());
    }
    post_([self = shared_from_this()] { --self->pending_pins_; });
  });
}

NvmeStats NvmeTier::Impl::Stats() const {
  NvmeStats stats = stats_;
  stats.capacity_bytes = options_.capacity_bytes;
  stats.used_bytes = segments_->used_bytes();
  stats.segments = segments_->size();
  stats.live_bytes = live_bytes_;
  stats.records = index_.size();
  stats.read_bytes_per_s = io_ != nullptr ? io_->read_bytes_per_s() : 0;
  return stats;
}

absl::StatusOr<std::unique_ptr<NvmeTier>> NvmeTier::Open(NvmeOptions options, PostFn post) {
  auto impl = std::make_shared<Impl>(std::move(options), std::move(post));
  absl::Status status = impl->Open();
  if (!status.ok()) {
    impl->Stop();
    return status;
  }
  return std::unique_ptr<NvmeTier>(new NvmeTier(std::move(impl)));
}

NvmeTier::NvmeTier(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
NvmeTier::~NvmeTier() { impl_->Stop(); }

void NvmeTier::ForEachRecord(absl::FunctionRef<void(RecordId, const RecordMeta&)> visit) {
  impl_->ForEachRecord(visit);
}
void NvmeTier::Write(WriteRequest request) { impl_->Write(std::move(request)); }
void NvmeTier::Read(ReadRequest request) { impl_->Read(std::move(request)); }
void NvmeTier::Erase(RecordId record) { impl_->Erase(record); }
void NvmeTier::OnDropped(std::function<void(RecordId, const ObjectKey&)> callback) {
  impl_->on_dropped = std::move(callback);
}
void NvmeTier::Touch(RecordId record) { impl_->Touch(record); }
void NvmeTier::SetPinned(RecordId record, bool pinned) { impl_->SetPinned(record, pinned); }
uint64_t NvmeTier::pending_pins() const { return impl_->pending_pins(); }
NvmeStats NvmeTier::Stats() const { return impl_->Stats(); }

}  // namespace terrace
