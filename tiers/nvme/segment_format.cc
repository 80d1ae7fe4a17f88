#include "tiers/nvme/segment_format.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace::nvme {

namespace {

constexpr Magic kSuperblockMagic = {'T', 'R', 'C', 'S', 'U', 'P', 'E', 'R'};
constexpr Magic kSegmentMagic = {'T', 'R', 'C', 'S', 'E', 'G', 'M', 'T'};
constexpr Magic kFooterMagic = {'T', 'R', 'C', 'F', 'O', 'O', 'T', 'R'};

// Superblock.
constexpr size_t kEpochAt = kFieldsAt;
constexpr size_t kStoreSegmentBytesAt = 40;
constexpr size_t kBudgetBytesAt = 48;
constexpr size_t kBudgetTimeAt = 56;
constexpr size_t kClosedAt = 64;
// Segment header and footer.
constexpr size_t kSegmentIdAt = kFieldsAt;
constexpr size_t kRecordCountAt = 36;  // footer
constexpr size_t kGenerationAt = 40;
constexpr size_t kSegmentBytesAt = 48;  // segment header
constexpr size_t kEntriesBytesAt = 48;  // footer
constexpr size_t kEntriesCrcAt = 56;    // footer

// Entry.
constexpr size_t kEntryOffsetAt = 0;  // blocks
constexpr size_t kEntryHeaderBlocksAt = 4;
constexpr size_t kEntryFilterCountAt = 6;  // 5: zero
constexpr size_t kEntrySequenceAt = 8;
constexpr size_t kEntryObjectAt = 16;
constexpr size_t kEntryFiltersAt = kEntryObjectAt + kObjectBytes;
constexpr size_t kEntryAlignment = 8;

// Value of a segment's row.
constexpr size_t kRowMajorAt = 0;  // 2: zero
constexpr size_t kRowCrcAt = 4;
constexpr size_t kRowGenerationAt = 8;
constexpr size_t kRowAppendOffsetAt = 16;
constexpr size_t kRowEntriesAt = 24;

uint64_t EntryBytesOf(size_t filters) {
  return AlignUp(kEntryFiltersAt + filters * sizeof(GrainFilter), kEntryAlignment);
}

ConstBytes AsBytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Integers of keys are big-endian, so that keys sort by them.
template <typename T>
void AppendBigEndian(T value, std::string& to) {
  for (int shift = 8 * (sizeof value - 1); shift >= 0; shift -= 8) {
    to.push_back(static_cast<char>(value >> shift));
  }
}

template <typename T>
T TakeBigEndian(std::string_view& from) {
  T value = 0;
  for (size_t i = 0; i < sizeof value; ++i) value = value << 8 | static_cast<uint8_t>(from[i]);
  from.remove_prefix(sizeof value);
  return value;
}

}  // namespace

void EncodeSuperblock(const Superblock& superblock, Bytes block) {
  BeginHeader(block, kSuperblockMagic, superblock.store_id);
  Put(block.data() + kEpochAt, superblock.epoch);
  Put(block.data() + kStoreSegmentBytesAt, superblock.segment_bytes);
  Put(block.data() + kBudgetBytesAt, superblock.budget_bytes);
  Put(block.data() + kBudgetTimeAt, superblock.budget_time_us);
  Put(block.data() + kClosedAt, static_cast<uint8_t>(superblock.closed));
  SealHeader(block);
}

absl::StatusOr<Superblock> DecodeSuperblock(ConstBytes block) {
  absl::Status status = CheckHeader(block, kSuperblockMagic, "superblock");
  if (!status.ok()) return status;
  Superblock superblock;
  superblock.store_id = Get<StoreId>(block.data() + kStoreIdAt);
  superblock.epoch = Get<uint64_t>(block.data() + kEpochAt);
  superblock.segment_bytes = Get<uint64_t>(block.data() + kStoreSegmentBytesAt);
  superblock.budget_bytes = Get<uint64_t>(block.data() + kBudgetBytesAt);
  superblock.budget_time_us = Get<uint64_t>(block.data() + kBudgetTimeAt);
  superblock.closed = block[kClosedAt] == 1;
  return superblock;
}

