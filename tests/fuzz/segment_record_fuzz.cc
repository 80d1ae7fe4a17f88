// Bytes from a disk, through the parsers of the NVMe tier. The first byte chooses the parser and
// whether the checksum is made to match, so that what lies behind it is reached.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/checksum.h"
#include "tiers/nvme/record.h"

namespace terrace::nvme {
namespace {

constexpr size_t kBlockCrcAt = 12, kRowCrcAt = 4;

void Check(bool holds) {
  if (!holds) abort();
}

void FixCrc(std::vector<uint8_t>& bytes, size_t at) {
  if (bytes.size() < at + 4) return;
  std::memset(bytes.data() + at, 0, 4);
  const uint32_t crc = kernels::Crc32c(bytes.data(), bytes.size());
  std::memcpy(bytes.data() + at, &crc, sizeof crc);
}

// What decodes encodes to the same bytes, but for those that mean nothing.
void ReadBlock(uint8_t which, const std::vector<uint8_t>& block) {
  std::vector<uint8_t> again(kBlockBytes);
  switch (which) {
    case 0: {
      const auto superblock = DecodeSuperblock(block);
      if (!superblock.ok()) return;
      EncodeSuperblock(*superblock, absl::MakeSpan(again));
      Check(DecodeSuperblock(again)->store_id == superblock->store_id);
      return;
    }
    case 1: {
      const auto header = DecodeSegmentHeader(block);
      if (!header.ok()) return;
      Check(header->segment_bytes >= kBlockBytes && header->segment_bytes % kBlockBytes == 0);
      EncodeSegmentHeader(*header, absl::MakeSpan(again));
      Check(DecodeSegmentHeader(again)->generation == header->generation);
      return;
    }
    default: {
      const auto header = DecodeRecordHeader(block);
      if (!header.ok()) return;
      const RecordMeta& meta = header->meta;
      Check(CheckMeta(meta).ok());
      Check(meta.part_ends.size() == meta.part_crcs.size() && meta.part_ends.size() <= kMaxParts);
      Check(meta.part_ends.back() <= meta.payload_bytes && meta.payload_bytes <= kMaxPayloadBytes);
      EncodeRecordHeader(*header, absl::MakeSpan(again));
      const auto decoded = DecodeRecordHeader(again);
      Check(decoded.ok() && decoded->meta.part_ends == meta.part_ends);
      // The identity part is never read beyond what the header says it holds.
      const std::vector<uint8_t> identity(IdentityBytes(meta.grain_count));
      Check(GrainFilters(meta, identity.data()).size() <= meta.grain_count);
    }
  }
}

void ReadRow(const std::vector<uint8_t>& bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (const auto row = DecodeRow(text); row.ok()) {
    const auto again = DecodeRow(EncodeRow(*row));
    Check(again.ok() && again->meta.grain_filters == row->meta.grain_filters);
    Check(again->meta.key == row->meta.key && again->generation == row->generation);
  }
  if (const auto key = DecodeRowKey(text); key.ok()) Check(EncodeRowKey(*key) == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t which = data[0] % 4;
  const bool fix = (data[0] & 0x80) != 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  if (which == 3) {
    if (fix) FixCrc(bytes, kRowCrcAt);
    ReadRow(bytes);
    return 0;
  }
  static constexpr const char* kMagics[] = {"TRCSUPER", "TRCSEGMT", "TRCRECRD"};
  if (fix) {
    bytes.resize(kBlockBytes);
    std::memcpy(bytes.data(), kMagics[which], 8);
    bytes[8] = kFormatMajor;
    bytes[9] = 0;
    FixCrc(bytes, kBlockCrcAt);
  }
  ReadBlock(which, bytes);
  return 0;
}

}  // namespace terrace::nvme
