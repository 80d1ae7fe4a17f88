#include "tiers/nvme/segment_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace terrace::nvme {

namespace {

// A store of fewer segments has one class and no reserve: they would take too large a part of it.
constexpr uint64_t kManySegments = 8;
constexpr uint64_t kSegmentsApart = 4;  // for each tenant that is kept apart, besides

RecordClass ApartClass(uint32_t tenant_id) { return uint64_t{tenant_id} + kLifetimes; }
uint32_t ApartTenant(RecordClass record_class) {
  return static_cast<uint32_t>(record_class - kLifetimes);
}

}  // namespace

SegmentTable::SegmentTable(Options options) : options_(std::move(options)) { ChooseClasses(); }

void SegmentTable::ChooseClasses() {
  classes_ = options_.capacity_bytes / options_.segment_bytes >= kManySegments ? kLifetimes : 1;
  reclaim_reserve_ = classes_ > 1 && options_.reclaim == ReclaimPolicy::kReuse ? 1 : 0;
  clean_reserve_ = classes_ > 1 ? reclaim_reserve_ + 2 : 0;
}

std::vector<Segment*> SegmentTable::SetCapacity(uint64_t bytes) {
  options_.capacity_bytes = bytes;
  ChooseClasses();
  return WithoutClass();
}

std::vector<Segment*> SegmentTable::KeepApart(std::set<uint32_t> tenant_ids) {
  apart_ = std::move(tenant_ids);
  return WithoutClass();
}

std::vector<Segment*> SegmentTable::WithoutClass() const {
  std::vector<Segment*> closed;
  for (const auto& [record_class, segment] : open_) {
    const bool there = KeptApart(record_class)
                           ? ClassOf(Lifetime::kCold, ApartTenant(record_class)) == record_class
                           : record_class < static_cast<RecordClass>(classes_);
    if (!there) closed.push_back(segment);
  }
  return closed;
}

RecordClass SegmentTable::ClassOf(Lifetime lifetime, uint32_t tenant_id) const {
  if (classes_ == 1) return 0;
  const uint64_t segments = options_.capacity_bytes / options_.segment_bytes;
  const bool enough = segments >= kManySegments + kSegmentsApart * apart_.size();
  if (enough && apart_.contains(tenant_id)) return ApartClass(tenant_id);
  return static_cast<RecordClass>(lifetime);
}

Segment* SegmentTable::open(RecordClass record_class) const {
  const auto found = open_.find(record_class);
  return found == open_.end() ? nullptr : found->second;
}

Segment& SegmentTable::AddRecovered(std::shared_ptr<SegmentFile> file, Segment::State state) {
  const uint32_t id = file->id;
  next_id_ = std::max(next_id_, id + 1);
  used_bytes_ += file->bytes;
  Segment& segment = segments_[id];
  segment.state = state;
  segment.append_offset = kBlockBytes;
  segment.order = ++clock_;
  segment.file = std::move(file);
  if (state == Segment::State::kClean) clean_.insert(id);
  return segment;
}

void SegmentTable::LeaveAlone(const SegmentFile& file) {
  left_alone_.insert(file.id);
  next_id_ = std::max(next_id_, file.id + 1);
  used_bytes_ += file.bytes;
}

Segment* SegmentTable::Find(uint32_t id) {
  auto segment = segments_.find(id);
  return segment == segments_.end() ? nullptr : &segment->second;
}

void SegmentTable::Remove(uint32_t id) {
  auto found = segments_.find(id);
  Close(found->second);
  used_bytes_ -= found->second.file->bytes;
  clean_.erase(id);
  segments_.erase(found);
}

void SegmentTable::SetOpen(RecordClass record_class, Segment* segment) {
  open_[record_class] = segment;
}

void SegmentTable::Close(const Segment& segment) {
  std::erase_if(open_, [&](const auto& open) { return open.second == &segment; });
}

void SegmentTable::Begin(Segment& segment, RecordClass record_class) {
  segment.record_class = record_class;
  segment.state = Segment::State::kOpen;
  segment.order = ++clock_;
}

bool SegmentTable::Fits(const Segment& segment, uint64_t record_bytes, uint64_t entry_bytes) const {
  return segment.append_offset + record_bytes + FooterBytes(segment.entries_bytes + entry_bytes) <=
         segment.file->bytes;
}

uint64_t SegmentTable::Append(Segment& segment, uint64_t record_bytes, uint64_t entry_bytes) {
  segment.entries_bytes += entry_bytes;
  return std::exchange(segment.append_offset, segment.append_offset + record_bytes);
}

