// Writing and reading records.
#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/tier_impl.h"

namespace terrace {

namespace {

// Reads waiting at the io thread; more are refused rather than queued without bound.
constexpr uint32_t kMaxQueuedReads = 65536;

uint64_t WallClockUs() { return static_cast<uint64_t>(absl::ToUnixMicros(absl::Now())); }

uint64_t BytesOf(uint64_t header_bytes, uint64_t payload_bytes) {
  return header_bytes + AlignUp(payload_bytes, nvme::kBlockBytes);
}

}  // namespace

absl::Status NvmeTier::Impl::Admit(const WriteRequest& request) {
  if (stopped_) return absl::UnavailableError("the NVMe tier is stopping");
  absl::Status status = nvme::CheckMeta(request.meta);
  if (!status.ok()) return status;
  if (request.payload == nullptr ||
      reinterpret_cast<uintptr_t>(request.payload) % nvme::kBlockBytes != 0) {
    return absl::InvalidArgumentError("nvme write: payload is not aligned to 4096");
  }
  const uint64_t bytes = request.meta.payload_bytes;
  const uint64_t stored = BytesOf(nvme::HeaderBytes(request.meta.part_ends), bytes);
  const uint64_t entry_bytes = nvme::EntryBytes(request.meta);
  if (segments_->FileBytesFor(stored, entry_bytes) > segments_->capacity_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "nvme write of ", bytes, " bytes: the capacity is ", segments_->capacity_bytes()));
  }
  // One record is always let through, however long.
  if (stats_.pending_write_bytes > 0 &&
      stats_.pending_write_bytes + bytes > options_.max_pending_write_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("nvme write queue is full: ", stats_.pending_write_bytes, " bytes of ",
                     options_.max_pending_write_bytes));
  }
  const Clock::time_point now = Clock::now();
  if (!health_.may_write(now)) {
    return absl::ResourceExhaustedError(absl::StrCat("nvme tier is ", health_.Describe(now)));
  }
  if (!budget_->Take(stored + entry_bytes, WallClockUs())) {
    ++stats_.budget_rejected;
    return absl::ResourceExhaustedError(
        absl::StrCat("nvme write budget of ", options_.write_budget_bytes_per_day,
                     " bytes a day is spent for now: ", budget_->available_bytes(WallClockUs()),
                     " of ", stored, " bytes"));
  }
  if (budget_->should_save()) SaveBudget();
  return absl::OkStatus();
}

void NvmeTier::Impl::Reject(WriteRequest& request, const absl::Status& status) {
  stats_.writes_rejected += absl::IsResourceExhausted(status);
  post_([done = std::move(request.done), status]() mutable { done(status); });
}

void NvmeTier::Impl::Write(WriteRequest request) {
  const absl::Status status = Admit(request);
  if (!status.ok()) {
    Reject(request, status);
    return;
  }
  stats_.pending_write_bytes += request.meta.payload_bytes;
  if (!waiting_.empty() || !Submit(request)) waiting_.push_back(std::move(request));
  MakeRoom();
}

// False when there is no place for it now.
bool NvmeTier::Impl::Submit(WriteRequest& request) {
  const std::optional<Placement> placement = Place(request.meta, false);
  if (!placement.has_value()) return false;
  const uint64_t payload_bytes = request.meta.payload_bytes;
  SubmitRecord(
      std::move(request.meta), request.payload, request.priority, *placement,
      [this, payload_bytes, done = std::move(request.done)](
          uint32_t segment_id, const nvme::RecordEntry& entry, const absl::Status& status) mutable {
        stats_.pending_write_bytes -= payload_bytes;
        if (!status.ok()) {
          done(status);
          return;
        }
        stats_.written_bytes += payload_bytes;
        EarnReclaimCredit(BytesOf(entry.header_bytes, payload_bytes));
        Segment& segment = *segments_->Find(segment_id);
        const RecordId id = AddRecord(segment, entry);
        std::string encoded;
        nvme::AppendEntry(entry, encoded);
        segment.entries.emplace_back(id, std::move(encoded));
        system_.Step("store.indexed");
        done(id);
      });
  return true;
}

