#include "codec/raw_codec.h"

#include "codec/tile_runs.h"

namespace terrace::codec {
namespace {

class RawDecoder final : public TiledDecoder {
 public:
  using TiledDecoder::TiledDecoder;

 protected:
  absl::Status DecodeTile(std::span<const uint8_t> bytes, const TileRuns& runs,
                          uint8_t* out) const override {
    if (bytes.size() != runs.bytes()) return absl::DataLossError("not as long as its tokens");
    runs.Scatter(bytes.data(), out);
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeRaw(const EncodeRequest& request) {
  return EncodeTiles(CodecId::kRaw, request,
                     [](const std::vector<uint8_t>& values, std::vector<uint8_t>* out) {
                       out->insert(out->end(), values.begin(), values.end());
                       return absl::OkStatus();
                     });
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenRaw(const DecodeSource& source) {
  return std::make_unique<const RawDecoder>(source.chunk.header.shape);
}

}  // namespace terrace::codec
