// The stored formats of the NVMe tier: superblock, segment header, record header, index row. Pure
// functions over bytes with full bounds checks; any thread. docs/formats/{segment,record}.md say
// the same in words, for a second decoder.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace::nvme {

inline constexpr uint64_t kBlockBytes = 4096;  // unit of every offset and of O_DIRECT
inline constexpr uint16_t kFormatMajor = 1;
inline constexpr uint16_t kFormatMinor = 0;

// Random, one a store. It is in every header, so a block that a client stored as payload is never
// taken for a header: clients do not know it.
using StoreId = std::array<uint8_t, 16>;

using Block = absl::Span<uint8_t>;  // exactly kBlockBytes
using ConstBlock = absl::Span<const uint8_t>;

struct Superblock {
  StoreId store_id{};
  uint64_t segment_bytes = 0;  // at creation, for people; each segment header has its own
};
void EncodeSuperblock(const Superblock& superblock, Block block);
// FailedPrecondition for a major version this build does not know, DataLoss for anything else.
absl::StatusOr<Superblock> DecodeSuperblock(ConstBlock block);

struct SegmentHeader {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;     // grows each time the file is reused
  uint64_t segment_bytes = 0;  // length of the file when it was written, a multiple of 4096
};
void EncodeSegmentHeader(const SegmentHeader& header, Block block);
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ConstBlock block);  // DataLoss

// A record: one header block, then the payload padded to 4096.
struct RecordHeader {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t sequence = 0;  // ascending within one run of the daemon and across its restarts
  RecordMeta meta;        // grain_filters are not in a header
};
// Requires CheckMeta() ok.
void EncodeRecordHeader(const RecordHeader& header, Block block);
absl::StatusOr<RecordHeader> DecodeRecordHeader(ConstBlock block);  // DataLoss

// The RocksDB row of a durable record.
struct IndexRow {
  uint64_t generation = 0;
  uint64_t sequence = 0;
  RecordMeta meta;  // part_ends and part_crcs are not in a row
};
std::string EncodeRow(const IndexRow& row);
absl::StatusOr<IndexRow> DecodeRow(std::string_view value);  // DataLoss

// Row keys sort by segment, then offset, so that one range holds a segment's rows.
struct RowKey {
  uint32_t segment_id = 0;
  uint64_t offset = 0;  // bytes, of the header block
};
std::string EncodeRowKey(const RowKey& key);
absl::StatusOr<RowKey> DecodeRowKey(std::string_view key);  // DataLoss

// InvalidArgument naming the field unless `meta` can be stored: payload a multiple of 64 within
// kMaxPayloadBytes, parts that cover it in order, one CRC a part.
absl::Status CheckMeta(const RecordMeta& meta);

// Name of a segment's file: "seg-0000002a.tseg".
std::string SegmentName(uint32_t segment_id);

// Bytes a record takes in its segment.
uint64_t RecordBytes(uint64_t payload_bytes);

// The grain filters of an object, from the identity part its payload begins with. Empty when the
// record's part 0 is not the identity part of its grain_count.
std::vector<GrainFilter> GrainFilters(const RecordMeta& meta, const uint8_t* payload);

}  // namespace terrace::nvme