void EncodeSegmentHeader(const SegmentHeader& header, Bytes block) {
  BeginHeader(block, kSegmentMagic, header.store_id);
  Put(block.data() + kSegmentIdAt, header.segment_id);
  Put(block.data() + kGenerationAt, header.generation);
  Put(block.data() + kSegmentBytesAt, header.segment_bytes);
  SealHeader(block);
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ConstBytes block) {
  absl::Status status = AsDataLoss(CheckHeader(block, kSegmentMagic, "segment header"));
  if (!status.ok()) return status;
  SegmentHeader header;
  header.store_id = Get<StoreId>(block.data() + kStoreIdAt);
  header.segment_id = Get<uint32_t>(block.data() + kSegmentIdAt);
  header.generation = Get<uint64_t>(block.data() + kGenerationAt);
  header.segment_bytes = Get<uint64_t>(block.data() + kSegmentBytesAt);
  if (header.segment_bytes < kBlockBytes || header.segment_bytes % kBlockBytes != 0) {
    return absl::DataLossError(absl::StrCat("segment header: length ", header.segment_bytes));
  }
  return header;
}

uint64_t EntryBytes(const RecordMeta& meta) { return EntryBytesOf(meta.grain_filters.size()); }

void AppendEntry(const RecordEntry& entry, std::string& to) {
  const size_t begin = to.size();
  to.resize(begin + EntryBytes(entry.meta), '\0');
  auto* at = reinterpret_cast<uint8_t*>(to.data()) + begin;
  Put(at + kEntryOffsetAt, static_cast<uint32_t>(entry.offset / kBlockBytes));
  Put(at + kEntryHeaderBlocksAt, static_cast<uint8_t>(entry.header_bytes / kBlockBytes));
  Put(at + kEntryFilterCountAt, static_cast<uint16_t>(entry.meta.grain_filters.size()));
  Put(at + kEntrySequenceAt, entry.sequence);
  PutObject(at + kEntryObjectAt, entry.meta);
  for (size_t i = 0; i < entry.meta.grain_filters.size(); ++i) {
    Put(at + kEntryFiltersAt + i * sizeof(GrainFilter), entry.meta.grain_filters[i]);
  }
}

absl::Status TakeEntry(std::string_view& entries, RecordEntry& entry) {
  if (entries.size() < kEntryFiltersAt) {
    return absl::DataLossError(absl::StrCat("index entry of ", entries.size(), " bytes"));
  }
  const uint8_t* at = AsBytes(entries).data();
  const size_t filters = Get<uint16_t>(at + kEntryFilterCountAt);
  if (entries.size() < EntryBytesOf(filters)) {
    return absl::DataLossError(
        absl::StrCat("index entry of ", entries.size(), " bytes with ", filters, " grain filters"));
  }
  entry.offset = Get<uint32_t>(at + kEntryOffsetAt) * kBlockBytes;
  entry.header_bytes = at[kEntryHeaderBlocksAt] * kBlockBytes;
  entry.sequence = Get<uint64_t>(at + kEntrySequenceAt);
  absl::Status status = GetObject(at + kEntryObjectAt, entry.meta);
  if (!status.ok()) return status;
  if (entry.offset == 0 || entry.header_bytes == 0 ||
      entry.header_bytes > kMaxHeaderBlocks * kBlockBytes ||
      filters >= std::max<uint32_t>(entry.meta.grain_count, 1)) {
    return absl::DataLossError(absl::StrCat(
        "index entry: offset ", entry.offset, ", header of ", entry.header_bytes, " bytes, ",
        filters, " grain filters for ", entry.meta.grain_count, " grains"));
  }
  entry.meta.grain_filters.resize(filters);
  for (size_t i = 0; i < filters; ++i) {
    entry.meta.grain_filters[i] = Get<GrainFilter>(at + kEntryFiltersAt + i * sizeof(GrainFilter));
  }
  entries.remove_prefix(EntryBytesOf(filters));
  return absl::OkStatus();
}

uint64_t FooterBytes(uint64_t entries_bytes) {
  return AlignUp(entries_bytes, kBlockBytes) + kBlockBytes;
}

void EncodeFooter(Footer footer, std::string_view entries, Bytes to) {
  std::memset(to.data(), 0, to.size());
  std::copy(entries.begin(), entries.end(), to.begin());
  const Bytes block = to.last(kBlockBytes);
  BeginHeader(block, kFooterMagic, footer.store_id);
  Put(block.data() + kSegmentIdAt, footer.segment_id);
  Put(block.data() + kRecordCountAt, footer.record_count);
  Put(block.data() + kGenerationAt, footer.generation);
  Put(block.data() + kEntriesBytesAt, uint64_t{entries.size()});
  Put(block.data() + kEntriesCrcAt, kernels::Crc32c(entries.data(), entries.size()));
  SealHeader(block);
}

