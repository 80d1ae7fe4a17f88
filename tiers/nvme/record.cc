#include "tiers/nvme/record.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace::nvme {

namespace {

static_assert(std::endian::native == std::endian::little, "stored integers are little-endian");

using Magic = std::array<char, 8>;
constexpr Magic kSuperblockMagic = {'T', 'R', 'C', 'S', 'U', 'P', 'E', 'R'};
constexpr Magic kSegmentMagic = {'T', 'R', 'C', 'S', 'E', 'G', 'M', 'T'};
constexpr Magic kRecordMagic = {'T', 'R', 'C', 'R', 'E', 'C', 'R', 'D'};

// Offsets common to the three kinds of block.
constexpr size_t kMajorAt = 8;
constexpr size_t kMinorAt = 10;
constexpr size_t kCrcAt = 12;
constexpr size_t kStoreIdAt = 16;
// Superblock.
constexpr size_t kStoreSegmentBytesAt = 32;
// Segment and record headers.
constexpr size_t kSegmentIdAt = 32;
constexpr size_t kPartCountAt = 36;  // record only
constexpr size_t kGenerationAt = 40;
constexpr size_t kSegmentBytesAt = 48;  // segment only
constexpr size_t kSequenceAt = 48;      // record only from here on
constexpr size_t kObjectAt = 56;
constexpr size_t kPartTableAt = 576;
constexpr size_t kPartEntryBytes = 8;
static_assert(kPartTableAt + kMaxParts * kPartEntryBytes == kBlockBytes);

// The object description that record headers and rows share, kObjectBytes long.
constexpr size_t kKeyAt = 0;
constexpr size_t kParentAt = 32;
constexpr size_t kFingerprintAt = 64;
constexpr size_t kKindAt = 96;
constexpr size_t kFlagsAt = 97;
constexpr size_t kCodecAt = 98;
constexpr size_t kTenantAt = 100;
constexpr size_t kTokenCountAt = 104;
constexpr size_t kGrainCountAt = 108;
constexpr size_t kCostAt = 112;
constexpr size_t kPayloadBytesAt = 120;  // 116: zero
constexpr size_t kObjectBytes = 128;

constexpr uint16_t kRawCodec = 0;

// Row value.
constexpr size_t kRowMajorAt = 0;
constexpr size_t kRowFilterCountAt = 2;
constexpr size_t kRowCrcAt = 4;
constexpr size_t kRowGenerationAt = 8;
constexpr size_t kRowSequenceAt = 16;
constexpr size_t kRowObjectAt = 24;
constexpr size_t kRowFiltersAt = kRowObjectAt + kObjectBytes;

// Row key.
constexpr char kRowPrefix = 'r';
constexpr size_t kRowKeyBytes = 13;

constexpr uint32_t kMaxGrains = kMaxChunkTokens / kGrainTokens;

template <typename T>
void Put(uint8_t* to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(to, &value, sizeof value);
}

template <typename T>
T Get(const uint8_t* from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// CRC32C of `bytes` with the four bytes at `crc_at` taken as zero.
uint32_t CrcWithoutField(absl::Span<const uint8_t> bytes, size_t crc_at) {
  constexpr uint8_t kZeros[4] = {};
  uint32_t crc = kernels::Crc32c(bytes.data(), crc_at);
  crc = kernels::Crc32c(kZeros, sizeof kZeros, crc);
  return kernels::Crc32c(bytes.data() + crc_at + 4, bytes.size() - crc_at - 4, crc);
}

void BeginBlock(Block block, const Magic& magic, const StoreId& store_id) {
  std::memset(block.data(), 0, block.size());
  Put(block.data(), magic);
  Put(block.data() + kMajorAt, kFormatMajor);
  Put(block.data() + kMinorAt, kFormatMinor);
  Put(block.data() + kStoreIdAt, store_id);
}

void SealBlock(Block block) { Put(block.data() + kCrcAt, CrcWithoutField(block, kCrcAt)); }

// The version is looked at before the checksum: a later major may compute it differently.
absl::Status CheckBlock(ConstBlock block, const Magic& magic, const char* what) {
  if (block.size() != kBlockBytes) {
    return absl::DataLossError(absl::StrCat(what, " is ", block.size(), " bytes, not 4096"));
  }
  if (Get<Magic>(block.data()) != magic) return absl::DataLossError(absl::StrCat(what, ": magic"));
  const uint16_t major = Get<uint16_t>(block.data() + kMajorAt);
  if (major != kFormatMajor) {
    return absl::FailedPreconditionError(absl::StrCat(what, " has format version ", major,
                                                      "; this build reads version ", kFormatMajor));
  }
  if (Get<uint32_t>(block.data() + kCrcAt) != CrcWithoutField(block, kCrcAt)) {
    return absl::DataLossError(absl::StrCat(what, ": checksum"));
  }
  return absl::OkStatus();
}

absl::Status AsDataLoss(const absl::Status& status) {
  return status.ok() ? status : absl::DataLossError(status.message());
}

void PutObject(uint8_t* to, const RecordMeta& meta) {
  Put(to + kKeyAt, meta.key.bytes);
  Put(to + kParentAt, meta.parent.bytes);
  Put(to + kFingerprintAt, meta.fingerprint);
  Put(to + kKindAt, static_cast<uint8_t>(meta.kind));
  Put(to + kFlagsAt, meta.flags);
  Put(to + kCodecAt, kRawCodec);
  Put(to + kTenantAt, meta.tenant_id);
  Put(to + kTokenCountAt, meta.token_count);
  Put(to + kGrainCountAt, meta.grain_count);
  Put(to + kCostAt, meta.cost_us);
  Put(to + kPayloadBytesAt, meta.payload_bytes);
}

// What headers and rows both hold; the parts are checked by CheckMeta.
absl::Status CheckObject(const RecordMeta& meta) {
  const auto kind = static_cast<uint8_t>(meta.kind);
  if (kind < static_cast<uint8_t>(ObjectKind::kKv) ||
      kind > static_cast<uint8_t>(ObjectKind::kOpaque)) {
    return absl::InvalidArgumentError(absl::StrCat("kind ", kind, " is not known"));
  }
  if (meta.token_count > kMaxChunkTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_count ", meta.token_count, " is above ", kMaxChunkTokens));
  }
  if (meta.grain_count > kMaxGrains) {
    return absl::InvalidArgumentError(
        absl::StrCat("grain_count ", meta.grain_count, " is above ", kMaxGrains));
  }
  if (meta.payload_bytes == 0 || meta.payload_bytes > kMaxPayloadBytes ||
      meta.payload_bytes % kPartAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("payload_bytes ", meta.payload_bytes,
                                                   " is not a multiple of 64 in 64 .. ",
                                                   kMaxPayloadBytes));
  }
  return absl::OkStatus();
}

absl::Status GetObject(const uint8_t* from, RecordMeta& meta) {
  meta.key.bytes = Get<decltype(meta.key.bytes)>(from + kKeyAt);
  meta.parent.bytes = Get<decltype(meta.parent.bytes)>(from + kParentAt);
  meta.fingerprint = Get<Fingerprint>(from + kFingerprintAt);
  meta.kind = static_cast<ObjectKind>(from[kKindAt]);
  meta.flags = from[kFlagsAt];
  meta.tenant_id = Get<uint32_t>(from + kTenantAt);
  meta.token_count = Get<uint32_t>(from + kTokenCountAt);
  meta.grain_count = Get<uint32_t>(from + kGrainCountAt);
  meta.cost_us = Get<uint32_t>(from + kCostAt);
  meta.payload_bytes = Get<uint64_t>(from + kPayloadBytesAt);
  const uint16_t codec = Get<uint16_t>(from + kCodecAt);
  if (codec != kRawCodec) return absl::DataLossError(absl::StrCat("codec ", codec));
  return AsDataLoss(CheckObject(meta));
}

}  // namespace

