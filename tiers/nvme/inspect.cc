#include "tiers/nvme/inspect.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/meta_store.h"
#include "tiers/nvme/recovery.h"
#include "tiers/nvme/segment_file.h"
#include "tiers/nvme/store_directory.h"

namespace terrace::nvme {

namespace {

struct Row {
  SegmentRow row;
  std::string entries;
};

class Inspection {
 public:
  Inspection(System& system, const StoreDirectory& directory, std::string path)
      : system_(system), directory_(directory), path_(std::move(path)) {
    report_.store_id = directory.store_id();
  }

  void ReadSuperblocks();
  void ReadIndex();
  absl::Status ReadSegments(absl::FunctionRef<void(uint64_t, uint64_t)> progress);
  StoreReport Take() { return std::move(report_); }

 private:
  void Report(const std::string& file, uint64_t offset, std::string what) {
    report_.problems.push_back({file, offset, std::move(what)});
  }
  absl::Status Inspect(const FoundSegment& found);
  absl::Status CheckHeader(const FoundSegment& found, const std::string& name);
  bool HasDamagedFooter(const SegmentFile& file);
  // What the segment's row or footer says is in it; nullopt: ask the records.
  std::optional<std::string> NamedEntries(const SegmentFile& file, const std::string& name,
                                          InspectedSegment& segment);
  absl::Status CheckRecords(const SegmentFile& file, const std::string& name,
                            const std::optional<std::string>& named, InspectedSegment& segment);
  void ApplyNotes(InspectedSegment& segment);

