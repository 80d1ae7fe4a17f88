// The container of encoded KV: header and directory. Stored form: docs/formats/chunk.md. Any
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "codec/kv_shape.h"
#include "config/object_key.h"

namespace terrace::codec {

enum class CodecId : uint8_t {
  kRaw = 0,
  kLosslessFast = 1,
  kLossless = 2,
  kProfile = 3,
  kZstd = 4
};

struct ChunkHeader {
  CodecId codec = CodecId::kRaw;
  KvShape shape;
  // kProfile: tokens at the start and at the end that are kept as they are, the step (16 log2
  // lambda), and the profile.
  uint32_t raw_head = 0, raw_tail = 0;
  int32_t lambda16 = 0;
  Fingerprint profile{};
};

// Where a section lies in the container, first its tile table, then its tiles; or what a codec
// keeps beside the sections.
struct SectionPlace {
  uint64_t offset = 0;
  uint32_t bytes = 0;
  uint32_t crc = 0;  // of the tile table alone; of all bytes
};
struct TilePlace {
  uint32_t bytes = 0;
  uint32_t crc = 0;
};

inline constexpr int32_t kMaxLambda16 = 1024;

// InvalidArgument naming the field and its range.
absl::Status CheckShape(const KvShape& shape);

uint64_t HeaderBytes(const KvShape& shape);

// What lies beside the sections.
struct Extras {
  SectionPlace tables;      // of the codec, or the profile itself
  SectionPlace refinement;  // the directory of refined sections; behind all that is needed without
};

// Writes the header and the directory to HeaderBytes() bytes.
void WriteHeader(const ChunkHeader& header, const Extras& extras,
                 std::span<const SectionPlace> sections, uint8_t* out);
// Writes sections.size() places, as the directory holds them.
void WritePlaces(std::span<const SectionPlace> sections, uint8_t* out);
inline constexpr uint32_t kPlaceBytes = 16;

struct ParsedChunk {
  ChunkHeader header;
  SectionPlace tables;
  std::vector<SectionPlace> sections;
  std::vector<SectionPlace> refined;  // of each section; empty when there is none, or it is cut off
};
// InvalidArgument when this is no container or a field is out of range; FailedPrecondition on an
// unknown major version; DataLoss when it is cut off or its checksum does not match. Allocates no
// more than the bytes are long.
absl::StatusOr<ParsedChunk> ParseHeader(std::span<const uint8_t> container);

// What the codec keeps beside the sections. DataLoss when it is cut off or its checksum does not
// match.
absl::StatusOr<std::span<const uint8_t>> TablesOf(std::span<const uint8_t> container,
                                                  const ParsedChunk& chunk);

// The tiles of one section, each within the container. Checksums are looked at when a tile is asked
// for, so that it is in the cache when it is decoded.
class SectionTiles {
 public:
  // DataLoss naming the section.
  static absl::StatusOr<SectionTiles> Find(std::span<const uint8_t> container,
                                           const ParsedChunk& chunk, uint32_t section);
  // Of its refinement; without tiles when there is none, or it is cut off.
  static absl::StatusOr<SectionTiles> FindRefined(std::span<const uint8_t> container,
                                                  const ParsedChunk& chunk, uint32_t section);
  bool empty() const { return tiles_.empty(); }
  uint32_t section() const { return section_; }
  // DataLoss naming section and tile when the checksum does not match.
  absl::StatusOr<std::span<const uint8_t>> At(uint32_t tile) const;

 private:
  static absl::StatusOr<SectionTiles> Parse(std::span<const uint8_t> bytes, uint32_t tiles,
                                            uint32_t table_crc, uint32_t section);

  struct Tile {
    std::span<const uint8_t> bytes;
    uint32_t crc;
  };
  uint32_t section_ = 0;
  std::vector<Tile> tiles_;
};

// The status with the place before its message.
absl::Status InTile(uint32_t section, uint32_t tile, const absl::Status& status);

}  // namespace terrace::codec
