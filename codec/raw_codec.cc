#include "codec/raw_codec.h"

#include "codec/kv_rows.h"
#include "codec/section_writer.h"

namespace terrace::codec {
namespace {

class RawDecoder final : public SectionDecoder {
 public:
  explicit RawDecoder(const KvShape& shape) : shape_(shape) {}

  absl::Status Decode(const SectionTiles& tiles, uint8_t* out) const override {
    const uint32_t section = tiles.section();
    const size_t token_bytes = size_t{shape_.Channels(section)} * DtypeBytes(shape_.dtype);
    for (uint32_t t = 0; t < shape_.Tiles(); ++t) {
      const auto tile = tiles.At(t);
      if (!tile.ok()) return tile.status();
      if (tile->size() != shape_.TileTokens(t) * token_bytes) {
        return InTile(section, t, absl::DataLossError("not as long as its tokens"));
      }
      for (uint32_t i = 0; i < shape_.TileTokens(t); ++i) {
        WriteRawRow(shape_, section, tile->data() + i * token_bytes, t * kTileTokens + i, out);
      }
    }
    return absl::OkStatus();
  }

 private:
  const KvShape shape_;
};

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeRaw(const EncodeRequest& request) {
  const KvShape& shape = request.shape;
  std::vector<SectionWriter> writers(shape.Sections(), SectionWriter(shape.Tiles()));
  for (uint32_t s = 0; s < shape.Sections(); ++s) {
    const size_t token_bytes = size_t{shape.Channels(s)} * DtypeBytes(shape.dtype);
    for (uint32_t tile = 0; tile < shape.Tiles(); ++tile) {
      std::vector<uint8_t>* out = writers[s].Begin();
      for (uint32_t t = 0; t < shape.TileTokens(tile); ++t) {
        out->resize(out->size() + token_bytes);
        ReadRawRow(shape, s, request.sections[s], tile * kTileTokens + t,
                   out->data() + out->size() - token_bytes);
      }
      writers[s].End();
    }
  }
  return Assemble({.codec = CodecId::kRaw, .shape = shape}, writers);
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenRaw(const DecodeSource& source) {
  return std::make_unique<const RawDecoder>(source.chunk.header.shape);
}

}  // namespace terrace::codec