absl::StatusOr<Footer> DecodeFooterBlock(ConstBytes block) {
  absl::Status status = AsDataLoss(CheckHeader(block, kFooterMagic, "footer"));
  if (!status.ok()) return status;
  Footer footer;
  footer.store_id = Get<StoreId>(block.data() + kStoreIdAt);
  footer.segment_id = Get<uint32_t>(block.data() + kSegmentIdAt);
  footer.generation = Get<uint64_t>(block.data() + kGenerationAt);
  footer.record_count = Get<uint32_t>(block.data() + kRecordCountAt);
  footer.entries_bytes = Get<uint64_t>(block.data() + kEntriesBytesAt);
  footer.entries_crc = Get<uint32_t>(block.data() + kEntriesCrcAt);
  return footer;
}

bool BeginsAsFooter(ConstBytes block) {
  return block.size() >= kFooterMagic.size() &&
         std::memcmp(block.data(), kFooterMagic.data(), kFooterMagic.size()) == 0;
}

absl::Status CheckEntries(const Footer& footer, std::string_view entries) {
  if (entries.size() == footer.entries_bytes &&
      kernels::Crc32c(entries.data(), entries.size()) == footer.entries_crc) {
    return absl::OkStatus();
  }
  return absl::DataLossError("footer: checksum of the entries");
}

std::string SegmentRowKey(uint32_t segment_id) {
  std::string key(1, kSegmentRowPrefix);
  AppendBigEndian(segment_id, key);
  return key;
}

absl::StatusOr<uint32_t> DecodeSegmentRowKey(std::string_view key) {
  if (key.size() != 1 + sizeof(uint32_t) || key[0] != kSegmentRowPrefix) {
    return absl::DataLossError(absl::StrCat("index key of ", key.size(), " bytes"));
  }
  key.remove_prefix(1);
  return TakeBigEndian<uint32_t>(key);
}

std::string EncodeSegmentRow(const SegmentRow& row, std::string_view entries) {
  std::string value(kRowEntriesAt, '\0');
  value.append(entries);
  auto* at = reinterpret_cast<uint8_t*>(value.data());
  Put(at + kRowMajorAt, kFormatMajor);
  Put(at + kRowGenerationAt, row.generation);
  Put(at + kRowAppendOffsetAt, row.append_offset);
  Put(at + kRowCrcAt, CrcWithoutField(AsBytes(value), kRowCrcAt));
  return value;
}

absl::StatusOr<SegmentRow> TakeSegmentRow(std::string_view& value) {
  const uint8_t* at = AsBytes(value).data();
  if (value.size() < kRowEntriesAt) {
    return absl::DataLossError(absl::StrCat("index row of ", value.size(), " bytes"));
  }
  const uint16_t major = Get<uint16_t>(at + kRowMajorAt);
  if (major != kFormatMajor) return absl::DataLossError(absl::StrCat("index row version ", major));
  if (Get<uint32_t>(at + kRowCrcAt) != CrcWithoutField(AsBytes(value), kRowCrcAt)) {
    return absl::DataLossError("index row: checksum");
  }
  SegmentRow row{Get<uint64_t>(at + kRowGenerationAt), Get<uint64_t>(at + kRowAppendOffsetAt)};
  value.remove_prefix(kRowEntriesAt);
  return row;
}

std::string NoteKey(const Place& place) {
  std::string key = FirstNoteKey(place.segment_id);
  AppendBigEndian(place.generation, key);
  AppendBigEndian(place.offset, key);
  return key;
}

std::string FirstNoteKey(uint32_t segment_id) {
  std::string key(1, kNotePrefix);
  AppendBigEndian(segment_id, key);
  return key;
}

std::string LastNoteKey(uint32_t segment_id) {
  return NoteKey({segment_id, UINT64_MAX, UINT64_MAX});
}

absl::StatusOr<Place> DecodeNoteKey(std::string_view key) {
  if (key.size() != 1 + sizeof(uint32_t) + 2 * sizeof(uint64_t) || key[0] != kNotePrefix) {
    return absl::DataLossError(absl::StrCat("index key of ", key.size(), " bytes"));
  }
  key.remove_prefix(1);
  Place place;
  place.segment_id = TakeBigEndian<uint32_t>(key);
  place.generation = TakeBigEndian<uint64_t>(key);
  place.offset = TakeBigEndian<uint64_t>(key);
  return place;
}

std::string SegmentName(uint32_t segment_id) {
  return absl::StrCat("seg-", absl::Hex(segment_id, absl::kZeroPad8), ".tseg");
}

}  // namespace terrace::nvme
