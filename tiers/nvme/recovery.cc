#include "tiers/nvme/recovery.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/footer_reader.h"

namespace terrace::nvme {

namespace {

// Whether the index says it is complete for this store. DataLoss when it cannot be trusted.
absl::StatusOr<bool> CheckIndex(const MetaStore& index, const StoreId& store_id) {
  absl::StatusOr<std::optional<StoreId>> complete_for = index.store_id();
  if (!complete_for.ok()) return complete_for.status();
  if (!complete_for->has_value()) return false;
  if (**complete_for != store_id) return absl::DataLossError("index of another store");
  return true;
}

class SegmentRecovery {
 public:
  SegmentRecovery(System& system, const StoreId& store_id, VisitSegment visit,
                  RecoveryFindings& findings)
      : system_(system), store_id_(store_id), visit_(visit), findings_(findings) {}

  // From the rows of the index; what they cover is in `covered`.
  absl::Status FromIndex(const MetaStore& index, bool closed,
                         const std::vector<FoundSegment>& found,
                         absl::flat_hash_set<uint32_t>& covered);
  // From the segment itself. False: it is of another store.
  absl::StatusOr<bool> FromFile(const FoundSegment& found, absl::StatusOr<FooterEntries> footer);

 private:
  absl::Status FromRow(const FoundSegment* found, std::string_view value, bool closed,
                       absl::flat_hash_set<uint32_t>& covered);
  absl::Status FromRecords(RecoveredSegment& segment);