void NvmeTier::Impl::SubmitWaiting() {
  while (!waiting_.empty() && Submit(waiting_.front())) waiting_.pop_front();
}

void NvmeTier::Impl::SubmitRecord(RecordMeta meta, const uint8_t* payload, IoPriority priority,
                                  const Placement& placement, Written written) {
  Segment& segment = *placement.segment;
  ++segment.writes;
  auto transfer = std::make_unique<nvme::Transfer>();
  transfer->direction = nvme::Transfer::Direction::kWrite;
  transfer->file = segment.file;
  transfer->file_offset = placement.offset;
  transfer->head = kernels::AlignedBuffer(placement.header_bytes);
  transfer->payload = const_cast<uint8_t*>(payload);  // writes only read it
  transfer->payload_bytes = AlignUp(meta.payload_bytes, nvme::kBlockBytes);
  transfer->priority = priority;
  stats_.device_written_bytes += BytesOf(placement.header_bytes, meta.payload_bytes);

  nvme::RecordEntry entry{placement.offset, placement.header_bytes, next_sequence_++, meta};
  nvme::RecordHeader header{directory_.store_id(), segment.file->id, segment.file->generation,
                            entry.sequence,        std::move(meta),  {}};
  auto check = std::make_shared<nvme::RecordWrite>(
      std::move(header), nvme::Bytes{transfer->head.data(), placement.header_bytes}, payload);
  transfer->advanced = [this, check](uint64_t bytes) {
    system_.Step("store.piece");
    return check->Advance(bytes);
  };
  transfer->finished = [this, segment_id = segment.file->id, entry = std::move(entry),
                        written = std::move(written)](absl::Status status) mutable {
    system_.Step("store.durable");
    post_([self = shared_from_this(), segment_id, entry = std::move(entry),
           status = std::move(status), written = std::move(written)]() mutable {
      self->FinishWrite(segment_id, entry, status, written);
    });
  };
  io_->Submit(std::move(transfer));
}

void NvmeTier::Impl::FinishWrite(uint32_t segment_id, const nvme::RecordEntry& entry,
                                 const absl::Status& status, Written& written) {
  health_.Note(status, Clock::now());
  Segment& segment = *segments_->Find(segment_id);
  written(segment_id, entry, status);  // while it counts, whatever the owner does the segment stays
  --segment.writes;
  // What a failed write or sync left behind is not known: nothing more is put next to it.
  if (!status.ok() && !absl::IsDataLoss(status)) {
    ++stats_.write_errors;
    CloseToWrites(segment);
  }
  SealIfDone(segment);
  MakeRoom();
}

RecordId NvmeTier::Impl::AddRecord(Segment& segment, const nvme::RecordEntry& entry) {
  const RecordId id = index_.Add(segment.file->id, entry);
  const nvme::RecordIndex::Record& record = *index_.Find(id);
  live_bytes_ += record.stored_bytes();
  segment.records.push_back(id);
  segments_->Count(segment, record, 1);
  return id;
}

ReadTicket NvmeTier::Impl::Read(ReadRequest request) {
  const nvme::RecordIndex::Record* record = index_.Find(request.record);
  absl::Status status;
  if (stopped_) {
    status = absl::UnavailableError("the NVMe tier is stopping");
  } else if (!health_.in_service()) {
    status = absl::UnavailableError(absl::StrCat("nvme tier is ", health_.Describe(Clock::now())));
  } else if (record == nullptr || record->key != request.key) {
    status = absl::DataLossError(
        absl::StrCat("nvme record ", request.record, " is not of object ", request.key.ToHex()));
  } else if (queued_reads_ >= kMaxQueuedReads) {
    status = absl::UnavailableError(absl::StrCat(queued_reads_, " nvme reads are queued already"));
  }
  if (!status.ok()) {
    post_([done = std::move(request.done), status]() mutable { done(status); });
    return ++last_ticket_;
  }
  const Fingerprint fingerprint = request.fingerprint;
  return ReadRecord(std::move(request), fingerprint);
}

