// Bytes from a disk, through the parsers of the NVMe tier. The first byte chooses the parser, and
// whether the rest is taken as it is or as edits of something valid, resealed: random bytes alone
// never pass a checksum, and hardly ever a table of parts.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/checksum.h"
#include "tiers/nvme/record.h"
#include "tiers/nvme/record_check.h"
#include "tiers/nvme/segment_format.h"

namespace terrace::nvme {
namespace {

constexpr size_t kBlockCrcAt = 12, kRowCrcAt = 4;
// A header may promise 4 GiB; payloads are made up to here only.
constexpr uint64_t kMaxTriedPayloadBytes = 256 << 10;

using Text = std::string_view;
using Buffer = std::vector<uint8_t>;

void Check(bool holds) {
  if (!holds) abort();
}

// Hands out the fuzzer's bytes, and zeros behind their end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  uint8_t U8() {
    if (left_ == 0) return 0;
    --left_;
    return *at_++;
  }
  uint16_t U16() { return static_cast<uint16_t>(U8() | U8() << 8); }
  Buffer Rest() { return Buffer(at_, at_ + std::exchange(left_, 0)); }

 private:
  const uint8_t* at_;
  size_t left_;
};

Text AsText(const Buffer& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Buffer Copy(std::string_view text) { return Buffer(text.begin(), text.end()); }

// What may be stored: up to 16 parts of zeros, the first of them the identity part of its grains.
RecordMeta ValidMeta(Input& input) {
  RecordMeta meta;
  meta.key.bytes.fill(input.U8());
  meta.kind = static_cast<ObjectKind>(1 + input.U8() % 4);
  meta.flags = input.U8() & kRecordPinned;
  meta.token_count = input.U16() % (kMaxChunkTokens + 1);
  meta.grain_count = input.U8();
  // Fewer filters than grains are allowed, so that one edit of their number can go too far.
  meta.grain_filters.resize(input.U8() % std::max<uint32_t>(meta.grain_count, 1), input.U16());
  const Buffer zeros(UINT16_MAX);
  uint64_t part_bytes = IdentityBytes(meta.grain_count), end = 0;
  const int parts = 2 + input.U8() % 15;
  for (int i = 0; i < parts; ++i) {
    end = AlignUp(end, kPartAlignment) + part_bytes;
    meta.part_ends.push_back(end);
    meta.part_crcs.push_back(kernels::Crc32c(zeros.data(), part_bytes));
    part_bytes = 1 + input.U16() % (zeros.size() / 4);
  }
  meta.payload_bytes = AlignUp(end, kPartAlignment);
  Check(CheckMeta(meta).ok());
  return meta;
}

// Offset and value, as long as there are any: bytes that a disk or an attacker changed.
void Edit(Input& input, Buffer& bytes) {
  while (!input.empty()) {
    const uint16_t at = input.U16();
    bytes[at % bytes.size()] = input.U8();
  }
}

void Seal(Buffer& bytes, size_t crc_at) {
  if (bytes.size() < crc_at + sizeof(uint32_t)) return;
  std::memset(bytes.data() + crc_at, 0, sizeof(uint32_t));
  const uint32_t crc = kernels::Crc32c(bytes.data(), bytes.size());
  std::memcpy(bytes.data() + crc_at, &crc, sizeof crc);
}

// Whatever decodes must encode to something that decodes alike.
void ReadSuperblock(const Buffer& block) {
  const auto superblock = DecodeSuperblock(block);
  if (!superblock.ok()) return;
  Buffer again(kBlockBytes);
  EncodeSuperblock(*superblock, absl::MakeSpan(again));
  Check(DecodeSuperblock(again)->store_id == superblock->store_id);
}

void ReadSegmentHeader(const Buffer& block) {
  const auto header = DecodeSegmentHeader(block);
  if (!header.ok()) return;
  Check(header->segment_bytes >= kBlockBytes && header->segment_bytes % kBlockBytes == 0);
  Buffer again(kBlockBytes);
  EncodeSegmentHeader(*header, absl::MakeSpan(again));
  Check(DecodeSegmentHeader(again)->generation == header->generation);
}

// A record whose parts are zeros arrives piece by piece: nothing beyond it is read, and parts
// count only as far as they arrived.
void ReadPayload(const RecordHeader& header, const Buffer& block) {
  const RecordMeta& meta = header.meta;
  if (meta.payload_bytes > kMaxTriedPayloadBytes) return;
  const kernels::AlignedBuffer payload(meta.payload_bytes);
  std::memset(payload.data(), 0, payload.size_bytes());
  const uint64_t header_bytes = HeaderBytes(meta.part_ends);
  RecordRead read({header.store_id, header.segment_id, header.generation, header_bytes,
                   meta.payload_bytes, meta.key, meta.fingerprint},
                  block.data(), payload.data());
  for (uint64_t arrived = 0;; arrived += kBlockBytes) {
    if (!read.Advance(header_bytes + arrived).ok()) return;
    const uint32_t ready = read.parts_ready();
    Check(ready == 0 || meta.part_ends[ready - 1] <= arrived);
    if (arrived >= meta.payload_bytes) break;
  }
  Check(read.parts_ready() == meta.part_ends.size());
  const RecordMeta whole = read.TakeMeta();
  Check(CheckMeta(whole).ok() && whole.key == meta.key);
}

void ReadRecordHeader(const Buffer& block) {
  const auto header = DecodeRecordHeader(block);
  if (!header.ok()) return;
  const RecordMeta& meta = header->meta;
  Check(CheckMeta(meta).ok());
  Check(!meta.part_ends.empty() && meta.part_ends.size() <= kMaxParts);
  Check(meta.part_crcs.size() == meta.part_ends.size());
  Check(std::is_sorted(meta.part_ends.begin(), meta.part_ends.end()));
  Check(meta.part_ends.back() <= meta.payload_bytes && meta.payload_bytes <= kMaxPayloadBytes);
  Check(IdentityBytes(meta.grain_count) <= kMaxChunkTokens / kGrainTokens * sizeof(ObjectKey));
  Check(HeaderBytes(meta.part_ends) <= block.size());
  Buffer again(HeaderBytes(meta.part_ends));
  EncodeRecordHeader(*header, absl::MakeSpan(again));
  const auto decoded = DecodeRecordHeader(again);
  Check(decoded.ok() && decoded->meta.part_ends == meta.part_ends &&
        decoded->piece_crcs == header->piece_crcs && decoded->sequence == header->sequence);
  ReadPayload(*header, block);
}

// Entries, of a footer or of a row: whatever is taken lies within what was given and encodes alike.
void ReadEntries(Text entries) {
  RecordEntry entry;
  while (!entries.empty()) {
    const size_t before = entries.size();
    const Text rest = entries;
    if (!TakeEntry(entries, entry).ok()) return;
    Check(before - entries.size() == EntryBytes(entry.meta));
    Check(entry.offset >= kBlockBytes && entry.offset % kBlockBytes == 0);
    Check(entry.header_bytes >= kBlockBytes &&
          entry.header_bytes <= kMaxHeaderBlocks * kBlockBytes);
    std::string again;
    AppendEntry(entry, again);
    Text parsed = again;
    RecordEntry twice;
    Check(again.size() == before - entries.size() && TakeEntry(parsed, twice).ok());
    Check(twice.meta.key == entry.meta.key && twice.offset == entry.offset &&
          twice.meta.grain_filters == entry.meta.grain_filters);
    Check(rest.size() == before);
  }
}

void ReadFooter(const Buffer& block) {
  const auto footer = DecodeFooterBlock(block);
  if (footer.ok()) static_cast<void>(CheckEntries(*footer, {}));
}

void ReadRow(const Buffer& value) {
  Text entries = AsText(value);
  const auto row = TakeSegmentRow(entries);
  if (!row.ok()) return;
  Check(EncodeSegmentRow(*row, entries).size() == value.size());
  ReadEntries(entries);
}

void ReadKeys(const Buffer& text) {
  const auto segment = DecodeSegmentRowKey(AsText(text));
  if (segment.ok()) Check(SegmentRowKey(*segment) == AsText(text));
  const auto place = DecodeNoteKey(AsText(text));
  if (place.ok()) Check(NoteKey(*place) == AsText(text));
}

// Of a record with one part more than is tried out in full: 1 to 4 pieces of zeros.
Buffer RecordHeaderOf(Input& input) {
  RecordHeader header{{}, input.U16(), input.U16(), input.U16(), ValidMeta(input), {}};
  const Buffer zeros(kCrcPieceBytes);
  const uint64_t more = input.U8() % 2 * input.U16() * 64;
  if (more > 0) {
    header.meta.part_ends.push_back(header.meta.payload_bytes + more);
    header.meta.part_crcs.push_back(0);
    header.meta.payload_bytes += more;
  }
  ForEachPiece(header.meta.part_ends, [&](uint32_t, uint64_t begin, uint64_t end) {
    header.piece_crcs.push_back(kernels::Crc32c(zeros.data(), end - begin));
    return true;
  });
  Buffer bytes(HeaderBytes(header.meta.part_ends));
  EncodeRecordHeader(header, absl::MakeSpan(bytes));
  return bytes;
}

std::string EntriesOf(Input& input) {
  std::string entries;
  const int count = 1 + input.U8() % 3;
  for (int i = 0; i < count; ++i) {
    const RecordMeta meta = ValidMeta(input);
    AppendEntry({(1 + input.U16()) * kBlockBytes, kBlockBytes, input.U16(), meta}, entries);
  }
  return entries;
}

struct Parser {
  Buffer (*make)(Input& input);
  size_t crc_at;
  void (*read)(const Buffer& bytes);
};

constexpr size_t kNoCrc = SIZE_MAX - sizeof(uint32_t);
constexpr Parser kParsers[] = {
    {[](Input& input) {
       Buffer block(kBlockBytes);
       EncodeSuperblock(
           {{}, input.U16(), input.U16() * kBlockBytes, input.U16(), input.U16(), true},
           absl::MakeSpan(block));
       return block;
     },
     kBlockCrcAt, ReadSuperblock},
    {[](Input& input) {
       Buffer block(kBlockBytes);
       EncodeSegmentHeader({{}, input.U16(), input.U16(), (1 + input.U16()) * kBlockBytes},
                           absl::MakeSpan(block));
       return block;
     },
     kBlockCrcAt, ReadSegmentHeader},
    {RecordHeaderOf, kBlockCrcAt, ReadRecordHeader},
    {[](Input& input) {
       const std::string entries = EntriesOf(input);
       Buffer footer(FooterBytes(entries.size()));
       EncodeFooter({{}, input.U16(), input.U16(), input.U16()}, entries, absl::MakeSpan(footer));
       return Buffer(footer.end() - kBlockBytes, footer.end());
     },
     kBlockCrcAt, ReadFooter},
    {[](Input& input) {
       return Copy(EncodeSegmentRow({input.U16(), input.U16()}, EntriesOf(input)));
     },
     kRowCrcAt, ReadRow},
    {[](Input& input) {
       return Copy(input.U8() % 2 == 0 ? SegmentRowKey(input.U16())
                                       : NoteKey({input.U16(), input.U16(), input.U16()}));
     },
     kNoCrc, ReadKeys},
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint8_t choice = input.U8();
  const Parser& parser = kParsers[(choice & 0x7f) % std::size(kParsers)];
  if ((choice & 0x80) != 0) {
    parser.read(input.Rest());
    return 0;
  }
  Buffer bytes = parser.make(input);
  Edit(input, bytes);
  Seal(bytes, parser.crc_at);
  parser.read(bytes);
  return 0;
}

}  // namespace terrace::nvme
