// The stored form of one object: a header of whole blocks, then the payload. Pure functions over
// bytes with full bounds checks; any thread. docs/formats/record.md says the same in words, for a
// second decoder.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/block.h"
#include "tiers/nvme/nvme_tier.h"

namespace terrace::nvme {

// Payload checksums cover pieces: each part, cut every so many bytes from its begin. So a piece can
// be checked as soon as it has been read, and a flipped bit is found to within a piece.
inline constexpr uint64_t kCrcPieceBytes = uint64_t{1} << 20;
inline constexpr uint32_t kMaxHeaderBlocks = 5;

struct RecordHeader {
  StoreId store_id{};
  uint32_t segment_id = 0;
  uint64_t generation = 0;
  uint64_t sequence = 0;  // ascending within one run of the daemon and across its restarts
  RecordMeta meta;        // grain_filters are not in a header
  std::vector<uint32_t> piece_crcs;  // in order of ForEachPiece; meta.part_crcs follow from them
};

// Visits the pieces of a payload in order. Empty parts have none. `visit` returns whether to go on.
using VisitPiece = absl::FunctionRef<bool(uint32_t part, uint64_t begin, uint64_t end)>;
void ForEachPiece(absl::Span<const uint64_t> part_ends, VisitPiece visit);

// Length of the header of such a record: 1 .. kMaxHeaderBlocks blocks.
uint64_t HeaderBytes(absl::Span<const uint64_t> part_ends);

// Requires CheckMeta() ok, all piece_crcs, and HeaderBytes() of room.
void EncodeRecordHeader(const RecordHeader& header, Bytes to);
// What the first block says of the header's length, a multiple of 4096 within bounds, though not
// yet checked. DataLoss when it is not the first block of a record header.
absl::StatusOr<uint64_t> RecordHeaderBytes(ConstBytes first_block);
// `bytes` may go on behind the header. DataLoss.
absl::StatusOr<RecordHeader> DecodeRecordHeader(ConstBytes bytes);

// The description of an object that record headers and footer entries share: kObjectBytes.
inline constexpr size_t kObjectBytes = 128;
void PutObject(uint8_t* to, const RecordMeta& meta);
absl::Status GetObject(const uint8_t* from, RecordMeta& meta);  // DataLoss

// InvalidArgument naming the field unless `meta` can be stored: payload a multiple of 64 within
// kMaxPayloadBytes, parts that cover it in order, one CRC a part.
absl::Status CheckMeta(const RecordMeta& meta);

// The grain filters of an object, from the identity part its payload begins with. Empty when the
// record's part 0 is not the identity part of its grain_count.
std::vector<GrainFilter> GrainFilters(const RecordMeta& meta, const uint8_t* payload);

}  // namespace terrace::nvme
