#include "codec/tile_runs.h"

#include <cstring>

#include "codec/section_writer.h"

namespace terrace::codec {

TileRuns::TileRuns(const KvShape& shape, uint32_t section, uint32_t tile) {
  const size_t row = size_t{shape.Dim(section)} * DtypeBytes(shape.dtype);
  const bool token_major = shape.order == KvOrder::kTokenMajor;
  const size_t token_bytes = token_major ? row * shape.heads : row;
  first = tile * kTileTokens * token_bytes;
  runs = token_major ? 1 : shape.heads;
  run_bytes = shape.TileTokens(tile) * token_bytes;
  stride = shape.tokens * token_bytes;
}

void TileRuns::Gather(const uint8_t* section, uint8_t* tile) const {
  for (size_t r = 0; r < runs; ++r) {
    std::memcpy(tile + r * run_bytes, section + first + r * stride, run_bytes);
  }
}

void TileRuns::Scatter(const uint8_t* tile, uint8_t* section) const {
  for (size_t r = 0; r < runs; ++r) {
    std::memcpy(section + first + r * stride, tile + r * run_bytes, run_bytes);
  }
}

absl::StatusOr<std::vector<uint8_t>> EncodeTiles(CodecId codec, const EncodeRequest& request,
                                                 const AppendTile& append) {
  const KvShape& shape = request.shape;
  std::vector<SectionWriter> writers;
  std::vector<uint8_t> values;
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    writers.emplace_back(shape.Tiles(), shape.SectionBytes(s));
    for (uint32_t tile = 0; tile < shape.Tiles(); ++tile) {
      const TileRuns runs(shape, s, tile);
      values.resize(runs.bytes());
      runs.Gather(request.sections[s], values.data());
      if (absl::Status status = append(values, writers[s].Begin()); !status.ok()) return status;
      writers[s].End();
    }
  }
  return Assemble({.codec = codec, .shape = shape}, writers);
}

absl::Status TiledDecoder::Decode(const SectionTiles& tiles, uint8_t* out) const {
  for (uint32_t t = 0; t < shape_.Tiles(); ++t) {
    const auto tile = tiles.At(t);
    if (!tile.ok()) return tile.status();
    const absl::Status status = DecodeTile(*tile, TileRuns(shape_, tiles.section(), t), out);
    if (!status.ok()) return InTile(tiles.section(), t, status);
  }
  return absl::OkStatus();
}

}  // namespace terrace::codec
