// What happens between files and a running tier: from the index where it is good, from footers
// where it is not, from records where there are no footers. Blocking.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/meta_store.h"
#include "tiers/nvme/segment_file.h"
#include "tiers/nvme/store_directory.h"

namespace terrace::nvme {

struct RecoveredSegment {
  std::shared_ptr<SegmentFile> file;
  bool sealed = false;
  bool resumable = false;      // not sealed, and records may be appended
  uint64_t append_offset = 0;  // when not sealed
  std::string_view entries;    // back to back; for as long as the visit lasts
};

// What was lost or odd, for people and for counters.
struct RecoveryFindings {
  uint64_t torn_records = 0;   // whose write never ended: they were never durable
  uint64_t lost_records = 0;   // that were durable and whose segment is gone, or cut short
  bool index_damaged = false;  // found while it was read: it must be made anew
  std::vector<uint32_t> gone;  // segments that have a row and no file
  // Segments whose row is of a stop that did not end, and sealed ones that were found without.
  std::vector<uint32_t> behind, without_row;
  std::vector<ObjectKey> lost;  // their keys, the first kMaxLostKeys
  static constexpr size_t kMaxLostKeys = 65536;

  void Lose(const ObjectKey& key) {
    ++lost_records;
    if (lost.size() < kMaxLostKeys) lost.push_back(key);
  }
};

using Notes = absl::flat_hash_map<Place, Note>;

// Opens the index. One that is missing, unreadable or of another store is moved aside, an empty one
// is made, and `complete` is false.
absl::StatusOr<std::unique_ptr<MetaStore>> OpenIndex(System& system,
                                                     const StoreDirectory& directory,
                                                     bool& complete);

// Moves a damaged index, which is closed, aside, and makes an empty one.
absl::StatusOr<std::unique_ptr<MetaStore>> ReplaceIndex(System& system,
                                                        const StoreDirectory& directory);

// DataLoss when the index is damaged.
absl::StatusOr<Notes> ReadNotes(const MetaStore& index);

// Visits every segment of `found` once, except those of other stores and those that the device does
// not give now, whose records must not be written over: `left_alone`. `closed`: the store was
// closed in order, so that rows of segments that are not sealed are complete. Null `index`: as if
// it held nothing. What a damaged index does not say, the segments do. `expect` is told first how
// many records there are, about.
using ExpectRecords = absl::FunctionRef<void(uint64_t records)>;
using VisitSegment = absl::FunctionRef<void(RecoveredSegment& segment)>;
absl::Status RecoverSegments(System& system, const StoreId& store_id, const MetaStore* index,
                             bool closed, const std::vector<FoundSegment>& found,
                             ExpectRecords expect, VisitSegment visit,
                             std::vector<FoundSegment>& left_alone, RecoveryFindings& findings);

}  // namespace terrace::nvme