void NvmeTier::Impl::Reprioritize(ReadTicket ticket, IoPriority priority, uint64_t batch) {
  if (!stopped_) io_->Reprioritize(ticket, priority, batch);
}

void NvmeTier::Impl::Cancel(ReadTicket ticket) {
  if (!stopped_) io_->Cancel(ticket);
}

ReadTicket NvmeTier::Impl::ReadRecord(ReadRequest request, std::optional<Fingerprint> fingerprint) {
  const nvme::RecordIndex::Record& record = *index_.Find(request.record);
  Segment& segment = *segments_->Find(record.segment_id);
  ++segment.reads;
  ++queued_reads_;
  auto transfer = std::make_unique<nvme::Transfer>();
  transfer->file = segment.file;
  transfer->file_offset = record.offset();
  transfer->head = kernels::AlignedBuffer(record.header_bytes());
  transfer->payload = request.destination;
  transfer->payload_bytes = AlignUp(record.payload_bytes(), nvme::kBlockBytes);
  transfer->priority = request.priority;
  transfer->batch = request.batch;
  transfer->ticket = ++last_ticket_;
  const nvme::RecordIdentity identity{directory_.store_id(),
                                      segment.file->id,
                                      segment.file->generation,
                                      record.header_bytes(),
                                      record.payload_bytes(),
                                      request.key,
                                      fingerprint};
  auto check =
      std::make_shared<nvme::RecordRead>(identity, transfer->head.data(), request.destination);
  transfer->advanced = [this, check, progress = std::move(request.on_progress)](uint64_t bytes) {
    const uint32_t before = check->parts_ready();
    absl::Status status = check->Advance(bytes);
    const uint32_t ready = check->parts_ready();
    if (progress && ready > before) post_([progress, ready] { progress(ready); });
    return status;
  };
  transfer->finished = [this, check, id = request.record, place = PlaceOf(record),
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
  return last_ticket_;
}

void NvmeTier::Impl::FinishRead(RecordId id, const nvme::Place& place,
                                absl::StatusOr<RecordMeta> meta, ReadDone done) {
  --queued_reads_;
  --segments_->Find(place.segment_id)->reads;  // it was not reclaimed while this read was under way
  const absl::Status& status = meta.status();
  if (status.ok()) {
    stats_.read_bytes += meta->payload_bytes;
    health_.Note(status, Clock::now());
  } else if (absl::IsDataLoss(status)) {
    ++stats_.corrupt_records;
    // It may have moved meanwhile, or been erased and its id given to another.
    const nvme::RecordIndex::Record* record = index_.Find(id);
    if (record != nullptr && PlaceOf(*record) == place) Erase(id);
  } else if (!stopped_ && !absl::IsCancelled(status)) {
    ++stats_.read_errors;
    health_.Note(absl::UnavailableError(status.message()), Clock::now());
    // Whatever the device said, the record may be fine and is kept.
    meta = absl::UnavailableError(status.message());
  }
  done(std::move(meta));
  ContinueDrain();
  MakeRoom();
}

void NvmeTier::Impl::Forget(RecordId id) {
  const nvme::RecordIndex::Record& record = *index_.Find(id);
  live_bytes_ -= record.stored_bytes();
  segments_->Count(*segments_->Find(record.segment_id), record, -1);
  index_.Remove(id);
}

nvme::Place NvmeTier::Impl::PlaceOf(const nvme::RecordIndex::Record& record) {
  return {record.segment_id, segments_->Find(record.segment_id)->file->generation, record.offset()};
}

void NvmeTier::Impl::NoteRecord(RecordId id, nvme::Note note) {
  if (stopped_) return;
  std::vector<nvme::Place> places = {PlaceOf(*index_.Find(id))};
  // Of the copy that is on its way, too: its header says what was so before.
  if (drain_.has_value() && drain_->moving.contains(id)) places.push_back(drain_->moving[id]);
  // An erased record that comes back after a power cut is still whole or fails its checks.
  const bool durable = note != nvme::Note::kErased;
  pending_pins_ += durable;
  meta_->Run([this, places = std::move(places), note, durable](nvme::MetaStore& store) {
    absl::Status status = store.PutNotes(places, note, durable);
    system_.Step(durable ? "pin.noted" : "erase.noted");
    if (!status.ok()) spdlog::warn("nvme index: a note was not written: {}", status.ToString());
    if (durable) post_([self = shared_from_this()] { --self->pending_pins_; });
  });
}

uint64_t NvmeTier::Impl::PayloadBytes(RecordId id) const {
  const nvme::RecordIndex::Record* record = index_.Find(id);
  return record != nullptr ? record->payload_bytes() : 0;
}

void NvmeTier::Impl::Erase(RecordId id) {
  if (index_.Find(id) == nullptr) return;
  NoteRecord(id, nvme::Note::kErased);
  if (drain_.has_value()) drain_->moving.erase(id);
  Forget(id);
}

void NvmeTier::Impl::Touch(RecordId id) {
  const nvme::RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr) return;
  Segment& segment = *segments_->Find(record->segment_id);
  segments_->Count(segment, *record, -1);
  index_.Use(id);
  segments_->Use(segment);
  segments_->Count(segment, *record, 1);
}

