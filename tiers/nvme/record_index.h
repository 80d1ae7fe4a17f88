// Where every durable record is, in memory: a slab of 44 bytes a record, dense ids, reused. Not
// thread-safe: loop thread.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "config/object_key.h"
#include "config/object_layout.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

class RecordIndex {
 public:
  struct Record {
    ObjectKey key;  // whole: the owner is told it when the record is dropped
    uint32_t segment_id = 0;
    uint32_t offset_blocks = 0;       // of the header
    uint32_t payload_units : 30 = 0;  // of kPartAlignment
    uint32_t pinned : 1 = 0;
    uint32_t live : 1 = 0;

    uint64_t offset() const { return uint64_t{offset_blocks} * kBlockBytes; }
    uint64_t payload_bytes() const { return uint64_t{payload_units} * kPartAlignment; }
    uint64_t stored_bytes() const { return RecordBytes(payload_bytes()); }
  };
  static_assert(sizeof(Record) == 44);

  RecordId Add(const RowKey& place, const RecordMeta& meta) {
    Record record;
    record.key = meta.key;
    record.segment_id = place.segment_id;
    record.offset_blocks = static_cast<uint32_t>(place.offset / kBlockBytes);
    record.payload_units = static_cast<uint32_t>(meta.payload_bytes / kPartAlignment);
    record.pinned = meta.flags & kRecordPinned;
    record.live = 1;
    ++size_;
    if (free_ == kNoRecord) {
      records_.push_back(record);
      return static_cast<RecordId>(records_.size() - 1);
    }
    const RecordId id = free_;
    free_ = records_[id].segment_id;
    records_[id] = record;
    return id;
  }

  // Null unless `id` names a live record. Valid until the next Add or Remove.
  const Record* Find(RecordId id) const {
    return id < records_.size() && records_[id].live ? &records_[id] : nullptr;
  }

  // Requires a live id.
  void SetPinned(RecordId id, bool pinned) { records_[id].pinned = pinned; }
  // Requires a live id.
  void Remove(RecordId id) {
    records_[id] = Record();
    records_[id].segment_id = free_;
    free_ = id;
    --size_;
  }

  uint64_t size() const { return size_; }

 private:
  std::deque<Record> records_;  // grows without copying
  RecordId free_ = kNoRecord;   // head of the free list, linked through segment_id
  uint64_t size_ = 0;
};

}  // namespace terrace::nvme
