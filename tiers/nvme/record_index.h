// Where every durable record is, in memory: a slab of 44 bytes a record, key included, with dense
// ids that are reused. Not thread-safe: loop thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "config/object_key.h"
#include "config/object_layout.h"
#include "kernels/block_array.h"
#include "tiers/nvme/record.h"
#include "tiers/nvme/segment_format.h"

namespace terrace::nvme {

class RecordIndex {
 public:
  struct Record {
    ObjectKey key;  // whole: the owner is told it when the record is dropped
    uint32_t segment_id = 0;
    uint32_t offset_blocks = 0;       // of the header
    uint32_t payload_units : 26 = 0;  // of kPartAlignment
    uint32_t header_blocks : 3 = 0;
    uint32_t uses : 2 = 0;  // since it was written, saturating
    uint32_t pinned : 1 = 0;

    uint64_t offset() const { return uint64_t{offset_blocks} * kBlockBytes; }
    uint64_t header_bytes() const { return uint64_t{header_blocks} * kBlockBytes; }
    uint64_t payload_bytes() const { return uint64_t{payload_units} * kPartAlignment; }
    uint64_t stored_bytes() const { return header_bytes() + AlignUp(payload_bytes(), kBlockBytes); }
    bool wanted() const { return uses > 0 || pinned != 0; }
  };
  static_assert(sizeof(Record) == 44);
  static constexpr uint32_t kMaxUses = 3;

  RecordId Add(uint32_t segment_id, const RecordEntry& entry) {
    Record record;
    record.key = entry.meta.key;
    record.segment_id = segment_id;
    record.offset_blocks = static_cast<uint32_t>(entry.offset / kBlockBytes);
    record.payload_units = static_cast<uint32_t>(entry.meta.payload_bytes / kPartAlignment);
    record.header_blocks = static_cast<uint32_t>(entry.header_bytes / kBlockBytes);
    record.pinned = (entry.meta.flags & kRecordPinned) != 0;
    ++size_;
    if (free_ == kNoRecord) {
      records_.Append(record);
      return static_cast<RecordId>(records_.size() - 1);
    }
    const RecordId id = free_;
    free_ = records_[id].segment_id;
    records_[id] = record;
    return id;
  }

  // Null unless `id` names a live record. Valid until the next Add or Remove.
  const Record* Find(RecordId id) const {
    return id < records_.size() && records_[id].header_blocks > 0 ? &records_[id] : nullptr;
  }

  // The following require a live id.
  void SetPinned(RecordId id, bool pinned) { records_[id].pinned = pinned; }
  void Use(RecordId id) { records_[id].uses = std::min(records_[id].uses + 1u, kMaxUses); }
  // It was written once more, there; one use fewer keeps it the next time.
  void Move(RecordId id, uint32_t segment_id, uint64_t offset) {
    Record& record = records_[id];
    record.segment_id = segment_id;
    record.offset_blocks = static_cast<uint32_t>(offset / kBlockBytes);
    if (record.uses > 0) --record.uses;
  }
  void Remove(RecordId id) {
    records_[id] = Record();
    records_[id].segment_id = free_;
    free_ = id;
    --size_;
  }

  uint64_t size() const { return size_; }

 private:
  kernels::BlockArray<Record> records_;
  RecordId free_ = kNoRecord;  // head of the free list, linked through segment_id
  uint64_t size_ = 0;
};

}  // namespace terrace::nvme
