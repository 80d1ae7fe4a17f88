// The stored forms of everything but records: superblocks, segment headers, footers, index rows.
// Pure functions over bytes with full bounds checks; any thread. docs/formats/segment.md says the
// same in words, for a second decoder.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/block.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {

// Two copies of it are written in turn, so that one always checks; the later epoch counts.
struct Superblock {
  StoreId store_id{};
  uint64_t epoch = 0;          // of this copy: one more each time
  uint64_t segment_bytes = 0;  // at creation, for people; each segment header has its own
  // The write budget: what may still be written, as of a time of the wall clock. WriteBudget.
  uint64_t budget_bytes = 0;
  uint64_t budget_time_us = 0;  // since 1970; 0: no budget was ever kept
  // The store was closed in order: the rows of segments that are not sealed are complete.
  bool closed = false;
};
void EncodeSuperblock(const Superblock& superblock, Bytes block);
// FailedPrecondition for a major version this build does not know, DataLoss for anything else.
absl::StatusOr<Superblock> DecodeSuperblock(ConstBytes block);

struct SegmentHeader {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;     // grows each time the file is reused
  uint64_t segment_bytes = 0;  // length of the file when it was written, a multiple of 4096
};
void EncodeSegmentHeader(const SegmentHeader& header, Bytes block);
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ConstBytes block);  // DataLoss

// What an index says of a record: where it lies and what it is of. Footers and index rows hold
// these back to back; each is of a length that follows from its first bytes.
struct RecordEntry {
  uint64_t offset = 0;  // of the header in the file, a multiple of 4096, not 0
  uint64_t header_bytes = 0;
  uint64_t sequence = 0;
  RecordMeta meta;  // without part_ends and part_crcs
};
uint64_t EntryBytes(const RecordMeta& meta);
void AppendEntry(const RecordEntry& entry, std::string& to);
// Takes the first entry off `entries`; reuses the memory of `entry`. DataLoss.
absl::Status TakeEntry(std::string_view& entries, RecordEntry& entry);

// The end of a sealed segment: its entries, padded to 4096, and a last block about them, which is
// the last of the segment_bytes that its header names.
struct Footer {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;
  uint32_t record_count = 0;
  uint64_t entries_bytes = 0;
  uint32_t entries_crc = 0;
};
// Room that a footer of so many bytes of entries takes.
uint64_t FooterBytes(uint64_t entries_bytes);
// Entries and last block; `to` has FooterBytes(entries.size()). Fills in lengths and checksum.
void EncodeFooter(Footer footer, std::string_view entries, Bytes to);
absl::StatusOr<Footer> DecodeFooterBlock(ConstBytes block);  // DataLoss
bool BeginsAsFooter(ConstBytes block);                       // whether or not it checks
absl::Status CheckEntries(const Footer& footer, std::string_view entries);

// Rows of the index, RocksDB. Of a sealed segment: what its footer says. Of one that is not, when
// the store is closed in order: what is in it so far.
std::string SegmentRowKey(uint32_t segment_id);
struct SegmentRow {
  uint64_t generation = 0;
  uint64_t append_offset = 0;  // where its next record would go; 0: it is sealed
};
std::string EncodeSegmentRow(const SegmentRow& row, std::string_view entries);
// Leaves the entries in `value`, unchecked beyond the checksum. DataLoss.
absl::StatusOr<SegmentRow> TakeSegmentRow(std::string_view& value);

// Where a record lies, for as long as the segment is of this generation.
struct Place {
  uint32_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t offset = 0;
  bool operator==(const Place&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Place& place) {
    return H::combine(std::move(h), place.segment_id, place.generation, place.offset);
  }
};
// What happened to a record since its header was written: the value of its note, one byte.
enum class Note : uint8_t { kUnpinned = 0, kPinned = 1, kErased = 2 };
std::string NoteKey(const Place& place);
// The range of keys that holds all notes of a segment.
std::string FirstNoteKey(uint32_t segment_id);
std::string LastNoteKey(uint32_t segment_id);
absl::StatusOr<Place> DecodeNoteKey(std::string_view key);           // DataLoss
absl::StatusOr<uint32_t> DecodeSegmentRowKey(std::string_view key);  // DataLoss

inline constexpr char kNotePrefix = 'n', kSegmentRowPrefix = 'r';

// Name of a segment's file: "seg-0000002a.tseg".
std::string SegmentName(uint32_t segment_id);

}  // namespace terrace::nvme