void EncodeSuperblock(const Superblock& superblock, Block block) {
  BeginBlock(block, kSuperblockMagic, superblock.store_id);
  Put(block.data() + kStoreSegmentBytesAt, superblock.segment_bytes);
  SealBlock(block);
}

absl::StatusOr<Superblock> DecodeSuperblock(ConstBlock block) {
  absl::Status status = CheckBlock(block, kSuperblockMagic, "superblock");
  if (!status.ok()) return status;
  Superblock superblock;
  superblock.store_id = Get<StoreId>(block.data() + kStoreIdAt);
  superblock.segment_bytes = Get<uint64_t>(block.data() + kStoreSegmentBytesAt);
  return superblock;
}

void EncodeSegmentHeader(const SegmentHeader& header, Block block) {
  BeginBlock(block, kSegmentMagic, header.store_id);
  Put(block.data() + kSegmentIdAt, header.segment_id);
  Put(block.data() + kGenerationAt, header.generation);
  Put(block.data() + kSegmentBytesAt, header.segment_bytes);
  SealBlock(block);
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ConstBlock block) {
  absl::Status status = AsDataLoss(CheckBlock(block, kSegmentMagic, "segment header"));
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

void EncodeRecordHeader(const RecordHeader& header, Block block) {
  BeginBlock(block, kRecordMagic, header.store_id);
  uint8_t* to = block.data();
  const RecordMeta& meta = header.meta;
  Put(to + kSegmentIdAt, header.segment_id);
  Put(to + kPartCountAt, static_cast<uint32_t>(meta.part_ends.size()));
  Put(to + kGenerationAt, header.generation);
  Put(to + kSequenceAt, header.sequence);
  PutObject(to + kObjectAt, meta);
  for (size_t i = 0; i < meta.part_ends.size(); ++i) {
    uint8_t* entry = to + kPartTableAt + i * kPartEntryBytes;
    Put(entry, static_cast<uint32_t>(meta.part_ends[i]));  // kMaxPayloadBytes fits
    Put(entry + 4, meta.part_crcs[i]);
  }
  SealBlock(block);
}

absl::StatusOr<RecordHeader> DecodeRecordHeader(ConstBlock block) {
  absl::Status status = AsDataLoss(CheckBlock(block, kRecordMagic, "record header"));
  if (!status.ok()) return status;
  const uint8_t* from = block.data();
  RecordHeader header;
  header.store_id = Get<StoreId>(from + kStoreIdAt);
  header.segment_id = Get<uint32_t>(from + kSegmentIdAt);
  header.generation = Get<uint64_t>(from + kGenerationAt);
  header.sequence = Get<uint64_t>(from + kSequenceAt);
  RecordMeta& meta = header.meta;
  status = GetObject(from + kObjectAt, meta);
  if (!status.ok()) return status;
  const uint32_t parts = Get<uint32_t>(from + kPartCountAt);
  if (parts > kMaxParts) {
    return absl::DataLossError(absl::StrCat("record header: ", parts, " parts"));
  }
  meta.part_ends.reserve(parts);
  meta.part_crcs.reserve(parts);
  for (size_t i = 0; i < parts; ++i) {
    const uint8_t* entry = from + kPartTableAt + i * kPartEntryBytes;
    meta.part_ends.push_back(Get<uint32_t>(entry));
    meta.part_crcs.push_back(Get<uint32_t>(entry + 4));
  }
  status = AsDataLoss(CheckMeta(meta));
  if (!status.ok()) return status;
  return header;
}

std::string EncodeRow(const IndexRow& row) {
  const RecordMeta& meta = row.meta;
  std::string value(kRowFiltersAt + meta.grain_filters.size() * sizeof(GrainFilter), '\0');
  auto* to = reinterpret_cast<uint8_t*>(value.data());
  Put(to + kRowMajorAt, kFormatMajor);
  Put(to + kRowFilterCountAt, static_cast<uint16_t>(meta.grain_filters.size()));
  Put(to + kRowGenerationAt, row.generation);
  Put(to + kRowSequenceAt, row.sequence);
  PutObject(to + kRowObjectAt, meta);
  for (size_t i = 0; i < meta.grain_filters.size(); ++i) {
    Put(to + kRowFiltersAt + i * sizeof(GrainFilter), meta.grain_filters[i]);
  }
  Put(to + kRowCrcAt, CrcWithoutField({to, value.size()}, kRowCrcAt));
  return value;
}

absl::StatusOr<IndexRow> DecodeRow(std::string_view value) {
  const auto* from = reinterpret_cast<const uint8_t*>(value.data());
  if (value.size() < kRowFiltersAt) {
    return absl::DataLossError(absl::StrCat("index row of ", value.size(), " bytes"));
  }
  const uint16_t major = Get<uint16_t>(from + kRowMajorAt);
  if (major != kFormatMajor) return absl::DataLossError(absl::StrCat("index row version ", major));
  const size_t filters = Get<uint16_t>(from + kRowFilterCountAt);
  if (value.size() != kRowFiltersAt + filters * sizeof(GrainFilter)) {
    return absl::DataLossError(
        absl::StrCat("index row of ", value.size(), " bytes for ", filters, " grain filters"));
  }
  if (Get<uint32_t>(from + kRowCrcAt) != CrcWithoutField({from, value.size()}, kRowCrcAt)) {
    return absl::DataLossError("index row: checksum");
  }
  IndexRow row;
  row.generation = Get<uint64_t>(from + kRowGenerationAt);
  row.sequence = Get<uint64_t>(from + kRowSequenceAt);
  absl::Status status = GetObject(from + kRowObjectAt, row.meta);
  if (!status.ok()) return status;
  if (filters >= std::max<uint32_t>(row.meta.grain_count, 1)) {
    return absl::DataLossError(absl::StrCat("index row: ", filters, " grain filters for ",
                                            row.meta.grain_count, " grains"));
  }
  for (size_t i = 0; i < filters; ++i) {
    row.meta.grain_filters.push_back(
        Get<GrainFilter>(from + kRowFiltersAt + i * sizeof(GrainFilter)));
  }
  return row;
}

std::string EncodeRowKey(const RowKey& key) {
  std::string text(kRowKeyBytes, kRowPrefix);
  for (int i = 0; i < 4; ++i) text[1 + i] = static_cast<char>(key.segment_id >> (24 - 8 * i));
  for (int i = 0; i < 8; ++i) text[5 + i] = static_cast<char>(key.offset >> (56 - 8 * i));
  return text;
}

absl::StatusOr<RowKey> DecodeRowKey(std::string_view key) {
  if (key.size() != kRowKeyBytes || key[0] != kRowPrefix) {
    return absl::DataLossError(absl::StrCat("index key of ", key.size(), " bytes"));
  }
  RowKey row;
  for (int i = 1; i < 5; ++i) row.segment_id = row.segment_id << 8 | static_cast<uint8_t>(key[i]);
  for (int i = 5; i < 13; ++i) row.offset = row.offset << 8 | static_cast<uint8_t>(key[i]);
  if (row.offset < kBlockBytes || row.offset % kBlockBytes != 0) {
    return absl::DataLossError(absl::StrCat("index key: offset ", row.offset));
  }
  return row;
}

absl::Status CheckMeta(const RecordMeta& meta) {
  absl::Status status = CheckObject(meta);
  if (!status.ok()) return status;
  if (meta.part_ends.empty() || meta.part_ends.size() > kMaxParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("part_ends: ", meta.part_ends.size(), " parts, not 1 .. ", kMaxParts));
  }
  if (meta.part_crcs.size() != meta.part_ends.size()) {
    return absl::InvalidArgumentError(absl::StrCat("part_crcs: ", meta.part_crcs.size(), " for ",
                                                   meta.part_ends.size(), " parts"));
  }
  uint64_t begin = 0;
  for (size_t i = 0; i < meta.part_ends.size(); ++i) {
    if (meta.part_ends[i] < begin || meta.part_ends[i] > meta.payload_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("part_ends[", i, "] = ", meta.part_ends[i],
                                                     " is outside ", begin, " .. ",
                                                     meta.payload_bytes));
    }
    begin = AlignUp(meta.part_ends[i], kPartAlignment);
  }
  if (begin != meta.payload_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("part_ends: the parts cover ", begin, " of ",
                                                   meta.payload_bytes, " payload bytes"));
  }
  // An index row holds at most the filters of all grains but the last.
  if (meta.grain_filters.size() >= std::max<uint32_t>(meta.grain_count, 1)) {
    return absl::InvalidArgumentError(absl::StrCat("grain_filters: ", meta.grain_filters.size(),
                                                   " for ", meta.grain_count, " grains"));
  }
  return absl::OkStatus();
}

std::string SegmentName(uint32_t segment_id) {
  return absl::StrCat("seg-", absl::Hex(segment_id, absl::kZeroPad8), ".tseg");
}

uint64_t RecordBytes(uint64_t payload_bytes) {
  return kBlockBytes + AlignUp(payload_bytes, kBlockBytes);
}

std::vector<GrainFilter> GrainFilters(const RecordMeta& meta, const uint8_t* payload) {
  std::vector<GrainFilter> filters;
  const uint64_t identity_bytes = IdentityBytes(meta.grain_count);
  if (meta.part_ends.empty() || meta.part_ends[0] != identity_bytes) return filters;
  for (uint64_t at = 0; at < identity_bytes; at += sizeof(ObjectKey)) {
    filters.push_back(Get<GrainFilter>(payload + at));
  }
  return filters;
}

}  // namespace terrace::nvme