  System& system_;
  const StoreId store_id_;
  VisitSegment visit_;
  RecoveryFindings& findings_;
};

absl::Status SegmentRecovery::FromRow(const FoundSegment* found, std::string_view value,
                                      bool closed, absl::flat_hash_set<uint32_t>& covered) {
  absl::StatusOr<SegmentRow> row = TakeSegmentRow(value);
  if (!row.ok()) {
    spdlog::warn("nvme index: {}; the segment itself is read", row.status().ToString());
    return absl::OkStatus();
  }
  const bool sealed = row->append_offset == 0;
  if (found == nullptr) {
    RecordEntry entry;
    while (!value.empty() && TakeEntry(value, entry).ok()) findings_.Lose(entry.meta.key);
    return absl::OkStatus();
  }
  if (found->unreadable) return absl::OkStatus();
  // A header is synced before any row of its generation: an earlier one is not the last there was.
  const bool header_ok = found->header_ok && found->file->generation >= row->generation;
  if (!header_ok) {
    spdlog::warn("{}: its header does not check, or is of an earlier generation than its row",
                 found->file->path);
    // The row is a witness, and the records are: it may be from before the file was used again.
    absl::StatusOr<uint64_t> newest = ScanForGeneration(system_, *found->file, store_id_);
    if (absl::IsUnavailable(newest.status())) return absl::OkStatus();
    if (!newest.ok()) return newest.status();
    found->file->generation = std::max(row->generation, *newest);
  }
  if (!sealed && !closed) findings_.behind.push_back(found->file->id);
  if (found->file->generation != row->generation || (!sealed && !closed)) return absl::OkStatus();
  RecoveredSegment segment;
  segment.file = found->file;
  segment.sealed = sealed;
  segment.resumable = !sealed && header_ok;
  segment.append_offset = row->append_offset;
  segment.entries = value;
  covered.insert(found->file->id);
  visit_(segment);
  return absl::OkStatus();
}

absl::Status SegmentRecovery::FromIndex(const MetaStore& index, bool closed,
                                        const std::vector<FoundSegment>& found,
                                        absl::flat_hash_set<uint32_t>& covered) {
  auto next = found.begin();  // both are in order of id
  absl::Status status;
  absl::Status read =
      index.ForEachRow(kSegmentRowPrefix, [&](std::string_view key, std::string_view value) {
        absl::StatusOr<uint32_t> id = DecodeSegmentRowKey(key);
        if (!id.ok() || !status.ok()) return;
        while (next != found.end() && next->file->id < *id) ++next;
        const bool there = next != found.end() && next->file->id == *id;
        if (!there) findings_.gone.push_back(*id);
        status = FromRow(there ? &*next : nullptr, value, closed, covered);
      });
  return status.ok() ? read : status;
}

absl::Status SegmentRecovery::FromRecords(RecoveredSegment& segment) {
  const SegmentFile& file = *segment.file;
  std::string entries;
  segment.append_offset = kBlockBytes;
  absl::Status status = ScanSegment(system_, file, store_id_, [&](const ScannedRecord& record) {
    if (!record.whole) {
      ++findings_.torn_records;
      return;
    }
    const RecordMeta& meta = record.header.meta;
    const uint64_t header_bytes = HeaderBytes(meta.part_ends);
    AppendEntry({record.offset, header_bytes, record.header.sequence, meta}, entries);
    segment.append_offset = record.offset + header_bytes + AlignUp(meta.payload_bytes, kBlockBytes);
  });
  if (!status.ok()) return status;
  segment.entries = entries;
  visit_(segment);
  return absl::OkStatus();
}

absl::StatusOr<bool> SegmentRecovery::FromFile(const FoundSegment& found,
                                               absl::StatusOr<FooterEntries> footer) {
  SegmentFile& file = *found.file;
  if (found.unreadable) return absl::UnavailableError("its header cannot be read");
  if (!found.header_ok) {
    absl::StatusOr<uint64_t> generation = ScanForGeneration(system_, file, store_id_);
    if (!generation.ok()) return generation.status();
    if (*generation == 0 && found.foreign) return false;
    file.generation = std::max<uint64_t>(*generation, 1);
    footer = ReadFooterEntries(system_, file, ReadFooter(system_, file, store_id_));
  }
  RecoveredSegment segment;
  segment.file = found.file;
  segment.resumable = found.header_ok;
  system_.Step("recovery.footer_read");
  if (absl::IsUnavailable(footer.status()) || absl::IsResourceExhausted(footer.status())) {
    return footer.status();
  }
  if (!footer.ok()) {
    absl::Status status = FromRecords(segment);
    system_.Step("recovery.segment_scanned");
    if (!status.ok()) return status;
    return true;
  }
  findings_.without_row.push_back(file.id);
  segment.sealed = true;
  segment.entries = footer->entries;
  visit_(segment);
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetaStore>> ReplaceIndex(System& system,
                                                        const StoreDirectory& directory) {
  absl::StatusOr<std::string> aside = directory.MoveIndexAside();
  if (!aside.ok()) return aside.status();
  system.Step("recovery.index_moved_aside");
  spdlog::warn("nvme index: damaged; moved to {}", *aside);
  return MetaStore::Open(system, directory.index());
}

absl::StatusOr<std::unique_ptr<MetaStore>> OpenIndex(System& system,
                                                     const StoreDirectory& directory,
                                                     bool& complete) {
  absl::StatusOr<std::unique_ptr<MetaStore>> index = MetaStore::Open(system, directory.index());
  absl::StatusOr<bool> checked = false;
  if (index.ok()) {
    checked = CheckIndex(**index, directory.store_id());
  } else {
    checked = index.status();
  }
  complete = checked.value_or(false);
  if (checked.ok()) return index;
  if (!absl::IsDataLoss(checked.status())) return checked.status();
  spdlog::warn("{}", std::string(checked.status().message()));
  index = absl::UnavailableError("closed");  // before its files move
  return ReplaceIndex(system, directory);
}

absl::StatusOr<Notes> ReadNotes(const MetaStore& index) {
  Notes notes;
  absl::Status status =
      index.ForEachRow(kNotePrefix, [&](std::string_view key, std::string_view value) {
        absl::StatusOr<Place> place = DecodeNoteKey(key);
        if (!place.ok() || value.size() != 1) return;
        notes[*place] = static_cast<Note>(value[0]);
      });
  if (!status.ok()) return status;
  return notes;
}

absl::Status RecoverSegments(System& system, const StoreId& store_id, const MetaStore* index,
                             bool closed, const std::vector<FoundSegment>& found,
                             ExpectRecords expect, VisitSegment visit,
                             std::vector<FoundSegment>& left_alone, RecoveryFindings& findings) {
  SegmentRecovery recovery(system, store_id, visit, findings);
  absl::flat_hash_set<uint32_t> covered;
  if (index != nullptr) {
    expect(index->ApproximateBytes() / EntryBytes({}));
    absl::Status status = recovery.FromIndex(*index, closed, found, covered);
    if (!status.ok() && !absl::IsDataLoss(status)) return status;
    findings.index_damaged = !status.ok();
    system.Step("recovery.rows_loaded");
  }
  std::vector<const FoundSegment*> rest;
  std::vector<const SegmentFile*> files;
  for (const FoundSegment& segment : found) {
    if (covered.contains(segment.file->id)) continue;
    rest.push_back(&segment);
    files.push_back(segment.file.get());
  }
  FooterReader footers(system, store_id, std::move(files));
  if (index == nullptr) expect(footers.record_count());
  for (size_t i = 0; i < rest.size(); ++i) {
    absl::StatusOr<bool> ours = recovery.FromFile(*rest[i], footers.Take(i));
    const std::string& path = rest[i]->file->path;
    if (ours.ok() && *ours) continue;
    if (ours.ok()) {
      spdlog::warn("{} is of another store and left alone", path);
    } else if (absl::IsUnavailable(ours.status())) {
      spdlog::error("{} cannot be read and is left alone until the next start: {}", path,
                    ours.status().ToString());
    } else {
      return ours.status();
    }
    left_alone.push_back(*rest[i]);
  }
  return absl::OkStatus();
}

}  // namespace terrace::nvme
