#include "tiers/nvme/segment_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace::nvme {

Segment& SegmentTable::AddRecovered(std::shared_ptr<SegmentFile> file) {
  const uint32_t id = file->id;
  next_id_ = std::max(next_id_, id + 1);
  used_bytes_ += file->bytes;
  Segment& segment = segments_[id];
  segment.append_offset = file->bytes;
  segment.file = std::move(file);
  return segment;
}

void SegmentTable::Resize(Segment& segment, uint64_t file_bytes) {
  used_bytes_ = used_bytes_ - segment.file->bytes + file_bytes;
  segment.file->bytes = segment.append_offset = file_bytes;
}

Segment* SegmentTable::Find(uint32_t id) {
  auto segment = segments_.find(id);
  return segment == segments_.end() ? nullptr : &segment->second;
}

void SegmentTable::Remove(uint32_t id) { Take(id); }

Segment SegmentTable::Take(uint32_t id) {
  auto node = segments_.extract(id);
  used_bytes_ -= node.mapped().file->bytes;
  Seal(id);
  return std::move(node.mapped());
}

void SegmentTable::Seal(uint32_t id) {
  if (open_ == id) open_.reset();
}

bool SegmentTable::MayReclaim(const Segment& segment) const {
  return segment.reads == 0 && segment.writes == 0 && segment.pinned == 0 &&
         open_ != segment.file->id;
}

// A segment that is mostly dead costs little to lose: the one with the fewest live bytes goes
// first. When all are mostly live, the one that was used longest ago.
Segment* SegmentTable::Victim() {
  Segment* sparsest = nullptr;
  Segment* oldest = nullptr;
  for (auto& [id, segment] : segments_) {
    if (!MayReclaim(segment)) continue;
    const bool sparse = segment.live_bytes < segment.file->bytes / 2;
    if (sparse && (sparsest == nullptr || segment.live_bytes < sparsest->live_bytes)) {
      sparsest = &segment;
    }
    if (oldest == nullptr || segment.last_use < oldest->last_use) oldest = &segment;
  }
  return sparsest != nullptr ? sparsest : oldest;
}

absl::Status SegmentTable::MakeSegment(uint64_t file_bytes, Placement& placement) {
  uint64_t reclaimable = 0;
  uint32_t empty = 0;  // a segment that can be reused at no loss
  for (const auto& [id, segment] : segments_) {
    if (!MayReclaim(segment)) continue;
    reclaimable += segment.file->bytes;
    if (segment.live_bytes == 0 && segment.file->bytes == file_bytes) empty = id;
  }
  if (used_bytes_ - reclaimable + file_bytes > capacity_bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "nvme tier: no room for a segment of ", file_bytes, " bytes: ", used_bytes_, " of ",
        capacity_bytes_, " bytes are in use and ", reclaimable, " of them may be reclaimed"));
  }
  if (empty != 0) placement.reclaimed.push_back(Take(empty));
  while (used_bytes_ + file_bytes > capacity_bytes_) {
    placement.reclaimed.push_back(Take(Victim()->file->id));
  }

  auto file = std::make_shared<SegmentFile>();
  file->bytes = file_bytes;
  if (!placement.reclaimed.empty() && placement.reclaimed.back().file->bytes == file_bytes) {
    // Nobody else uses the old file: its descriptor moves to the new generation.
    SegmentFile& old = *placement.reclaimed.back().file;
    file->id = old.id;
    file->generation = old.generation + 1;
    file->path = old.path;
    file->fd = std::exchange(old.fd, -1);
    placement.reused = true;
  } else {
    file->id = next_id_++;
    file->path = absl::StrCat(directory_, "/", SegmentName(file->id));
  }
  used_bytes_ += file_bytes;
  Segment& segment = segments_[file->id];
  segment.file = std::move(file);
  segment.append_offset = kBlockBytes;
  placement.segment = &segment;
  placement.fresh = true;
  return absl::OkStatus();
}

absl::StatusOr<SegmentTable::Placement> SegmentTable::Place(uint64_t bytes) {
  Placement placement;
  const bool own_segment = bytes > segment_bytes_ - kBlockBytes;
  if (!own_segment && open_.has_value()) {
    Segment& open = segments_.at(*open_);
    if (open.append_offset + bytes <= open.file->bytes) {
      placement.segment = &open;
    } else {
      open_.reset();
    }
  }
  if (placement.segment == nullptr) {
    absl::Status status =
        MakeSegment(own_segment ? kBlockBytes + bytes : segment_bytes_, placement);
    if (!status.ok()) return status;
    if (!own_segment) open_ = placement.segment->file->id;
  }
  placement.offset = placement.segment->append_offset;
  placement.segment->append_offset += bytes;
  Use(*placement.segment);
  return placement;
}

}  // namespace terrace::nvme
