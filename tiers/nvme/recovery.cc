#include "tiers/nvme/recovery.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/buffer.h"
#include "kernels/checksum.h"
#include "spdlog/spdlog.h"

namespace terrace::nvme {

namespace {

constexpr int kRowsPerBatch = 256;

// The filters of a record found by scanning, from its identity part; none if that does not check.
std::vector<GrainFilter> ReadGrainFilters(const SegmentFile& file, uint64_t offset,
                                          const RecordMeta& meta) {
  const uint64_t bytes = IdentityBytes(meta.grain_count);
  if (bytes == 0 || meta.part_ends[0] != bytes) return {};
  kernels::AlignedBuffer identity(AlignUp(bytes, kBlockBytes));
  if (identity.data() == nullptr ||
      !ReadBlocks(file, offset + kBlockBytes, identity.size_bytes(), identity.data()).ok() ||
      kernels::Crc32c(identity.data(), bytes) != meta.part_crcs[0]) {
    return {};
  }
  return GrainFilters(meta, identity.data());
}

// The newest generation among a segment's record headers, 0 without any.
absl::StatusOr<uint64_t> ScanForGeneration(SegmentFile& file, const StoreId& store_id) {
  uint64_t newest = 0;
  file.generation = 0;  // of no record, so every block is looked at
  absl::Status status = ScanSegment(file, store_id, [&](uint64_t, const RecordHeader& header) {
    newest = std::max(newest, header.generation);
  });
  if (!status.ok()) return status;
  return newest;
}

absl::Status RebuildIndex(const StoreId& store_id, std::vector<FoundSegment>& found,
                          MetaStore& index) {
  uint64_t records = 0;
  for (FoundSegment& segment : found) {
    SegmentFile& file = *segment.file;
    if (!segment.header_ok) {
      absl::StatusOr<uint64_t> generation = ScanForGeneration(file, store_id);
      if (!generation.ok()) return generation.status();
      file.generation = *generation;
    }
    MetaBatch batch;
    int batched = 0;
    absl::Status written;
    absl::Status status =
        ScanSegment(file, store_id, [&](uint64_t offset, const RecordHeader& header) {
          if (header.generation != file.generation || !written.ok()) return;
          IndexRow row{header.generation, header.sequence, header.meta};
          row.meta.grain_filters = ReadGrainFilters(file, offset, row.meta);
          batch.Put({file.id, offset}, EncodeRow(row));
          ++records;
          if (++batched < kRowsPerBatch) return;
          written = index.Write(std::exchange(batch, MetaBatch()), false);
          batched = 0;
        });
    if (status.ok()) status = written;
    if (status.ok()) status = index.Write(std::move(batch), false);
    if (!status.ok()) return status;
  }
  MetaBatch complete;
  complete.PutStoreId(store_id);
  absl::Status status = index.Write(std::move(complete), true);
  if (status.ok() && !found.empty()) {
    spdlog::warn("nvme index rebuilt: {} records in {} segments", records, found.size());
  }
  return status;
}

// Whether the index says it is complete for this store, and every block of it can be read.
// Remembers the newest generation of each segment's rows. DataLoss when it cannot be trusted.
absl::StatusOr<bool> CheckIndex(const MetaStore& index, const StoreId& store_id,
                                std::map<uint32_t, uint64_t>& generations) {
  absl::StatusOr<std::optional<StoreId>> complete_for = index.store_id();
  if (!complete_for.ok()) return complete_for.status();
  if (complete_for->has_value() && **complete_for != store_id) {
    return absl::DataLossError("index of another store");
  }
  absl::Status status = index.ForEachRow([&](std::string_view key, std::string_view value) {
    absl::StatusOr<RowKey> place = DecodeRowKey(key);
    absl::StatusOr<IndexRow> row = DecodeRow(value);
    if (!place.ok() || !row.ok()) return;
    uint64_t& newest = generations[place->segment_id];
    newest = std::max(newest, row->generation);
  });
  if (!status.ok()) return status;
  return complete_for->has_value();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetaStore>> OpenIndex(const StoreDirectory& directory,
                                                     std::vector<FoundSegment>& found) {
  std::map<uint32_t, uint64_t> generations;
  absl::StatusOr<std::unique_ptr<MetaStore>> index = MetaStore::Open(directory.index());
  absl::StatusOr<bool> complete = false;
  if (index.ok()) {
    complete = CheckIndex(**index, directory.store_id(), generations);
  } else {
    complete = index.status();
  }
  if (!complete.ok()) {
    if (absl::IsResourceExhausted(complete.status())) return complete.status();
    index = absl::UnavailableError("closed");  // before its files move
    absl::StatusOr<std::string> aside = directory.MoveIndexAside();
    if (!aside.ok()) return aside.status();
    spdlog::warn("{}; moved to {}", std::string(complete.status().message()), *aside);
    index = MetaStore::Open(directory.index());
    if (!index.ok()) return index.status();
    complete = false;
  }
  if (!*complete) {
    absl::Status status = RebuildIndex(directory.store_id(), found, **index);
    if (!status.ok()) return status;
    return index;
  }
  for (FoundSegment& segment : found) {
    if (segment.header_ok) continue;
    segment.file->generation = generations[segment.file->id];
    spdlog::warn("{}: header does not check; its records are checked one by one as they are read",
                 segment.file->path);
  }
  return index;
}

absl::StatusOr<uint64_t> LoadRows(MetaStore& index, const std::vector<FoundSegment>& found,
                                  VisitRow visit) {
  std::map<uint32_t, const SegmentFile*> files;
  for (const FoundSegment& segment : found) files[segment.file->id] = segment.file.get();
  MetaBatch lost_rows;
  uint64_t lost = 0;
  absl::Status status = index.ForEachRow([&](std::string_view key, std::string_view value) {
    absl::StatusOr<RowKey> place = DecodeRowKey(key);
    absl::StatusOr<IndexRow> row = DecodeRow(value);
    if (place.ok() && row.ok()) {
      auto file = files.find(place->segment_id);
      const bool whole =
          file != files.end() && file->second->generation == row->generation &&
          place->offset <= file->second->bytes &&
          RecordBytes(row->meta.payload_bytes) <= file->second->bytes - place->offset;
      if (whole) {
        visit(*place, *row);
        return;
      }
    }
    ++lost;
    lost_rows.DeleteRaw(key);
  });
  if (!status.ok()) return status;
  if (lost > 0) {
    spdlog::warn("nvme index: {} records are gone with their segments", lost);
    status = index.Write(std::move(lost_rows), false);
    if (!status.ok()) return status;
  }
  return lost;
}

}  // namespace terrace::nvme
