#include "codec/container.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "codec/byte_reader.h"
#include "kernels/checksum.h"

namespace terrace::codec {
namespace {

constexpr char kMagic[8] = {'T', 'K', 'V', 'C', 'H', 'U', 'N', 'K'};
constexpr uint32_t kFixedBytes = 128;
constexpr uint32_t kTilePlaceBytes = 8;

class ByteWriter {
 public:
  explicit ByteWriter(uint8_t* out) : out_(out) {}
  template <typename T>
  void Put(T value) {
    std::memcpy(out_, &value, sizeof value);
    out_ += sizeof value;
  }
  void PutBytes(const void* bytes, size_t count) {
    std::memcpy(out_, bytes, count);
    out_ += count;
  }

 private:
  uint8_t* out_;
};

void PutPlace(const SectionPlace& place, ByteWriter* writer) {
  writer->Put<uint64_t>(place.offset);
  writer->Put<uint32_t>(place.bytes);
  writer->Put<uint32_t>(place.crc);
}

SectionPlace ReadPlace(ByteReader* reader) {
  const auto offset = reader->Read<uint64_t>();
  const auto bytes = reader->Read<uint32_t>();
  return {offset, bytes, reader->Read<uint32_t>()};
}

bool IsWithin(const SectionPlace& place, std::span<const uint8_t> container) {
  return place.offset <= container.size() && place.bytes <= container.size() - place.offset;
}

uint32_t HeaderCrc(const uint8_t* header, size_t bytes) {
  const uint32_t zero = 0;
  uint32_t crc = kernels::Crc32c(header, 12);
  crc = kernels::Crc32c(&zero, sizeof zero, crc);
  return kernels::Crc32c(header + 16, bytes - 16, crc);
}

absl::Status Bad(absl::string_view field, absl::string_view range) {
  return absl::InvalidArgumentError(absl::StrCat("chunk header: ", field, " must be ", range));
}

}  // namespace

absl::Status CheckShape(const KvShape& shape) {
  const int dtype = static_cast<int>(shape.dtype), order = static_cast<int>(shape.order);
  if (dtype < 1 || dtype > 6) return Bad("dtype", "1 .. 6");
  if (order < 1 || order > 2) return Bad("order", "1 or 2");
  if (shape.layers < 1 || shape.layers > kMaxParts / 2) return Bad("layers", "1 .. 220");
  if (shape.heads < 1 || shape.heads > 1024) return Bad("kv_heads", "1 .. 1024");
  if (shape.k_dim < 1 || shape.k_dim > 4096) return Bad("k_dim", "1 .. 4096");
  if (shape.v_dim < 1 || shape.v_dim > 4096) return Bad("v_dim", "1 .. 4096");
  if (shape.tokens > kMaxChunkTokens) return Bad("tokens", "0 .. 4096");
  return absl::OkStatus();
}

uint64_t HeaderBytes(const KvShape& shape) {
  return kFixedBytes + uint64_t{kPlaceBytes} * shape.Sections();
}

void WriteHeader(const ChunkHeader& header, const Extras& extras,
                 std::span<const SectionPlace> sections, uint8_t* out) {
  const KvShape& shape = header.shape;
  const uint64_t bytes = HeaderBytes(shape);
  std::memset(out, 0, kFixedBytes);
  ByteWriter writer(out);
  writer.PutBytes(kMagic, sizeof kMagic);
  writer.Put<uint16_t>(1);
  writer.Put<uint16_t>(0);
  writer.Put<uint32_t>(0);  // the checksum
  writer.Put<uint32_t>(static_cast<uint32_t>(bytes));
  writer.Put<uint32_t>(shape.tokens);
  writer.Put<uint64_t>(shape.position);
  writer.Put<uint8_t>(static_cast<uint8_t>(shape.dtype));
  writer.Put<uint8_t>(static_cast<uint8_t>(shape.order));
  writer.Put<uint8_t>(static_cast<uint8_t>(header.codec));
  writer.Put<uint8_t>(0);
  writer.Put<int32_t>(header.lambda16);
  for (uint32_t field :
       {shape.layers, shape.heads, shape.k_dim, shape.v_dim, header.raw_head, header.raw_tail}) {
    writer.Put<uint32_t>(field);
  }
  writer.PutBytes(header.profile.data(), header.profile.size());
  PutPlace(extras.tables, &writer);
  PutPlace(extras.refinement, &writer);
  WritePlaces(sections, out + kFixedBytes);
  const uint32_t crc = HeaderCrc(out, bytes);
  std::memcpy(out + 12, &crc, sizeof crc);
}

void WritePlaces(std::span<const SectionPlace> sections, uint8_t* out) {
  ByteWriter writer(out);
  for (const SectionPlace& place : sections) PutPlace(place, &writer);
}

namespace {

// The places of refined sections, where they are.
absl::Status ParseRefinement(std::span<const uint8_t> container, const SectionPlace& place,
                             ParsedChunk* chunk) {
  if (place.bytes == 0 || !IsWithin(place, container)) return absl::OkStatus();
  const uint32_t sections = chunk->header.shape.Sections();
  if (chunk->header.codec != CodecId::kProfile || place.bytes != kPlaceBytes * sections) {
    return Bad("refinement", "a place a section, and of codec 3");
  }
  const auto bytes = container.subspan(place.offset, place.bytes);
  if (kernels::Crc32c(bytes.data(), bytes.size()) != place.crc) {
    return absl::DataLossError("directory of the refinement: checksum does not match");
  }
  ByteReader reader(bytes);
  for (uint32_t s = 0; s < sections; ++s) chunk->refined.push_back(ReadPlace(&reader));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedChunk> ParseHeader(std::span<const uint8_t> container) {
  if (container.size() < kFixedBytes || std::memcmp(container.data(), kMagic, sizeof kMagic) != 0) {
    return absl::InvalidArgumentError("chunk header: no TKVCHUNK at its start, or cut off");
  }
  ByteReader reader(container.subspan(8));
  if (const auto major = reader.Read<uint16_t>(); major != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("chunk header: format ", major, "; this program reads format 1"));
  }
  reader.Skip(2);
  const auto crc = reader.Read<uint32_t>();
  const auto bytes = reader.Read<uint32_t>();
  if (bytes < kFixedBytes || bytes > container.size()) {
    return absl::DataLossError("chunk header: cut off");
  }
  if (HeaderCrc(container.data(), bytes) != crc) {
    return absl::DataLossError("chunk header: checksum does not match");
  }
  ParsedChunk parsed;
  KvShape& shape = parsed.header.shape;
  shape.tokens = reader.Read<uint32_t>();
  shape.position = reader.Read<uint64_t>();
  shape.dtype = static_cast<Dtype>(reader.Read<uint8_t>());
  shape.order = static_cast<KvOrder>(reader.Read<uint8_t>());
  parsed.header.codec = static_cast<CodecId>(reader.Read<uint8_t>());
  reader.Skip(1);
  parsed.header.lambda16 = reader.Read<int32_t>();
  for (uint32_t* field : {&shape.layers, &shape.heads, &shape.k_dim, &shape.v_dim,
                          &parsed.header.raw_head, &parsed.header.raw_tail}) {
    *field = reader.Read<uint32_t>();
  }
  reader.Copy(parsed.header.profile.data(), parsed.header.profile.size());
  parsed.tables = ReadPlace(&reader);
  const SectionPlace refinement = ReadPlace(&reader);
  if (absl::Status status = CheckShape(shape); !status.ok()) return status;
  if (parsed.header.lambda16 < -kMaxLambda16 || parsed.header.lambda16 > kMaxLambda16) {
    return Bad("lambda16", "-1024 .. 1024");
  }
  if (bytes != HeaderBytes(shape)) return absl::DataLossError("chunk header: wrong length");
  reader = ByteReader(container.subspan(kFixedBytes, bytes - kFixedBytes));
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    parsed.sections.push_back(ReadPlace(&reader));
  }
  absl::Status status = ParseRefinement(container, refinement, &parsed);
  if (!status.ok()) return status;
  return parsed;
}

absl::StatusOr<std::span<const uint8_t>> TablesOf(std::span<const uint8_t> container,
                                                  const ParsedChunk& chunk) {
  if (!IsWithin(chunk.tables, container)) return absl::DataLossError("tables: cut off");
  const auto bytes = container.subspan(chunk.tables.offset, chunk.tables.bytes);
  if (kernels::Crc32c(bytes.data(), bytes.size()) != chunk.tables.crc) {
    return absl::DataLossError("tables: checksum does not match");
  }
  return bytes;
}

absl::StatusOr<SectionTiles> SectionTiles::Find(std::span<const uint8_t> container,
                                                const ParsedChunk& chunk, uint32_t section) {
  const SectionPlace& place = chunk.sections[section];
  if (!IsWithin(place, container)) {
    return absl::DataLossError(absl::StrCat("section ", section, ": cut off"));
  }
  return Parse(container.subspan(place.offset, place.bytes), chunk.header.shape.Tiles(), place.crc,
               section);
}

absl::StatusOr<SectionTiles> SectionTiles::FindRefined(std::span<const uint8_t> container,
                                                       const ParsedChunk& chunk, uint32_t section) {
  if (chunk.refined.empty() || !IsWithin(chunk.refined[section], container)) return SectionTiles();
  const SectionPlace& place = chunk.refined[section];
  return Parse(container.subspan(place.offset, place.bytes), chunk.header.shape.Tiles(), place.crc,
               section);
}

absl::StatusOr<SectionTiles> SectionTiles::Parse(std::span<const uint8_t> bytes, uint32_t count,
                                                 uint32_t table_crc, uint32_t section) {
  const auto lost = [section](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("section ", section, ": ", what));
  };
  const uint64_t table_bytes = uint64_t{kTilePlaceBytes} * count;
  if (table_bytes > bytes.size()) return lost("shorter than its tile table");
  if (kernels::Crc32c(bytes.data(), table_bytes) != table_crc) {
    return lost("checksum of its tile table does not match");
  }
  ByteReader reader(bytes.first(table_bytes));
  SectionTiles tiles;
  tiles.section_ = section;
  uint64_t at = table_bytes;
  for (uint32_t t = 0; t < count; ++t) {
    const auto tile_bytes = reader.Read<uint32_t>(), crc = reader.Read<uint32_t>();
    if (tile_bytes > bytes.size() - at) return lost(absl::StrCat("tile ", t, " is cut off"));
    tiles.tiles_.push_back({bytes.subspan(at, tile_bytes), crc});
    at += tile_bytes;
  }
  if (at != bytes.size()) return lost("bytes after its last tile");
  return tiles;
}

absl::StatusOr<std::span<const uint8_t>> SectionTiles::At(uint32_t tile) const {
  const auto& [bytes, crc] = tiles_[tile];
  if (kernels::Crc32c(bytes.data(), bytes.size()) != crc) {
    return absl::DataLossError(
        absl::StrCat("section ", section_, ": checksum of tile ", tile, " does not match"));
  }
  return bytes;
}

absl::Status InTile(uint32_t section, uint32_t tile, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("section ", section, ", tile ", tile, ": ", status.message()));
}

}  // namespace terrace::codec
