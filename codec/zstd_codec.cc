#include "codec/zstd_codec.h"

#include <zstd.h>

#include "absl/strings/str_cat.h"
#include "codec/tile_runs.h"

namespace terrace::codec {
namespace {

constexpr int kLevel = 3;

// Byte b of value i to place b * count + i.
void Shuffle(const std::vector<uint8_t>& values, size_t width, uint8_t* shuffled) {
  const size_t count = values.size() / width;
  for (size_t b = 0; b < width; ++b) {
    for (size_t i = 0; i < count; ++i) shuffled[b * count + i] = values[i * width + b];
  }
}

void Unshuffle(const std::vector<uint8_t>& shuffled, size_t width, uint8_t* values) {
  const size_t count = shuffled.size() / width;
  for (size_t b = 0; b < width; ++b) {
    for (size_t i = 0; i < count; ++i) values[i * width + b] = shuffled[b * count + i];
  }
}

class ZstdDecoder final : public TiledDecoder {
 public:
  using TiledDecoder::TiledDecoder;

 protected:
  absl::Status DecodeTile(std::span<const uint8_t> bytes, const TileRuns& runs,
                          uint8_t* out) const override {
    std::vector<uint8_t> shuffled(runs.bytes());
    const size_t size =
        ZSTD_decompress(shuffled.data(), shuffled.size(), bytes.data(), bytes.size());
    if (ZSTD_isError(size)) return absl::DataLossError(ZSTD_getErrorName(size));
    if (size != shuffled.size()) return absl::DataLossError("fewer bytes than its tokens");
    std::vector<uint8_t> values(shuffled.size());
    Unshuffle(shuffled, DtypeBytes(shape_.dtype), values.data());
    runs.Scatter(values.data(), out);
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeZstd(const EncodeRequest& request) {
  const size_t width = DtypeBytes(request.shape.dtype);
  return EncodeTiles(
      CodecId::kZstd, request,
      [width](const std::vector<uint8_t>& values, std::vector<uint8_t>* out) -> absl::Status {
        std::vector<uint8_t> shuffled(values.size());
        Shuffle(values, width, shuffled.data());
        const size_t start = out->size(), room = ZSTD_compressBound(shuffled.size());
        out->resize(start + room);
        const size_t size =
            ZSTD_compress(out->data() + start, room, shuffled.data(), shuffled.size(), kLevel);
        if (ZSTD_isError(size)) {
          return absl::ResourceExhaustedError(absl::StrCat("zstd: ", ZSTD_getErrorName(size)));
        }
        out->resize(start + size);
        return absl::OkStatus();
      });
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenZstd(const DecodeSource& source) {
  return std::make_unique<const ZstdDecoder>(source.chunk.header.shape);
}

}  // namespace terrace::codec
