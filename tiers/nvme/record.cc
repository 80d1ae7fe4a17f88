#include "tiers/nvme/record.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"

namespace terrace::nvme {

namespace {

constexpr Magic kRecordMagic = {'T', 'R', 'C', 'R', 'E', 'C', 'R', 'D'};

// Record header.
constexpr size_t kSegmentIdAt = kFieldsAt;
constexpr size_t kPartCountAt = 36;
constexpr size_t kGenerationAt = 40;
constexpr size_t kSequenceAt = 48;
constexpr size_t kObjectAt = 56;
constexpr size_t kHeaderBytesAt = kObjectAt + kObjectBytes;  // 184
constexpr size_t kPieceCountAt = 188;
constexpr size_t kTablesAt = 192;  // ends of parts, then checksums of pieces; 4 bytes each

// The object description.
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
constexpr size_t kLifetimeAt = 116;  // 117: zero
constexpr size_t kPayloadBytesAt = 120;
constexpr size_t kDecodedBytesAt = 124;

constexpr uint16_t kRawCodec = 0, kEncodedCodec = 1;
constexpr uint32_t kMaxGrains = kMaxChunkTokens / kGrainTokens;
constexpr uint64_t kMaxPieces = kMaxParts + kMaxPayloadBytes / kCrcPieceBytes;
static_assert(kTablesAt + 4 * (kMaxParts + kMaxPieces) <= kMaxHeaderBlocks * kBlockBytes);

uint32_t PieceCount(absl::Span<const uint64_t> part_ends) {
  uint32_t pieces = 0;
  ForEachPiece(part_ends, [&](uint32_t, uint64_t, uint64_t) { return ++pieces != 0; });
  return pieces;
}

// What headers and rows both hold; the parts are checked by CheckMeta.
absl::Status CheckObject(const RecordMeta& meta) {
  const auto kind = static_cast<uint8_t>(meta.kind);
  if (kind < static_cast<uint8_t>(ObjectKind::kKv) ||
      kind > static_cast<uint8_t>(ObjectKind::kOpaque)) {
    return absl::InvalidArgumentError(absl::StrCat("kind ", kind, " is not known"));
  }
  const auto lifetime = static_cast<uint8_t>(meta.lifetime);
  if (lifetime >= kLifetimes) {
    return absl::InvalidArgumentError(absl::StrCat("lifetime class ", lifetime, " is not known"));
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
  if (meta.decoded_bytes != 0 &&
      (meta.decoded_bytes <= meta.payload_bytes || meta.decoded_bytes > kMaxPayloadBytes ||
       meta.decoded_bytes % kPartAlignment != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("decoded_bytes ", meta.decoded_bytes,
                     " is neither 0 nor a multiple of 64 above payload_bytes ", meta.payload_bytes,
                     " and at most ", kMaxPayloadBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckPartEnds(const RecordMeta& meta) {
  if (meta.part_ends.empty() || meta.part_ends.size() > kMaxParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("part_ends: ", meta.part_ends.size(), " parts, not 1 .. ", kMaxParts));
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
  if (begin == meta.payload_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("part_ends: the parts cover ", begin, " of ",
                                                 meta.payload_bytes, " payload bytes"));
}

// The checksums of the parts, from those of their pieces.
std::vector<uint32_t> PartCrcs(const RecordHeader& header) {
  std::vector<uint32_t> crcs(header.meta.part_ends.size(), 0);
  size_t piece = 0;
  ForEachPiece(header.meta.part_ends, [&](uint32_t part, uint64_t begin, uint64_t end) {
    crcs[part] = kernels::Crc32cConcat(crcs[part], header.piece_crcs[piece++], end - begin);
    return true;
  });
  return crcs;
}

}  // namespace

void ForEachPiece(absl::Span<const uint64_t> part_ends, VisitPiece visit) {
  uint64_t begin = 0;
  for (uint32_t part = 0; part < part_ends.size(); ++part) {
    for (; begin < part_ends[part]; begin += kCrcPieceBytes) {
      const uint64_t end = std::min(begin + kCrcPieceBytes, part_ends[part]);
      if (!visit(part, begin, end)) return;
    }
    begin = AlignUp(part_ends[part], kPartAlignment);
  }
}

uint64_t HeaderBytes(absl::Span<const uint64_t> part_ends) {
  return AlignUp(kTablesAt + 4 * (part_ends.size() + PieceCount(part_ends)), kBlockBytes);
}

void PutObject(uint8_t* to, const RecordMeta& meta) {
  std::memset(to, 0, kObjectBytes);
  Put(to + kKeyAt, meta.key.bytes);
  Put(to + kParentAt, meta.parent.bytes);
  Put(to + kFingerprintAt, meta.fingerprint);
  Put(to + kKindAt, static_cast<uint8_t>(meta.kind));
  Put(to + kFlagsAt, meta.flags);
  Put(to + kCodecAt, meta.decoded_bytes != 0 ? kEncodedCodec : kRawCodec);
  Put(to + kTenantAt, meta.tenant_id);
  Put(to + kTokenCountAt, meta.token_count);
  Put(to + kGrainCountAt, meta.grain_count);
  Put(to + kCostAt, meta.cost_us);
  Put(to + kLifetimeAt, static_cast<uint8_t>(meta.lifetime));
  Put(to + kPayloadBytesAt, static_cast<uint32_t>(meta.payload_bytes));  // kMaxPayloadBytes fits
  Put(to + kDecodedBytesAt, static_cast<uint32_t>(meta.decoded_bytes));
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
  meta.lifetime = static_cast<Lifetime>(from[kLifetimeAt]);
  meta.payload_bytes = Get<uint32_t>(from + kPayloadBytesAt);
  meta.decoded_bytes = Get<uint32_t>(from + kDecodedBytesAt);
  const uint16_t codec = Get<uint16_t>(from + kCodecAt);
  if (codec != (meta.decoded_bytes != 0 ? kEncodedCodec : kRawCodec)) {
    return absl::DataLossError(
        absl::StrCat("codec ", codec, " with a decoded length of ", meta.decoded_bytes));
  }
  return AsDataLoss(CheckObject(meta));
}

void EncodeRecordHeader(const RecordHeader& header, Bytes to) {
  const RecordMeta& meta = header.meta;
  const Bytes bytes = to.first(HeaderBytes(meta.part_ends));
  BeginHeader(bytes, kRecordMagic, header.store_id);
  uint8_t* at = bytes.data();
  Put(at + kSegmentIdAt, header.segment_id);
  Put(at + kPartCountAt, static_cast<uint32_t>(meta.part_ends.size()));
  Put(at + kGenerationAt, header.generation);
  Put(at + kSequenceAt, header.sequence);
  PutObject(at + kObjectAt, meta);
  Put(at + kHeaderBytesAt, static_cast<uint32_t>(bytes.size()));
  Put(at + kPieceCountAt, static_cast<uint32_t>(header.piece_crcs.size()));
  at += kTablesAt;
  for (uint64_t end : meta.part_ends) {
    Put(at, static_cast<uint32_t>(end));  // kMaxPayloadBytes fits
    at += 4;
  }
  for (uint32_t crc : header.piece_crcs) {
    Put(at, crc);
    at += 4;
  }
  SealHeader(bytes);
}

absl::StatusOr<uint64_t> RecordHeaderBytes(ConstBytes first_block) {
  absl::Status status = AsDataLoss(CheckHeaderKind(first_block, kRecordMagic, "record header"));
  if (!status.ok()) return status;
  const uint64_t bytes = Get<uint32_t>(first_block.data() + kHeaderBytesAt);
  if (bytes % kBlockBytes == 0 && bytes > 0 && bytes <= kMaxHeaderBlocks * kBlockBytes) {
    return bytes;
  }
  return absl::DataLossError(absl::StrCat("record header: length ", bytes));
}

absl::StatusOr<RecordHeader> DecodeRecordHeader(ConstBytes bytes) {
  absl::StatusOr<uint64_t> header_bytes = RecordHeaderBytes(bytes);
  if (!header_bytes.ok()) return header_bytes.status();
  if (*header_bytes > bytes.size()) return absl::DataLossError("record header: cut short");
  absl::Status status =
      AsDataLoss(CheckHeader(bytes.first(*header_bytes), kRecordMagic, "record header"));
  if (!status.ok()) return status;
  const uint8_t* from = bytes.data();
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
  for (uint32_t i = 0; i < parts; ++i) {
    meta.part_ends.push_back(Get<uint32_t>(from + kTablesAt + 4 * i));
  }
  status = AsDataLoss(CheckPartEnds(meta));
  if (!status.ok()) return status;
  const uint32_t pieces = Get<uint32_t>(from + kPieceCountAt);
  if (pieces != PieceCount(meta.part_ends) || *header_bytes != HeaderBytes(meta.part_ends)) {
    return absl::DataLossError(absl::StrCat("record header of ", *header_bytes, " bytes: ", pieces,
                                            " pieces for its ", parts, " parts"));
  }
  for (uint32_t i = 0; i < pieces; ++i) {
    header.piece_crcs.push_back(Get<uint32_t>(from + kTablesAt + 4 * (parts + i)));
  }
  meta.part_crcs = PartCrcs(header);
  return header;
}

absl::Status CheckMeta(const RecordMeta& meta) {
  absl::Status status = CheckObject(meta);
  if (status.ok()) status = CheckPartEnds(meta);
  if (!status.ok()) return status;
  if (meta.part_crcs.size() != meta.part_ends.size()) {
    return absl::InvalidArgumentError(absl::StrCat("part_crcs: ", meta.part_crcs.size(), " for ",
                                                   meta.part_ends.size(), " parts"));
  }
  // A footer entry holds at most the filters of all grains but the last.
  if (meta.grain_filters.size() >= std::max<uint32_t>(meta.grain_count, 1)) {
    return absl::InvalidArgumentError(absl::StrCat("grain_filters: ", meta.grain_filters.size(),
                                                   " for ", meta.grain_count, " grains"));
  }
  return absl::OkStatus();
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
