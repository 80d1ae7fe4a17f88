// Which segments there are, where the next record goes, and which segment gives way when there is
// no more room. Bookkeeping only, no I/O. Not thread-safe: loop thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tiers/nvme/segment_file.h"

namespace terrace::nvme {

struct Segment {
  std::shared_ptr<SegmentFile> file;
  uint64_t append_offset = 0;  // where the next record goes, if it is the open segment
  uint64_t live_bytes = 0;     // of records that can be read
  uint32_t reads = 0;          // under way: the segment must not be reclaimed
  uint32_t writes = 0;         // not yet durable: neither
  uint32_t pinned = 0;         // live records that must not be dropped: neither
  uint64_t last_use = 0;
  // Every record put here, in the order they became durable. Those erased since stay listed; their
  // ids may have been given to records elsewhere.
  std::vector<RecordId> records;
};

class SegmentTable {
 public:
  // A place for a record, and what must happen to files before it may be written.
  struct Placement {
    Segment* segment = nullptr;
    uint64_t offset = 0;
    bool fresh = false;   // the segment's file must be prepared
    bool reused = false;  // by a new generation of an existing file rather than a new file
    // Reclaimed: rows to delete, live records to drop. Of a reused file, what it was before.
    std::vector<Segment> reclaimed;
  };

  SegmentTable(std::string directory, uint64_t capacity_bytes, uint64_t segment_bytes)
      : directory_(std::move(directory)),
        capacity_bytes_(capacity_bytes),
        segment_bytes_(segment_bytes) {}

  // A segment of an earlier run: never appended to.
  Segment& AddRecovered(std::shared_ptr<SegmentFile> file);
  // Its file was cut to `file_bytes`.
  void Resize(Segment& segment, uint64_t file_bytes);
  // Null when there is no such segment.
  Segment* Find(uint32_t id);
  // Its file could not be prepared, or is not wanted. Requires that nothing uses it.
  void Remove(uint32_t id);
  // Nothing more is appended to it.
  void Seal(uint32_t id);
  void Use(Segment& segment) { segment.last_use = ++clock_; }

  // Room for a record of `bytes`, header included; in a segment of its own when it is longer than
  // a normal one. ResourceExhausted when there is none, and nothing is reclaimed then.
  absl::StatusOr<Placement> Place(uint64_t bytes);

  void Clear() { segments_.clear(); }

  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t size() const { return segments_.size(); }
  std::map<uint32_t, Segment>& all() { return segments_; }

 private:
  bool MayReclaim(const Segment& segment) const;
  Segment* Victim();
  absl::Status MakeSegment(uint64_t file_bytes, Placement& placement);
  Segment Take(uint32_t id);

  const std::string directory_;
  const uint64_t capacity_bytes_;
  const uint64_t segment_bytes_;
  std::map<uint32_t, Segment> segments_;  // by id
  uint32_t next_id_ = 1;
  std::optional<uint32_t> open_;  // appended to
  uint64_t used_bytes_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace terrace::nvme
