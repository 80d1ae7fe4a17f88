// Placing records in segments, and closing segments that are full.
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "tiers/nvme/tier_impl.h"

namespace terrace {

// A place in the open segment of the record's class, or in one that is opened for it, which may be
// still in preparation: the io thread holds writes back until it is ready.
std::optional<NvmeTier::Impl::Placement> NvmeTier::Impl::Place(const RecordMeta& meta,
                                                               bool reclaiming) {
  const uint64_t header_bytes = nvme::HeaderBytes(meta.part_ends);
  const uint64_t bytes = header_bytes + AlignUp(meta.payload_bytes, nvme::kBlockBytes);
  const uint64_t entry_bytes = nvme::EntryBytes(meta);
  const uint64_t file_bytes = segments_->FileBytesFor(bytes, entry_bytes);
  const bool own_segment = file_bytes > options_.segment_bytes;
  const nvme::RecordClass record_class = segments_->ClassOf(meta.lifetime, meta.tenant_id);
  Segment* segment = own_segment ? nullptr : segments_->open(record_class);
  if (segment == nullptr || !segments_->Fits(*segment, bytes, entry_bytes)) {
    bool fresh = false;
    Segment* next = segments_->TakeClean(file_bytes, reclaiming, fresh);
    if (next == nullptr) return std::nullopt;
    if (segment != nullptr) {
      CloseToWrites(*segment);
      SealIfDone(*segment);
    }
    segments_->Begin(*next, record_class);
    if (fresh) Prepare(*next, true);
    if (!own_segment) segments_->SetOpen(record_class, next);
    segment = next;
  }
  const uint64_t offset = segments_->Append(*segment, bytes, entry_bytes);
  if (own_segment) segment->state = Segment::State::kSealing;
  return Placement{segment, offset, header_bytes};
}

void NvmeTier::Impl::Prepare(Segment& segment, bool fresh) {
  stats_.device_written_bytes += nvme::kBlockBytes;
  budget_->Spend(nvme::kBlockBytes);
  meta_->Run([this, file = segment.file, fresh](nvme::MetaStore& store) {
    absl::Status status;
    if (fresh) {
      status = nvme::CreateSegmentFile(system_, *file, directory_.store_id());
    } else {
      status = nvme::RewriteSegmentHeader(system_, *file, directory_.store_id());
      system_.Step("reclaim.header_rewritten");
      // Rows of the generation before are stale from here on; deleting them only saves room.
      absl::Status deleted = store.DeleteSegment(file->id);
      if (!deleted.ok()) spdlog::warn("nvme index: {}", deleted.ToString());
      system_.Step("reclaim.rows_deleted");
    }
    if (!status.ok()) {
      // Before the writes that wait for the file fail: none may be placed there once they have.
      post_([self = shared_from_this(), file, status] { self->NotPrepared(*file, status); });
    }
    io_->FileReady(file, status);
  });
}

void NvmeTier::Impl::NotPrepared(const nvme::SegmentFile& file, const absl::Status& status) {
  health_.Note(status, Clock::now());
  Segment* segment = segments_->Find(file.id);
  if (stopped_ || segment == nullptr || segment->file.get() != &file) return;
  segment->unusable = true;
  if (segment->writes == 0) {
    Discard(*segment);
    MakeRoom();
  } else {
    CloseToWrites(*segment);
  }
}

// Nothing more is appended to it: it is sealed once its last record is durable.
void NvmeTier::Impl::CloseToWrites(Segment& segment) {
  if (segment.state != Segment::State::kOpen) return;
  segment.state = Segment::State::kSealing;
  segments_->Close(segment);
}

void NvmeTier::Impl::SealIfDone(Segment& segment) {
  if (stopped_) return;
  if (segment.state == Segment::State::kSealing && segment.writes == 0) Seal(segment);
}

// What the footer says: of the records that are still there. Those erased have notes as well, which
// outlive a crash before the footer is written.
std::string NvmeTier::Impl::LiveEntries(const Segment& segment) const {
  std::string entries;
  for (const auto& [id, encoded] : segment.entries) {
    const nvme::RecordIndex::Record* record = index_.Find(id);
    nvme::RecordEntry entry;
    std::string_view rest = encoded;
    const bool live = record != nullptr && record->segment_id == segment.file->id &&
                      nvme::TakeEntry(rest, entry).ok() && record->offset() == entry.offset;
    if (live) entries += encoded;
  }
  return entries;
}

// Requires that it is closed to writes and that all of them ended.
void NvmeTier::Impl::Seal(Segment& segment) {
  if (std::exchange(segment.sealing_begun, true)) return;
  if (segment.unusable) {
    Discard(segment);
    return;
  }
  std::string entries = LiveEntries(segment);
  if (entries.empty()) {
    segment.state = Segment::State::kSealed;
    segment.entries.clear();
    return;
  }
  const uint64_t bytes = nvme::FooterBytes(entries.size());
  auto footer = std::make_shared<kernels::AlignedBuffer>(bytes);
  const auto records = static_cast<uint32_t>(segment.entries.size());  // erased ones too
  nvme::EncodeFooter({directory_.store_id(), segment.file->id, segment.file->generation, records},
                     entries, {footer->data(), bytes});
  stats_.device_written_bytes += bytes;
  budget_->Spend(bytes);
  auto transfer = std::make_unique<nvme::Transfer>();
  transfer->direction = nvme::Transfer::Direction::kWrite;
  transfer->file = segment.file;
  transfer->file_offset = segment.file->bytes - bytes;
  transfer->payload = footer->data();
  transfer->payload_bytes = bytes;
  transfer->priority = IoPriority::kBackground;
  transfer->finished = [this, footer, file = segment.file,
                        entries = std::move(entries)](absl::Status status) mutable {
    system_.Step("seal.footer_written");
    post_([self = shared_from_this(), file = std::move(file), entries = std::move(entries),
           status = std::move(status)]() mutable {
      self->health_.Note(status, Clock::now());
      // Without a footer the records are found by reading the segment.
      if (!status.ok())
        spdlog::warn("nvme tier: no footer for {}: {}", file->path, status.ToString());
      if (!self->stopped_) self->FinishSeal(std::move(file), std::move(entries));
    });
  };
  io_->Submit(std::move(transfer));
}

void NvmeTier::Impl::FinishSeal(std::shared_ptr<nvme::SegmentFile> file, std::string entries) {
  meta_->Run(
      [this, file = std::move(file), entries = std::move(entries)](nvme::MetaStore& store) mutable {
        system_.Step("seal.row_begun");
        absl::Status status =
            store.PutSegment(file->id, nvme::EncodeSegmentRow({file->generation, 0}, entries));
        system_.Step("seal.row_written");
        if (!status.ok()) {
          spdlog::warn("nvme index: no row for {}: {}", file->path, status.ToString());
          rows_behind_ = true;
        }
        post_([self = shared_from_this(), file = std::move(file)] {
          Segment& segment = *self->segments_->Find(file->id);  // not reclaimed before it is sealed
          segment.state = Segment::State::kSealed;
          segment.entries = {};
          ++self->stats_.sealed_segments;
          self->MakeRoom();
        });
      });
}

}  // namespace terrace
