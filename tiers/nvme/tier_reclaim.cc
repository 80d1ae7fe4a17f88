// Making room: a segment gives way, what is wanted of it is written once more.
#include <algorithm>
#include <cerrno>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/tier_impl.h"

namespace terrace {

namespace {

// Written once more, at most, as a share of what is written first: so write amplification stays
// below 1.1 with headers and footers, and an endurance budget goes to new records.
constexpr double kReclaimShare = 0.06;
constexpr uint32_t kDrainDepth = 4;
constexpr int kGiveUpAtOnce = 2;

}  // namespace

void NvmeTier::Impl::EarnReclaimCredit(uint64_t bytes) {
  reclaim_credit_ = std::min(reclaim_credit_ + kReclaimShare * static_cast<double>(bytes),
                             static_cast<double>(options_.segment_bytes));
}

bool NvmeTier::Impl::LongerThanSegment(const RecordMeta& meta) const {
  const uint64_t bytes =
      nvme::HeaderBytes(meta.part_ends) + AlignUp(meta.payload_bytes, nvme::kBlockBytes);
  return segments_->FileBytesFor(bytes, nvme::EntryBytes(meta)) > options_.segment_bytes;
}

std::vector<RecordId> NvmeTier::Impl::LiveRecords(const Segment& segment) const {
  std::unordered_set<RecordId> live;
  for (RecordId id : segment.records) {
    const nvme::RecordIndex::Record* record = index_.Find(id);
    if (record != nullptr && record->segment_id == segment.file->id) live.insert(id);
  }
  return {live.begin(), live.end()};
}

// Submits what waits, and lets segments give way until nothing does and the reserve is there.
void NvmeTier::Impl::MakeRoom() {
  if (stopped_ || std::exchange(making_room_, true)) return;
  SubmitWaiting();
  while (!drain_.has_value() && (!waiting_.empty() || segments_->WantsReclaim())) {
    Segment* clean = segments_->AnyClean();
    if (clean != nullptr && !waiting_.empty() && LongerThanSegment(waiting_.front().meta)) {
      Discard(*clean);
      SubmitWaiting();
      continue;
    }
    Segment* victim = segments_->Victim();
    if (victim == nullptr) break;
    BeginDrain(*victim, false);
    SubmitWaiting();
  }
  // Nothing under way will make room either.
  if (!waiting_.empty() && !drain_.has_value() && !segments_->busy()) {
    WriteRequest request = std::move(waiting_.front());
    waiting_.pop_front();
    stats_.pending_write_bytes -= request.meta.payload_bytes;
    Reject(request, absl::ResourceExhaustedError(absl::StrCat(
                        "nvme tier: no room for ", request.meta.payload_bytes,
                        " bytes: ", segments_->used_bytes(), " of ", segments_->capacity_bytes(),
                        " bytes are in use, and pinned or being read")));
  }
  making_room_ = false;
}

absl::Status NvmeTier::Impl::SetCapacity(uint64_t bytes) {
  if (bytes < 2 * options_.segment_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("an nvme tier of ", bytes,
                                                   " bytes: expected at least two segments of ",
                                                   options_.segment_bytes));
  }
  absl::Status allowed = nvme::AllowSegments(bytes / options_.segment_bytes);
  if (!allowed.ok()) return allowed;
  CloseAll(segments_->SetCapacity(bytes));
  MakeRoom();
  return absl::OkStatus();
}

void NvmeTier::Impl::KeepApart(std::set<uint32_t> tenant_ids) {
  CloseAll(segments_->KeepApart(std::move(tenant_ids)));
}

void NvmeTier::Impl::CloseAll(const std::vector<Segment*>& segments) {
  for (Segment* segment : segments) {
    CloseToWrites(*segment);
    SealIfDone(*segment);
  }
}

