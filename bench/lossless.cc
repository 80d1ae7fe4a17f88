// The lossless codecs of the codec suite: a chunk of 64 MiB, from memory to memory.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "bench/codec_inputs.h"

namespace terrace::bench {
namespace {

constexpr int kPairs = 15;
constexpr uint32_t kTokens = 4096;

// Rows decode_<name> and encode_<name> of a codec that needs no profile.
absl::Status MeasureCodec(const codec::CodecEntry& codec, std::vector<Row>* rows) {
  const Kv kv(kTokens), out(kTokens);
  Copy copy(kv.bytes);
  std::vector<Pair> decoding, encoding;
  double bits = 0;
  for (int i = -1; i < kPairs; ++i) {  // the first pair warms up
    double start = NowSeconds();
    const auto container = codec.encode({kv.shape, kv.pointers});
    if (!container.ok()) return container.status();
    const double encoded = NowSeconds() - start;
    start = NowSeconds();
    const auto decoder = codec::Decoder::Make(*container, nullptr);
    if (!decoder.ok()) return decoder.status();
    for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
      const absl::Status status = decoder->Section(s, out.sections[s].data());
      if (!status.ok()) return status;
    }
    const double decoded = NowSeconds() - start;
    const double copied = copy.Seconds();
    if (i < 0) continue;
    const double gigabytes = static_cast<double>(kv.bytes) / 1e9;
    bits = 16.0 * static_cast<double>(container->size()) / static_cast<double>(kv.bytes);
    decoding.push_back({gigabytes / decoded, gigabytes / copied});
    encoding.push_back({gigabytes / encoded, gigabytes / copied});
  }
  std::string name(codec.name);
  std::replace(name.begin(), name.end(), '-', '_');
  rows->push_back(MakeRow("decode_" + name, "GB/s", "memcpy", decoding));
  rows->back().note = absl::StrFormat("synthetic KV, %.3f bits a value, %.3fx", bits, 16 / bits);
  rows->push_back(MakeRow("encode_" + name, "GB/s", "memcpy", encoding));
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureLossless(std::vector<Row>* rows) {
  for (codec::CodecId id :
       {codec::CodecId::kLosslessFast, codec::CodecId::kLossless, codec::CodecId::kZstd}) {
    const auto codec = codec::FindCodec(id);
    if (!codec.ok()) return codec.status();
    if (absl::Status status = MeasureCodec(**codec, rows); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace terrace::bench