void NvmeTier::Impl::SetPinned(RecordId id, bool pinned) {
  const nvme::RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr || (record->pinned != 0) == pinned || stopped_) return;
  Segment& segment = *segments_->Find(record->segment_id);
  segments_->Count(segment, *record, -1);
  index_.SetPinned(id, pinned);
  segments_->Count(segment, *record, 1);
  NoteRecord(id, pinned ? nvme::Note::kPinned : nvme::Note::kUnpinned);
}

void NvmeTier::Impl::Tick() {
  if (stopped_ || !recovered_) return;
  if (health_.probe_due(Clock::now())) Probe();
  GiveUpSegments();
}

// Writes a block of its own file, syncs and reads it back, the way records go.
void NvmeTier::Impl::Probe() {
  health_.ProbeBegun(Clock::now());
  meta_->Run([this](nvme::MetaStore&) {
    auto file = std::make_shared<nvme::SegmentFile>();
    file->path = options_.directory + "/probe";
    file->bytes = nvme::kBlockBytes;
    file->state = nvme::SegmentFile::State::kReady;
    file->fd = system_.Open(file->path, O_RDWR | O_CREAT | O_DIRECT);
    auto ended = [this](absl::Status status) {
      post_([self = shared_from_this(), status = std::move(status)] {
        self->health_.ProbeEnded(status, Clock::now());
        self->MakeRoom();
      });
    };
    if (file->fd < 0) {
      ended(nvme::ErrnoStatus(-file->fd, absl::StrCat("open ", file->path)));
      return;
    }
    auto write = std::make_unique<nvme::Transfer>();
    write->direction = nvme::Transfer::Direction::kWrite;
    write->file = file;
    write->head = kernels::AlignedBuffer(nvme::kBlockBytes);
    std::memset(write->head.data(), 0x5a, nvme::kBlockBytes);
    write->finished = [this, file, ended](absl::Status status) {
      if (!status.ok()) {
        ended(std::move(status));
        return;
      }
      auto read = std::make_unique<nvme::Transfer>();
      read->file = file;
      read->head = kernels::AlignedBuffer(nvme::kBlockBytes);
      read->finished = ended;
      io_->Submit(std::move(read));
    };
    io_->Submit(std::move(write));
  });
}

}  // namespace terrace