// A few at a time, so that what clients wait for goes in between.
void NvmeTier::Impl::GiveUpSegments() {
  for (int i = 0; i < kGiveUpAtOnce && segments_->over() && !drain_.has_value(); ++i) {
    Segment* clean = segments_->AnyClean();
    Segment* victim = segments_->has_clean_reserve() ? nullptr : segments_->Victim();
    if (victim != nullptr) {
      BeginDrain(*victim, true);
    } else if (clean != nullptr && !segments_->busy()) {
      Discard(*clean);
    } else if (clean != nullptr && segments_->has_clean_reserve()) {
      Discard(*clean);
    } else {
      return;
    }
  }
}

void NvmeTier::Impl::BeginDrain(Segment& segment, bool give_up) {
  segment.state = Segment::State::kDraining;
  drain_.emplace();
  drain_->segment_id = segment.file->id;
  drain_->give_up = give_up;
  const std::vector<RecordId> records = LiveRecords(segment);
  std::vector<RecordId> wanted;
  for (RecordId id : records) {
    const nvme::RecordIndex::Record& record = *index_.Find(id);
    const bool reuse = options_.reclaim == ReclaimPolicy::kReuse && record.uses > 0;
    if (reuse || record.pinned != 0) wanted.push_back(id);
  }
  // Pinned ones first, whatever it costs, then those used most.
  const auto rank = [this](RecordId id) {
    const nvme::RecordIndex::Record& record = *index_.Find(id);
    return std::pair(record.pinned, record.uses);
  };
  std::sort(wanted.begin(), wanted.end(),
            [&](RecordId a, RecordId b) { return rank(a) > rank(b); });
  for (RecordId id : wanted) {
    const nvme::RecordIndex::Record& record = *index_.Find(id);
    const auto bytes = static_cast<double>(record.stored_bytes());
    if (record.pinned == 0 && bytes > reclaim_credit_) continue;
    reclaim_credit_ -= bytes;
    budget_->Spend(record.stored_bytes());
    drain_->keep.push_back(id);
  }
  system_.Step("reclaim.chosen");
  const std::unordered_set<RecordId> keep(drain_->keep.begin(), drain_->keep.end());
  for (RecordId id : records) {
    if (!keep.contains(id)) Drop(id);
  }
  ContinueDrain();
}

void NvmeTier::Impl::ContinueDrain() {
  if (!drain_.has_value() || stopped_) return;
  while (drain_->in_flight < kDrainDepth && drain_->next < drain_->keep.size()) {
    ReadForDrain(drain_->keep[drain_->next++]);
  }
  if (drain_->in_flight > 0 || drain_->next < drain_->keep.size()) return;
  if (segments_->Find(drain_->segment_id)->reads == 0) EndDrain();
}

void NvmeTier::Impl::ReadForDrain(RecordId id) {
  const nvme::RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr || record->segment_id != drain_->segment_id) return;  // erased meanwhile
  auto payload = std::make_shared<kernels::AlignedBuffer>(record->payload_bytes());
  if (payload->data() == nullptr) return;
  ++drain_->in_flight;
  ReadRequest request;
  request.record = id;
  request.key = record->key;
  request.destination = payload->data();
  request.priority = IoPriority::kBackground;
  request.done = [this, id, key = record->key, payload](absl::StatusOr<RecordMeta> meta) {
    if (meta.ok()) {
      WriteOnceMore(id, *std::move(meta), payload);
      return;
    }
    --drain_->in_flight;
    // Erased by FinishRead: its owner does not know yet.
    if (absl::IsDataLoss(meta.status()) && on_dropped) on_dropped(id, key);
  };
  ReadRecord(std::move(request), std::nullopt);
}