  System& system_;
  const StoreDirectory& directory_;
  const std::string path_;
  std::map<uint32_t, Row> rows_;
  Notes notes_;
  StoreReport report_;
};

void Inspection::ReadSuperblocks() {
  for (const char* name : {"superblock", "superblock.copy"}) {
    absl::StatusOr<Superblock> copy = ReadSuperblock(system_, path_ + "/" + name);
    if (!copy.ok()) {
      Report(name, 0,
             absl::IsNotFound(copy.status()) ? "missing" : std::string(copy.status().message()));
    } else if (copy->store_id != directory_.store_id()) {
      Report(name, 0, "of another store");
    }
    report_.superblocks.push_back({name, std::move(copy)});
  }
}

void Inspection::ReadIndex() {
  std::error_code error;
  if (!std::filesystem::exists(directory_.index(), error)) return;
  const auto index = MetaStore::OpenReadOnly(system_, directory_.index());
  if (!index.ok()) {
    Report("index", 0, std::string(index.status().message()));
    return;
  }
  const auto store_id = (*index)->store_id();
  if (!store_id.ok() || (store_id->has_value() && *store_id != directory_.store_id())) {
    Report("index", 0,
           store_id.ok() ? "of another store" : std::string(store_id.status().message()));
    return;
  }
  report_.index_complete = store_id->has_value();
  absl::Status status =
      (*index)->ForEachRow(kSegmentRowPrefix, [&](std::string_view key, std::string_view value) {
        ++report_.rows;
        absl::StatusOr<uint32_t> id = DecodeSegmentRowKey(key);
        absl::StatusOr<SegmentRow> row = TakeSegmentRow(value);
        if (!id.ok() || !row.ok()) {
          Report("index", 0, std::string((id.ok() ? row.status() : id.status()).message()));
          return;
        }
        rows_[*id] = {*row, std::string(value)};
      });
  absl::StatusOr<Notes> notes = ReadNotes(**index);
  if (notes.ok()) notes_ = *std::move(notes);
  status.Update(notes.status());
  report_.notes = notes_.size();
  if (!status.ok()) Report("index", 0, std::string(status.message()));
}

absl::Status Inspection::ReadSegments(absl::FunctionRef<void(uint64_t, uint64_t)> progress) {
  absl::StatusOr<std::vector<FoundSegment>> found =
      OpenSegmentFiles(system_, directory_.segments(), directory_.store_id(), true);
  if (!found.ok()) return found.status();
  uint64_t total = 0, done = 0;
  for (const FoundSegment& segment : *found) total += segment.file->bytes;
  for (const FoundSegment& segment : *found) {
    progress(done, total);
    absl::Status status = Inspect(segment);
    if (!status.ok()) return status;
    done += segment.file->bytes;
    if (report_.index_complete) rows_.erase(segment.file->id);
  }
  if (!report_.index_complete) return absl::OkStatus();
  for (const auto& [id, row] : rows_) {
    Report("segments/" + SegmentName(id), 0, "missing, and the index says what was in it");
  }
  return absl::OkStatus();
}

absl::Status Inspection::Inspect(const FoundSegment& found) {
  SegmentFile& file = *found.file;
  const std::string name = "segments/" + SegmentName(file.id);
  InspectedSegment& segment = report_.segments.emplace_back();
  segment.id = file.id;
  segment.bytes = file.bytes;
  if (found.foreign) {
    segment.state = InspectedSegment::State::kForeign;
    return absl::OkStatus();
  }
  absl::Status status = CheckHeader(found, name);
  if (!status.ok()) return status;
  segment.generation = file.generation;
  const std::optional<std::string> named = NamedEntries(file, name, segment);
  status = CheckRecords(file, name, named, segment);
  if (!status.ok()) return status;
  ApplyNotes(segment);
  for (const InspectedRecord& record : segment.records) {
    const bool live = record.state == InspectedRecord::State::kLive;
    const uint64_t bytes = record.header_bytes + AlignUp(record.meta.payload_bytes, kBlockBytes);
    (live ? segment.live_bytes : segment.dead_bytes) += bytes;
    ++(live ? segment.live_records : segment.dead_records);
    segment.pinned_records += live && (record.meta.flags & kRecordPinned) != 0;
  }
  if (segment.state == InspectedSegment::State::kClean && !segment.records.empty()) {
    segment.state = InspectedSegment::State::kOpen;
  }
  return absl::OkStatus();
}

// Finds out the generation of a file whose header does not say it.
absl::Status Inspection::CheckHeader(const FoundSegment& found, const std::string& name) {
  SegmentFile& file = *found.file;
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr) return absl::ResourceExhaustedError("no memory for a header");
  absl::Status read = ReadBlocks(system_, file, 0, kBlockBytes, block.data());
  absl::StatusOr<SegmentHeader> header = DecodeSegmentHeader({block.data(), kBlockBytes});
  if (read.ok() && header.ok() && found.header_ok) {
    if (file.bytes != header->segment_bytes) {
      Report(name, std::min(file.bytes, header->segment_bytes),
             absl::StrCat("the file has ", file.bytes, " bytes, its header says ",
                          header->segment_bytes));
    }
    const auto row = rows_.find(file.id);
    if (row != rows_.end() && row->second.row.generation > file.generation) {
      Report(name, 0,
             absl::StrCat("the header is of generation ", file.generation, ", the index ",
                          row->second.row.generation));
      file.generation = row->second.row.generation;
    }
    return absl::OkStatus();
  }
  read.Update(header.status());
  Report(name, 0, read.ok() ? "the header is of another segment" : std::string(read.message()));
  absl::StatusOr<uint64_t> newest = ScanForGeneration(system_, file, directory_.store_id());
  if (!newest.ok()) return newest.status();
  const auto row = rows_.find(file.id);
  file.generation = std::max(*newest, row == rows_.end() ? 1 : row->second.row.generation);
  return absl::OkStatus();
}

// Its last block begins as a footer and does not check, so that it may be one of this generation.
bool Inspection::HasDamagedFooter(const SegmentFile& file) {
  kernels::AlignedBuffer block(kBlockBytes);
  if (block.data() == nullptr || file.bytes < 2 * kBlockBytes) return false;
  const ConstBytes bytes{block.data(), kBlockBytes};
  return ReadBlocks(system_, file, file.bytes - kBlockBytes, kBlockBytes, block.data()).ok() &&
         BeginsAsFooter(bytes) && !DecodeFooterBlock(bytes).ok();
}

std::optional<std::string> Inspection::NamedEntries(const SegmentFile& file,
                                                    const std::string& name,
                                                    InspectedSegment& segment) {
  const absl::StatusOr<Footer> last = ReadFooter(system_, file, directory_.store_id());
  const absl::StatusOr<FooterEntries> footer = ReadFooterEntries(system_, file, last);
  segment.footer = footer.ok();
  const auto found = rows_.find(file.id);
  const Row* row = found == rows_.end() ? nullptr : &found->second;
  if (row != nullptr) {
    const bool sealed = row->row.append_offset == 0;
    const bool counts = sealed || directory_.superblock().closed;
    segment.row = report_.index_complete && row->row.generation == file.generation && counts;
    report_.stale_rows += !segment.row;
    if (!segment.row) row = nullptr;
  }
  const bool row_sealed = row != nullptr && row->row.append_offset == 0;
  if (segment.footer || row_sealed) segment.state = InspectedSegment::State::kSealed;
  // A footer that names this generation was whole once, and so was one of a row that is sealed.
  if (!segment.footer && (row_sealed || last.ok() || HasDamagedFooter(file))) {
    Report(name, file.bytes - std::min(file.bytes, kBlockBytes),
           absl::StrCat("footer: ", std::string(footer.status().message())));
  }
  if (segment.footer && row_sealed && footer->entries != row->entries) {
    Report("index", 0, absl::StrCat("the row of ", name, " and its footer differ"));
  }
  if (row != nullptr) return row->entries;
  if (segment.footer) return std::string(footer->entries);
  return std::nullopt;
}

absl::Status Inspection::CheckRecords(const SegmentFile& file, const std::string& name,
                                      const std::optional<std::string>& named,
                                      InspectedSegment& segment) {
  using State = InspectedRecord::State;
  std::map<uint64_t, InspectedRecord> records;
  absl::Status status =
      ScanSegment(system_, file, directory_.store_id(), [&](const ScannedRecord& scanned) {
        const State state = !scanned.whole      ? State::kTorn
                            : named.has_value() ? State::kErased
                                                : State::kLive;
        records[scanned.offset] = {state, scanned.offset,
                                   HeaderBytes(scanned.header.meta.part_ends),
                                   scanned.header.sequence, scanned.header.meta};
      });
  if (!status.ok()) return status;
  std::string_view entries = named.has_value() ? *named : std::string_view();
  RecordEntry entry;
  while (!entries.empty()) {
    status = TakeEntry(entries, entry);
    if (!status.ok()) {
      Report(name, 0, std::string(status.message()));
      break;
    }
    auto [record, missing] = records.try_emplace(entry.offset);
    const bool other = !missing && (record->second.meta.key != entry.meta.key ||
                                    record->second.sequence != entry.sequence);
    if (missing || other) {
      record->second = {State::kDamaged, entry.offset, entry.header_bytes, entry.sequence,
                        entry.meta};
      Report(name, entry.offset,
             absl::StrCat("no header that checks of object ", entry.meta.key.ToHex()));
    } else if (record->second.state == State::kTorn) {
      record->second.state = State::kDamaged;
      Report(name, entry.offset,
             absl::StrCat("the payload of object ", entry.meta.key.ToHex(), " does not check"));
    } else {
      record->second.state = State::kLive;
    }
  }
  for (auto& [offset, record] : records) segment.records.push_back(std::move(record));
  return absl::OkStatus();
}

void Inspection::ApplyNotes(InspectedSegment& segment) {
  for (InspectedRecord& record : segment.records) {
    const auto note = notes_.find({segment.id, segment.generation, record.offset});
    if (note == notes_.end()) continue;
    if (note->second == Note::kErased) {
      if (record.state == InspectedRecord::State::kLive) {
        record.state = InspectedRecord::State::kErased;
      }
      continue;
    }
    record.meta.flags &= static_cast<uint8_t>(~kRecordPinned);
    if (note->second == Note::kPinned) record.meta.flags |= kRecordPinned;
  }
}

}  // namespace

absl::StatusOr<StoreReport> InspectStore(System& system, const std::string& directory,
                                         absl::FunctionRef<void(uint64_t, uint64_t)> progress) {
  const absl::StatusOr<StoreDirectory> opened = StoreDirectory::OpenReadOnly(system, directory);
  if (!opened.ok()) return opened.status();
  uint64_t files = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator entries(opened->segments(), error), end;
       !error && entries != end; entries.increment(error)) {
    ++files;
  }
  absl::Status status = AllowSegments(files);
  if (!status.ok()) return status;
  Inspection inspection(system, *opened, directory);
  inspection.ReadSuperblocks();
  inspection.ReadIndex();
  status = inspection.ReadSegments(progress);
  if (!status.ok()) return status;
  return inspection.Take();
}

}  // namespace terrace::nvme
