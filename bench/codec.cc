// codec: what encoding and decoding cost on one core, against copying the same values. Profiles and
// KV are made up (tests/support/codec_profile.h): Gaussian values, about two bits each.
#include <cstring>
#include <random>

#include "absl/strings/str_format.h"
#include "bench/codec_inputs.h"
#include "tests/support/codec_profile.h"

namespace terrace::bench {
namespace {

using codec::Encoder;
using codec::Transform;

constexpr int kPairs = 9;
constexpr uint32_t kTokens = 4096;
constexpr uint32_t kStreams = 64;
constexpr uint32_t kGroups = 4, kTileChannels = 192;
constexpr int32_t kLambda16 = 12;  // the step is about the coefficients' standard deviation

absl::StatusOr<std::shared_ptr<const Encoder>> MakeEncoder(Transform transform) {
  const auto profile = codec::Profile::Parse(testing::MakeProfile({.transform = transform,
                                                                   .layers = 4,
                                                                   .heads = 8,
                                                                   .k_dim = 128,
                                                                   .v_dim = 128,
                                                                   .lowest_scale16 = 12,
                                                                   .scales16 = 1}));
  if (!profile.ok()) return profile.status();
  return Encoder::Make(*profile);
}

// A whole chunk of 64 MiB a time.
absl::Status MeasureChunk(Transform transform, const std::string& name, bool with_encode,
                          std::vector<Row>* rows) {
  const auto encoder = MakeEncoder(transform);
  if (!encoder.ok()) return encoder.status();
  const Kv kv(kTokens);
  Copy copy(kv.bytes);
  std::vector<Pair> decoding, encoding;
  double bits = 0;
  for (int i = -1; i < kPairs; ++i) {  // the first pair warms up
    double start = NowSeconds();
    const auto container = (*encoder)->Encode(kv.shape, kLambda16, 4, 0, kv.pointers);
    const double encoded = NowSeconds() - start;
    if (!container.ok()) return container.status();
    start = NowSeconds();
    const auto decoder = codec::Decoder::Make(*container, (*encoder)->profile());
    if (!decoder.ok()) return decoder.status();
    for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
      const absl::Status status = decoder->Section(s, kv.sections[s].data());
      if (!status.ok()) return status;
    }
    const double decoded = NowSeconds() - start;
    const double copied = copy.Seconds();
    if (i < 0) continue;
    bits = 16.0 * static_cast<double>(container->size()) / static_cast<double>(kv.bytes);
    const double gigabytes = static_cast<double>(kv.bytes) / 1e9;
    decoding.push_back({gigabytes / decoded, gigabytes / copied});
    encoding.push_back({gigabytes / encoded, gigabytes / copied});
  }
  rows->push_back(MakeRow("decode_" + name, "GB/s", "memcpy", decoding));
  rows->back().note = absl::StrFormat("synthetic KV, 8 heads of 128, %.2f bits a value", bits);
  if (with_encode) rows->push_back(MakeRow("encode_" + name, "GB/s", "memcpy", encoding));
  if (transform == Transform::kHead) {
    for (Pair& pair : decoding) pair = {pair.ours / 2, pair.reference / 2};
    rows->push_back(MakeRow("balanced_decode_gvalue_s", "Gvalue/s", "memcpy of bf16", decoding));
  }
#ifdef TERRACE_CUDA
  return MeasureGpuDecode(**encoder, kLambda16, name, rows);
#else
  return absl::OkStatus();
#endif
}

// The entropy coder alone: tiles of 128 tokens and 192 channels, four streams at a time.
void MeasureEntropy(std::vector<Row>* rows) {
  std::mt19937 random(1);
  auto bank = std::make_unique<kernels::RansTables>();
  for (size_t t = 0; t < kernels::kRansTables; ++t) {
    const auto frequencies = testing::LaplacianFrequencies(0.5 + 0.02 * static_cast<double>(t));
    kernels::RansBuildTable(bank.get(), t, frequencies.data());
  }
  const kernels::RansShape shape{kGroups * kTileChannels, kGroups, kernels::kRansLanes};
  const size_t symbols_each = shape.rounds * kernels::kRansLanes;
  std::vector<uint8_t> schedule(shape.rounds), symbols(symbols_each), decoded(symbols_each);
  for (uint8_t& table : schedule) table = static_cast<uint8_t>(random() % 64);
  for (size_t i = 0; i < symbols_each; ++i) {
    symbols[i] = bank->tables[schedule[i / kernels::kRansLanes]].slot_to_symbol[random() % 256];
  }
  std::vector<std::vector<uint8_t>> data(kStreams,
                                         std::vector<uint8_t>(kernels::RansBound(shape.rounds)));
  std::vector<kernels::RansSource> sources;
  for (auto& bytes : data) sources.push_back({symbols.data(), schedule.data(), bytes.data(), 0});
  std::vector<Pair> encoding, decoding;
  Copy copy(2 * symbols_each * kStreams * 16);
  for (int i = -1; i < kPairs; ++i) {
    double start = NowSeconds();
    for (int repeat = 0; repeat < 16; ++repeat) kernels::RansEncode(*bank, shape, sources);
    const double encoded = NowSeconds() - start;
    std::vector<kernels::RansStream> streams;
    for (const auto& source : sources) {
      streams.push_back({source.data, source.size, schedule.data(), decoded.data(), false});
    }
    start = NowSeconds();
    for (int repeat = 0; repeat < 16; ++repeat) kernels::RansDecode(*bank, shape, streams);
    const double seconds = NowSeconds() - start;
    const double copied = copy.Seconds();
    if (i < 0) continue;
    const double count = static_cast<double>(symbols_each) * kStreams * 16 / 1e9;
    encoding.push_back({count / encoded, count / copied});
    decoding.push_back({count / seconds, count / copied});
  }
  rows->push_back(MakeRow("entropy_decode_gsym_s", "Gsym/s", "memcpy of bf16", decoding));
  rows->back().note = kernels::RansImplementation();
  rows->push_back(MakeRow("entropy_encode_gsym_s", "Gsym/s", "memcpy of bf16", encoding));
}

}  // namespace

absl::StatusOr<std::vector<Row>> RunCodec(const Context&) {
  std::vector<Row> rows;
  MeasureEntropy(&rows);
  absl::Status status = MeasureChunk(Transform::kChannel, "fast", true, &rows);
  if (status.ok()) status = MeasureChunk(Transform::kHead, "balanced", false, &rows);
  if (status.ok()) status = MeasureLossless(&rows);
  if (!status.ok()) return status;
  return rows;
}

}  // namespace terrace::bench