void NvmeTier::Impl::WriteOnceMore(RecordId id, RecordMeta meta,
                                   std::shared_ptr<kernels::AlignedBuffer> payload) {
  const nvme::RecordIndex::Record* record = index_.Find(id);
  std::optional<Placement> placement;
  if (!stopped_ && record != nullptr && record->segment_id == drain_->segment_id) {
    meta.flags = record->pinned != 0 ? kRecordPinned : 0;
    if (meta.lifetime == Lifetime::kCold) meta.lifetime = Lifetime::kHot;
    placement = Place(meta, true);
  }
  if (!placement.has_value()) {
    --drain_->in_flight;
    return;
  }
  stats_.reinserted_bytes += meta.payload_bytes;
  drain_->moving[id] = {placement->segment->file->id, placement->segment->file->generation,
                        placement->offset};
  SubmitRecord(
      std::move(meta), payload->data(), IoPriority::kBackground, *placement,
      [this, id, payload](uint32_t segment_id, const nvme::RecordEntry& entry,
                          const absl::Status& status) { Moved(id, segment_id, entry, status); });
}

void NvmeTier::Impl::Moved(RecordId id, uint32_t segment_id, const nvme::RecordEntry& entry,
                           const absl::Status& status) {
  --drain_->in_flight;
  drain_->moving.erase(id);
  const nvme::RecordIndex::Record* record = index_.Find(id);
  const bool there = record != nullptr && record->segment_id == drain_->segment_id;
  if (status.ok() && there) {
    const nvme::Place before = PlaceOf(*record);
    segments_->Count(*segments_->Find(drain_->segment_id), *record, -1);
    index_.Move(id, segment_id, entry.offset);
    Segment& segment = *segments_->Find(segment_id);
    segments_->Count(segment, *record, 1);
    segment.records.push_back(id);
    std::string encoded;
    nvme::AppendEntry(entry, encoded);
    segment.entries.emplace_back(id, std::move(encoded));
    system_.Step("reclaim.moved");
    if (stopped_) return;
    // Until its segment is used again the old one would outlive an erasure of the new one.
    meta_->Run([this, before](nvme::MetaStore& store) {
      store.PutNotes({before}, nvme::Note::kErased, false).IgnoreError();
      system_.Step("reclaim.copy_noted");
    });
  }
  ContinueDrain();
}

void NvmeTier::Impl::EndDrain() {
  Segment& segment = *segments_->Find(drain_->segment_id);
  const bool give_up = drain_->give_up;
  drain_.reset();
  if (segment.pinned_bytes > 0) {  // there was no room for it elsewhere: the segment stays
    segment.state = Segment::State::kSealed;
    segment.unmovable = true;
    return;
  }
  for (RecordId id : LiveRecords(segment)) Drop(id);
  ++stats_.reclaimed_segments;
  Recycle(segment, give_up);
}

// The segment, which holds nothing any longer, becomes a clean one; or goes, when it is not of the
// usual length or its room is needed for one that is not, or not to be used again.
void NvmeTier::Impl::Recycle(Segment& segment, bool give_up) {
  system_.Step("reclaim.dropped");
  const bool needed = !waiting_.empty() && LongerThanSegment(waiting_.front().meta);
  if (needed || give_up || segment.file->bytes != options_.segment_bytes) {
    Discard(segment);
    return;
  }
  segments_->Recycle(segment);
  Prepare(segment, false);
}

void NvmeTier::Impl::Discard(Segment& segment) {
  meta_->Run([this, file = segment.file](nvme::MetaStore& store) mutable {
    const int unlinked = system_.Unlink(file->path);
    system_.Step("reclaim.unlinked");
    if (unlinked < 0 && unlinked != -ENOENT) {
      spdlog::warn("nvme tier: {}",
                   nvme::ErrnoStatus(-unlinked, absl::StrCat("unlink ", file->path)).ToString());
    }
    absl::Status status = store.DeleteSegment(file->id);
    if (!status.ok()) spdlog::warn("nvme index: {}", status.ToString());
    file.reset();  // closes it: this is where its space is given back
  });
  segments_->Remove(segment.file->id);
}

void NvmeTier::Impl::Drop(RecordId id) {
  const nvme::RecordIndex::Record* record = index_.Find(id);
  if (record == nullptr) return;  // erased by the owner, who was told of another one
  const ObjectKey key = record->key;
  Forget(id);
  if (on_dropped) on_dropped(id, key);
}

}  // namespace terrace
