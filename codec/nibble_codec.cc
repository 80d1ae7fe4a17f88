#include "codec/nibble_codec.h"

#include "codec/tile_runs.h"
#include "kernels/exponent_nibbles.h"

namespace terrace::codec {
namespace {

using kernels::kNibbleExponents;

enum class Form : uint8_t { kRaw = 0, kNibbles = 1 };
constexpr size_t kFormBytes = 1, kFixedBytes = kFormBytes + kNibbleExponents;
// Runs from this size on are written past the caches, for they would not stay there.
constexpr size_t kStreamBytes = 1 << 14;

void AppendRaw(const std::vector<uint8_t>& tile, std::vector<uint8_t>* out) {
  out->push_back(static_cast<uint8_t>(Form::kRaw));
  out->insert(out->end(), tile.begin(), tile.end());
}

void AppendNibbles(const std::vector<uint8_t>& tile, std::vector<uint8_t>* out) {
  const size_t count = tile.size() / sizeof(uint16_t), start = out->size();
  const auto* values = reinterpret_cast<const uint16_t*>(tile.data());
  const size_t codes = (count + 1) / 2;
  out->resize(start + kFixedBytes + codes + 2 * count);  // all could be escapes
  uint8_t* at = out->data() + start;
  *at = static_cast<uint8_t>(Form::kNibbles);
  uint8_t* exponents = at + kFormBytes;
  kernels::ChooseExponents(values, count, exponents);
  kernels::NibbleSink sink{at + kFixedBytes, at + kFixedBytes + codes,
                           at + kFixedBytes + codes + count};
  kernels::PackNibbles(values, count, exponents, &sink);
  const auto bytes = static_cast<size_t>(sink.escapes - at);
  out->resize(start + bytes);
  if (bytes >= kFormBytes + tile.size()) {
    out->resize(start);
    AppendRaw(tile, out);
  }
}

absl::Status DecodeNibbles(std::span<const uint8_t> bytes, const TileRuns& runs, uint8_t* out) {
  const size_t count = runs.bytes() / sizeof(uint16_t), codes = (count + 1) / 2;
  if (bytes.size() < kFixedBytes + codes + count) {
    return absl::DataLossError("shorter than its tokens");
  }
  const uint8_t* exponents = bytes.data() + kFormBytes;
  const uint8_t* at = bytes.data() + kFixedBytes;
  kernels::NibbleSource source{at, at + codes, at + codes + count, bytes.data() + bytes.size()};
  bool enough = true;
  const bool stream = runs.run_bytes >= kStreamBytes;
  const size_t run = runs.run_bytes / sizeof(uint16_t);
  if (run % 2 == 0 || runs.runs == 1) {
    for (size_t r = 0; r < runs.runs && enough; ++r) {
      auto* to = reinterpret_cast<uint16_t*>(out + runs.first + r * runs.stride);
      enough = kernels::UnpackNibbles(&source, exponents, run, stream, to);
    }
  } else {  // runs that end within a byte of codes
    std::vector<uint16_t> tile(count);
    enough = kernels::UnpackNibbles(&source, exponents, count, false, tile.data());
    runs.Scatter(reinterpret_cast<const uint8_t*>(tile.data()), out);
  }
  if (!enough) return absl::DataLossError("fewer escapes than its codes say");
  if (source.escapes != source.escapes_end) {
    return absl::DataLossError("more escapes than its codes say");
  }
  return absl::OkStatus();
}

class NibbleDecoder final : public TiledDecoder {
 public:
  using TiledDecoder::TiledDecoder;

 protected:
  absl::Status DecodeTile(std::span<const uint8_t> bytes, const TileRuns& runs,
                          uint8_t* out) const override {
    if (bytes.empty()) return absl::DataLossError("no form");
    if (bytes[0] == static_cast<uint8_t>(Form::kRaw)) {
      if (bytes.size() != kFormBytes + runs.bytes()) {
        return absl::DataLossError("not as long as its tokens");
      }
      runs.Scatter(bytes.data() + kFormBytes, out);
      return absl::OkStatus();
    }
    if (bytes[0] != static_cast<uint8_t>(Form::kNibbles) || shape_.dtype != Dtype::kBf16) {
      return absl::DataLossError("a form that its dtype has not");
    }
    return DecodeNibbles(bytes, runs, out);
  }
};

}  // namespace

absl::StatusOr<std::vector<uint8_t>> EncodeNibbles(const EncodeRequest& request) {
  const bool bf16 = request.shape.dtype == Dtype::kBf16;
  return EncodeTiles(CodecId::kLosslessFast, request,
                     [bf16](const std::vector<uint8_t>& values, std::vector<uint8_t>* out) {
                       bf16 ? AppendNibbles(values, out) : AppendRaw(values, out);
                       return absl::OkStatus();
                     });
}

absl::StatusOr<std::unique_ptr<const SectionDecoder>> OpenNibbles(const DecodeSource& source) {
  return std::make_unique<const NibbleDecoder>(source.chunk.header.shape);
}

}  // namespace terrace::codec
