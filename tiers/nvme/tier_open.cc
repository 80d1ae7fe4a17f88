// Bringing a store up and down.
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/tier_impl.h"

namespace terrace {

namespace {

absl::Status CheckOptions(const NvmeOptions& options) {
  const auto bad = [](const char* field, uint64_t value, const char* accepted) {
    return absl::InvalidArgumentError(absl::StrCat("nvme ", field, " = ", value, ": ", accepted));
  };
  if (options.directory.empty()) return absl::InvalidArgumentError("nvme directory is empty");
  if (options.segment_bytes < 4 * nvme::kBlockBytes ||
      options.segment_bytes % nvme::kBlockBytes != 0) {
    return bad("segment_bytes", options.segment_bytes, "at least 16384 and a multiple of 4096");
  }
  if (options.capacity_bytes < 2 * options.segment_bytes) {
    return bad("capacity_bytes", options.capacity_bytes, "at least two segments");
  }
  if (options.piece_bytes < nvme::kBlockBytes || options.piece_bytes % nvme::kBlockBytes != 0 ||
      options.piece_bytes > uint64_t{1} << 30) {
    return bad("piece_bytes", options.piece_bytes, "4096 .. 1 GiB and a multiple of 4096");
  }
  if (options.queue_depth == 0 || options.queue_depth > 4096) {
    return bad("queue_depth", options.queue_depth, "1 .. 4096");
  }
  return absl::OkStatus();
}

uint64_t WallClockUs() { return static_cast<uint64_t>(absl::ToUnixMicros(absl::Now())); }

}  // namespace

NvmeTier::Impl::Impl(NvmeOptions options, PostFn post)
    : options_(std::move(options)),
      post_(std::move(post)),
      system_(options_.system != nullptr ? *options_.system : nvme::System::Real()) {}

absl::Status NvmeTier::Impl::Open() {
  absl::Status status = CheckOptions(options_);
  if (status.ok()) status = nvme::AllowSegments(options_.capacity_bytes / options_.segment_bytes);
  if (!status.ok()) return status;
  auto directory = nvme::StoreDirectory::Open(system_, options_.directory, options_.segment_bytes);
  if (!directory.ok()) return directory.status();
  directory_ = *std::move(directory);
  if (!directory_.finding().empty()) spdlog::warn("nvme tier: {}", directory_.finding());
  const nvme::Superblock& superblock = directory_.superblock();
  budget_.emplace(options_.write_budget_bytes_per_day,
                  nvme::WriteBudget::Saved{superblock.budget_bytes, superblock.budget_time_us},
                  WallClockUs());
  segments_.emplace(nvme::SegmentTable::Options{directory_.segments(), options_.capacity_bytes,
                                                options_.segment_bytes, options_.reclaim});
  auto found = nvme::OpenSegmentFiles(system_, directory_.segments(), directory_.store_id());
  if (!found.ok()) return found.status();
  found_ = *std::move(found);
  system_.Step("recovery.segments_opened");
  nvme::IoScheduler::Options io;
  io.system = &system_;
  io.engine = options_.engine;
  io.queue_depth = options_.queue_depth;
  io.piece_bytes = options_.piece_bytes;
  io.read_bytes_per_s = options_.read_limit_bytes_per_s;
  auto scheduler = nvme::IoScheduler::Start(io);
  if (!scheduler.ok()) return scheduler.status();
  io_ = *std::move(scheduler);
  stats_.engine = io_->engine();
  return absl::OkStatus();
}

absl::Status NvmeTier::Impl::LoadSegments(CountVisitor expect, RecordVisitor visit,
                                          nvme::RecoveryFindings& findings, bool& indexed) {
  absl::StatusOr<std::unique_ptr<nvme::MetaStore>> store =
      nvme::OpenIndex(system_, directory_, indexed);
  if (!store.ok()) return store.status();
  store_ = *std::move(store);
  system_.Step("recovery.index_opened");
  // Also those of an index that is not complete: what it has is as good.
  nvme::Notes notes;
  absl::StatusOr<nvme::Notes> read = nvme::ReadNotes(*store_);
  if (!read.ok() && !absl::IsDataLoss(read.status())) return read.status();
  findings.index_damaged = !read.ok();
  if (read.ok()) notes = *std::move(read);
  std::vector<nvme::FoundSegment> left_alone;
  const bool damaged = findings.index_damaged;
  absl::Status status = nvme::RecoverSegments(
      system_, directory_.store_id(), indexed && !damaged ? store_.get() : nullptr,
      directory_.superblock().closed, found_, expect,
      [&](nvme::RecoveredSegment& segment) { AddRecovered(segment, notes, visit, findings); },
      left_alone, findings);
  found_.clear();
  if (!status.ok()) return status;
  for (const nvme::FoundSegment& segment : left_alone) segments_->LeaveAlone(*segment.file);
  if (!damaged && !findings.index_damaged) return CleanIndex(notes, findings, indexed);
  indexed = false;
  store_.reset();
  store = nvme::ReplaceIndex(system_, directory_);
  if (!store.ok()) return store.status();
  store_ = *std::move(store);
  return absl::OkStatus();
}

// Rows and notes of files that are gone would be taken for those of new files with their ids, notes
// of records that were not found for those of records that are put in their place, and rows of
// segments that were not sealed, once the store is closed in order, for the last that is known.
absl::Status NvmeTier::Impl::CleanIndex(const nvme::Notes& notes,
                                        const nvme::RecoveryFindings& findings, bool indexed) {
  nvme::MetaStore::Stale stale;
  stale.every_row = !indexed;
  stale.rows = findings.gone;
  stale.rows.insert(stale.rows.end(), findings.behind.begin(), findings.behind.end());
  stale.noted = findings.gone;
  for (const auto& [place, note] : notes) {
    const Segment* segment = segments_->Find(place.segment_id);
    if (segment == nullptr) {
      if (!segments_->IsLeftAlone(place.segment_id)) stale.noted.push_back(place.segment_id);
    } else if (segment->file->generation == place.generation &&
               segment->state != Segment::State::kSealed &&
               place.offset >= segment->append_offset) {
      stale.notes.push_back(place);
    }
  }
  std::sort(stale.noted.begin(), stale.noted.end());
  stale.noted.erase(std::unique(stale.noted.begin(), stale.noted.end()), stale.noted.end());
  absl::Status status = store_->Clean(stale);
  system_.Step("recovery.index_cleaned");
  return status;
}

absl::Status NvmeTier::Impl::Recover(CountVisitor expect, RecordVisitor visit) {
  nvme::RecoveryFindings findings;
  bool indexed = false;
  absl::Status status = LoadSegments(expect, visit, findings, indexed);
  if (!status.ok()) return status;
  // From here on rows of segments that are not sealed may be behind. Both copies say so, or losing
  // one would bring back the other, which says they are not.
  for (int copies = directory_.superblock().closed ? 2 : 1; copies > 0; --copies) {
    status = directory_.WriteSuperblock(budget_->Save(WallClockUs()), false);
    if (!status.ok()) return status;
  }
  stats_.torn_records = findings.torn_records;
  stats_.lost_records = findings.lost_records;
  lost_ = std::move(findings.lost);
  if (stats_.lost_records > 0) {
    spdlog::warn("nvme tier: {} records are gone with their segments", stats_.lost_records);
  }
  meta_ = std::make_unique<nvme::MetaThread>(*store_);
  recovered_ = true;
  ShrinkToCapacity();
  ResumeOpenSegments();
  std::vector<uint32_t> without_row = std::move(findings.without_row);
  if (!indexed) {
    without_row.clear();
    for (auto& [id, segment] : segments_->all()) {
      if (segment.state == Segment::State::kSealed) without_row.push_back(id);
    }
    if (!without_row.empty()) {
      spdlog::warn("nvme index: rebuilt from {} segments, {} records", segments_->size(),
                   index_.size());
    }
  }
  if (!indexed || !without_row.empty()) IndexNextSegment(std::move(without_row));
  system_.Step("recovery.done");
  return absl::OkStatus();
}

void NvmeTier::Impl::AddEntry(Segment& segment, nvme::RecordEntry& entry, std::string_view encoded,
                              const nvme::Notes& notes, RecordVisitor visit) {
  next_sequence_ = std::max(next_sequence_, entry.sequence + 1);
  segment.order = std::max(segment.order, entry.sequence);
  const auto note = notes.empty()
                        ? notes.end()
                        : notes.find({segment.file->id, segment.file->generation, entry.offset});
  if (note != notes.end()) {
    if (note->second == nvme::Note::kErased) return;
    entry.meta.flags &= static_cast<uint8_t>(~kRecordPinned);
    if (note->second == nvme::Note::kPinned) entry.meta.flags |= kRecordPinned;
  }
  if (segment.records.empty()) {
    segment.record_class = segments_->ClassOf(entry.meta.lifetime, entry.meta.tenant_id);
  }
  const RecordId id = AddRecord(segment, entry);
  if (segment.state != Segment::State::kSealed) {
    segment.entries.emplace_back(id, std::string(encoded));
    segment.entries_bytes += encoded.size();
  }
  visit(id, entry.meta);
}

void NvmeTier::Impl::AddRecovered(const nvme::RecoveredSegment& found, const nvme::Notes& notes,
                                  RecordVisitor visit, nvme::RecoveryFindings& findings) {
  const bool empty = found.entries.empty();
  Segment::State state = Segment::State::kSealed;
  // A file that was cut short has no room for what would follow.
  const bool room =
      std::max(found.append_offset, nvme::kBlockBytes) + nvme::FooterBytes(found.entries.size()) <=
      found.file->bytes;
  if (!found.sealed && found.resumable && room) {
    const bool normal = found.file->bytes == options_.segment_bytes;
    // Where something was, notes may name its place: it takes another generation to be clean.
    const bool untouched = empty && found.append_offset <= nvme::kBlockBytes;
    state = untouched && normal ? Segment::State::kClean : Segment::State::kSealing;
  }
  Segment& segment = segments_->AddRecovered(found.file, state);
  if (!found.sealed) segment.append_offset = std::max(found.append_offset, nvme::kBlockBytes);
  segment.order = 0;
  std::string_view entries = found.entries;
  nvme::RecordEntry entry;
  while (!entries.empty()) {
    const std::string_view before = entries;
    if (!nvme::TakeEntry(entries, entry).ok()) break;  // its checksum was good: never
    const uint64_t end =
        entry.offset + entry.header_bytes + AlignUp(entry.meta.payload_bytes, nvme::kBlockBytes);
    if (end > found.file->bytes) {
      findings.Lose(entry.meta.key);
      continue;
    }
    AddEntry(segment, entry, before.substr(0, before.size() - entries.size()), notes, visit);
  }
}

// Oldest first, whatever their state: nothing uses them yet.
std::vector<NvmeTier::Impl::Segment*> NvmeTier::Impl::SegmentsByAge() {
  std::vector<Segment*> by_age;
  for (auto& [id, segment] : segments_->all()) by_age.push_back(&segment);
  std::sort(by_age.begin(), by_age.end(),
            [](const Segment* a, const Segment* b) { return a->order < b->order; });
  return by_age;
}

// The capacity may be smaller than it was.
void NvmeTier::Impl::ShrinkToCapacity() {
  for (Segment* segment : SegmentsByAge()) {  // clean ones are the oldest: they hold nothing
    if (segments_->used_bytes() <= segments_->capacity_bytes()) return;
    if (segment->pinned_bytes > 0) continue;
    for (RecordId id : LiveRecords(*segment)) Drop(id);
    Discard(*segment);
  }
  if (segments_->used_bytes() <= segments_->capacity_bytes()) return;
  spdlog::warn("nvme tier: what is pinned takes {} bytes of segments, the capacity is {}",
               segments_->used_bytes(), segments_->capacity_bytes());
}

// Of the segments that were not full the newest of each class is written on; the others are sealed.
void NvmeTier::Impl::ResumeOpenSegments() {
  std::vector<Segment*> by_age = SegmentsByAge();
  segments_->SetClock(by_age.size());
  for (size_t i = 0; i < by_age.size(); ++i) by_age[i]->order = i + 1;
  std::reverse(by_age.begin(), by_age.end());
  for (Segment* segment : by_age) {
    if (segment->state != Segment::State::kSealing) continue;
    if (segments_->open(segment->record_class) == nullptr &&
        segment->file->bytes == options_.segment_bytes) {
      segment->state = Segment::State::kOpen;
      segments_->SetOpen(segment->record_class, segment);
      continue;
    }
    Seal(*segment);
  }
}

// One at a time, so that what clients wait for goes in between; the last first.
void NvmeTier::Impl::IndexNextSegment(std::vector<uint32_t> segment_ids) {
  if (stopped_) return;
  if (segment_ids.empty()) {
    meta_->Run([this](nvme::MetaStore& store) {
      absl::Status status = store.PutStoreId(directory_.store_id());
      system_.Step("recovery.index_complete");
      if (!status.ok()) spdlog::warn("nvme index: {}", status.ToString());
    });
    return;
  }
  const uint32_t id = segment_ids.back();
  segment_ids.pop_back();
  Segment* segment = segments_->Find(id);
  // One that was used again gets its row when it is sealed.
  if (segment == nullptr || segment->state != Segment::State::kSealed) {
    IndexNextSegment(std::move(segment_ids));
    return;
  }
  ++segment->reads;
  meta_->Run([this, file = segment->file,
              segment_ids = std::move(segment_ids)](nvme::MetaStore& store) mutable {
    const absl::StatusOr<nvme::FooterEntries> entries = nvme::ReadFooterEntries(
        system_, *file, nvme::ReadFooter(system_, *file, directory_.store_id()));
    // Without a footer it is read once more at the next start.
    if (entries.ok()) {
      absl::Status status = store.PutSegment(
          file->id, nvme::EncodeSegmentRow({file->generation, 0}, entries->entries));
      if (!status.ok()) spdlog::warn("nvme index: {}", status.ToString());
    }
    system_.Step("recovery.segment_indexed");
    post_([self = shared_from_this(), file = std::move(file),
           segment_ids = std::move(segment_ids)]() mutable {
      --self->segments_->Find(file->id)->reads;
      self->IndexNextSegment(std::move(segment_ids));
      self->ContinueDrain();
      self->MakeRoom();
    });
  });
}

void NvmeTier::Impl::SaveBudget() {
  meta_->Run([this, saved = budget_->Save(WallClockUs())](nvme::MetaStore&) {
    absl::Status status = directory_.WriteSuperblock(saved, false);
    if (!status.ok())
      spdlog::warn("nvme tier: the write budget was not saved: {}", status.ToString());
  });
}

// So that the next start need not read through segments that are not sealed.
void NvmeTier::Impl::SaveForRestart() {
  bool complete = waiting_.empty();
  for (auto& [id, segment] : segments_->all()) complete = complete && segment.writes == 0;
  std::vector<std::pair<uint32_t, std::string>> rows;
  for (auto& [id, segment] : segments_->all()) {
    if (segment.state == Segment::State::kSealed || segment.state == Segment::State::kDraining) {
      continue;
    }
    // Once there is a footer, nothing may follow that it does not name.
    const uint64_t append_offset = segment.sealing_begun ? 0 : segment.append_offset;
    rows.emplace_back(id, nvme::EncodeSegmentRow({segment.file->generation, append_offset},
                                                 LiveEntries(segment)));
  }
  meta_->Run([this, complete, rows = std::move(rows),
              saved = budget_->SaveAll(WallClockUs())](nvme::MetaStore& store) {
    absl::Status status;
    for (const auto& [id, row] : rows) {
      if (status.ok()) status = store.PutSegment(id, row);
    }
    system_.Step("stop.rows_written");
    const bool closed = complete && status.ok() && !rows_behind_;
    absl::Status written = directory_.WriteSuperblock(saved, closed);
    if (!written.ok()) spdlog::warn("nvme tier: {}", written.ToString());
  });
}

void NvmeTier::Impl::Stop() {
  stopped_ = true;
  if (io_ != nullptr) io_->Stop();  // hands the last writes to the loop, which may not run again
  if (recovered_) SaveForRestart();
  meta_.reset();
  io_.reset();
  store_.reset();
  found_.clear();
  directory_ = nvme::StoreDirectory();  // unlocks: another may open from here on
}

NvmeStats NvmeTier::Impl::Stats() const {
  NvmeStats stats = stats_;
  stats.capacity_bytes = segments_->capacity_bytes();
  stats.used_bytes = segments_->used_bytes();
  stats.segments = segments_->size();
  stats.clean_segments = segments_->clean();
  stats.live_bytes = live_bytes_;
  stats.records = index_.size();
  stats.health = health_.Describe(Clock::now());
  stats.read_bytes_per_s = io_ != nullptr ? io_->read_bytes_per_s() : 0;
  stats.write_bytes_per_s = io_ != nullptr ? io_->write_bytes_per_s() : 0;
  return stats;
}

}  // namespace terrace