uint64_t SegmentTable::FileBytesFor(uint64_t record_bytes, uint64_t entry_bytes) const {
  return std::max(options_.segment_bytes, kBlockBytes + record_bytes + FooterBytes(entry_bytes));
}

uint64_t SegmentTable::Available() const {
  const uint64_t unused =
      options_.capacity_bytes > used_bytes_ ? options_.capacity_bytes - used_bytes_ : 0;
  return clean_.size() + unused / options_.segment_bytes;
}

Segment* SegmentTable::TakeClean(uint64_t file_bytes, bool reclaiming, bool& fresh) {
  const bool normal = file_bytes == options_.segment_bytes;
  if (normal && !reclaiming && Available() <= reclaim_reserve_) return nullptr;
  fresh = false;
  for (uint32_t id : clean_) {
    Segment& segment = segments_.at(id);
    if (segment.file->bytes != file_bytes) continue;
    clean_.erase(id);
    return &segment;
  }
  if (used_bytes_ + file_bytes > options_.capacity_bytes) return nullptr;
  auto file = std::make_shared<SegmentFile>();
  file->id = next_id_++;
  file->bytes = file_bytes;
  file->path = absl::StrCat(options_.directory, "/", SegmentName(file->id));
  used_bytes_ += file_bytes;
  Segment& segment = segments_[file->id];
  segment.file = std::move(file);
  segment.append_offset = kBlockBytes;
  fresh = true;
  return &segment;
}

bool SegmentTable::WantsReclaim() const { return Available() < clean_reserve_; }

bool SegmentTable::MayReclaim(const Segment& segment) const {
  if (segment.state != Segment::State::kSealed || segment.reads > 0 || segment.writes > 0) {
    return false;
  }
  // Pinned records move with the others, when there is room for them and it is worth it.
  return segment.pinned_bytes == 0 ||
         (classes_ > 1 && !segment.unmovable && segment.pinned_bytes <= segment.file->bytes / 2);
}

// Cost-benefit of the log-structured file system: what is gained over what it costs, times how
// long it is likely to last.
double SegmentTable::Benefit(const Segment& segment) const {
  const uint64_t wanted_bytes =
      KeptApart(segment.record_class) ? segment.live_bytes : segment.wanted_bytes;
  const double kept = static_cast<double>(wanted_bytes) / static_cast<double>(segment.file->bytes);
  return (1 - kept) / (1 + kept) * static_cast<double>(clock_ - segment.order + 1);
}

Segment* SegmentTable::Victim() {
  const bool by_order = options_.reclaim == ReclaimPolicy::kFifo || classes_ == 1;
  Segment* best = nullptr;
  uint64_t sealing = UINT64_MAX;  // the oldest one that is about to be sealed
  for (auto& [id, segment] : segments_) {
    if (segment.state == Segment::State::kSealing) sealing = std::min(sealing, segment.order);
    if (!MayReclaim(segment)) continue;
    if (segment.live_bytes == 0) return &segment;
    const bool better = best == nullptr || (by_order ? segment.order < best->order
                                                     : Benefit(segment) > Benefit(*best));
    if (better) best = &segment;
  }
  return best != nullptr && by_order && sealing < best->order ? nullptr : best;
}

void SegmentTable::Use(Segment& segment) {
  if (classes_ == 1 && options_.reclaim == ReclaimPolicy::kReuse) segment.order = ++clock_;
}

Segment* SegmentTable::AnyClean() {
  return clean_.empty() ? nullptr : &segments_.at(*clean_.begin());
}

bool SegmentTable::busy() const {
  return std::any_of(segments_.begin(), segments_.end(), [](const auto& entry) {
    const Segment& segment = entry.second;
    return segment.reads > 0 || segment.writes > 0 || segment.state == Segment::State::kSealing ||
           segment.state == Segment::State::kDraining;
  });
}

Segment SegmentTable::Recycle(Segment& segment) {
  Segment before = std::exchange(segment, Segment());
  auto file = std::make_shared<SegmentFile>();
  file->id = before.file->id;
  file->generation = before.file->generation + 1;
  file->path = before.file->path;
  file->bytes = before.file->bytes;
  file->fd = std::exchange(before.file->fd, -1);
  segment.file = std::move(file);
  segment.append_offset = kBlockBytes;
  clean_.insert(segment.file->id);
  return before;
}

void SegmentTable::Count(Segment& segment, const RecordIndex::Record& record, int sign) {
  const auto bytes = static_cast<int64_t>(record.stored_bytes()) * sign;
  segment.live_bytes += bytes;
  if (record.wanted()) segment.wanted_bytes += bytes;
  if (record.pinned != 0) segment.pinned_bytes += bytes;
}

}  // namespace terrace::nvme
