// codec: what encoding and decoding cost on one core, against copying the same values. Profiles and
// KV are made up (tests/support/codec_profile.h): Gaussian values, about two bits each.
#include <cstring>
#include <memory>
#include <random>

#include "absl/strings/str_format.h"
#include "bench/codec_inputs.h"
#include "kernels/tile_math.h"
#include "tests/support/codec_profile.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace terrace::bench {
namespace {

using codec::Encoder;
using codec::Transform;

constexpr int kPairs = 15;
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

// Decodes a whole container, as a reader that has just got it.
absl::Status Decode(const std::vector<uint8_t>& container,
                    const std::shared_ptr<const codec::Profile>& profile,
                    const std::vector<Pages>& out) {
  const auto decoder = codec::Decoder::Make(container, profile);
  if (!decoder.ok()) return decoder.status();
  for (uint32_t s = 0; s < out.size(); ++s) {
    const absl::Status status = decoder->Section(s, out[s].data());
    if (!status.ok()) return status;
  }
#ifdef TERRACE_CUDA
  return MeasureGpuDecode(**encoder, kLambda16, name, rows);
#else
  return absl::OkStatus();
#endif
}

struct ChunkPairs {
  std::vector<Pair> decoding, encoding;  // GB/s of bf16
  double bits = 0;                       // a value
};

// A chunk of `tokens` tokens, 16 KiB each, `repeats` times a pair.
absl::StatusOr<ChunkPairs> MeasureChunk(Transform transform, uint32_t tokens, int repeats) {
  const auto encoder = MakeEncoder(transform);
  if (!encoder.ok()) return encoder.status();
  const Kv kv(tokens), out(tokens);
  Copy copy(kv.bytes);
  ChunkPairs pairs;
  for (int i = -1; i < kPairs; ++i) {  // the first pair warms up
    double start = NowSeconds();
    const auto container = (*encoder)->Encode(kv.shape, kLambda16, 4, 0, kv.pointers);
    if (!container.ok()) return container.status();
    const double encoded = NowSeconds() - start;
    start = NowSeconds();
    for (int repeat = 0; repeat < repeats; ++repeat) {
      const absl::Status status = Decode(*container, (*encoder)->profile(), out.sections);
      if (!status.ok()) return status;
    }
    const double decoded = (NowSeconds() - start) / repeats;
    double copied = 0;
    for (int repeat = 0; repeat < repeats; ++repeat) copied += copy.Seconds() / repeats;
    if (i < 0) continue;
    pairs.bits = 16.0 * static_cast<double>(container->size()) / static_cast<double>(kv.bytes);
    const double gigabytes = static_cast<double>(kv.bytes) / 1e9;
    pairs.decoding.push_back({gigabytes / decoded, gigabytes / copied});
    pairs.encoding.push_back({gigabytes / encoded, gigabytes / copied});
  }
  return pairs;
}

absl::Status MeasureProfile(Transform transform, const std::string& name, std::vector<Row>* rows) {
  auto pairs = MeasureChunk(transform, 4096, 1);
  if (!pairs.ok()) return pairs.status();
  rows->push_back(MakeRow("decode_" + name, "GB/s", "memcpy", pairs->decoding));
  rows->back().note = absl::StrFormat(
      "synthetic KV, 8 heads of 128, %.2f bits a value; cold: 64 MiB, memory to memory",
      pairs->bits);
  rows->push_back(MakeRow("encode_" + name, "GB/s", "memcpy", pairs->encoding));
  if (transform == Transform::kHead) {
    for (Pair& pair : pairs->decoding) pair = {pair.ours / 2, pair.reference / 2};
    rows->push_back(
        MakeRow("balanced_decode_gvalue_s", "Gvalue/s", "memcpy of bf16", pairs->decoding));
  }
  pairs = MeasureChunk(transform, 256, 16);
  if (!pairs.ok()) return pairs.status();
  rows->push_back(MakeRow("decode_" + name + "_warm", "GB/s", "memcpy", pairs->decoding));
  rows->back().note = "4 MiB again and again, a chunk of 256 tokens and 4 layers";
  return absl::OkStatus();
}

using Encode = decltype(&kernels::RansEncode);
using DecodeStreams = decltype(&kernels::RansDecode);

// The entropy coder alone: tiles of 128 tokens and 192 channels, many streams at a time.
void MeasureEntropy(const std::string& isa, Encode encode, DecodeStreams decode,
                    std::vector<Row>* rows) {
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
    for (int repeat = 0; repeat < 16; ++repeat) encode(*bank, shape, sources);
    const double encoded = NowSeconds() - start;
    std::vector<kernels::RansStream> streams;
    for (const auto& source : sources) {
      streams.push_back({source.data, source.size, schedule.data(), decoded.data(), false});
    }
    start = NowSeconds();
    for (int repeat = 0; repeat < 16; ++repeat) decode(*bank, shape, streams);
    const double seconds = NowSeconds() - start;
    const double copied = copy.Seconds();
    if (i < 0) continue;
    const double count = static_cast<double>(symbols_each) * kStreams * 16 / 1e9;
    encoding.push_back({count / encoded, count / copied});
    decoding.push_back({count / seconds, count / copied});
  }
  rows->push_back(
      MakeRow("entropy_decode" + isa + "_gsym_s", "Gsym/s", "memcpy of bf16", decoding));
  if (isa.empty()) rows->back().note = kernels::RansImplementation();
  rows->push_back(
      MakeRow("entropy_encode" + isa + "_gsym_s", "Gsym/s", "memcpy of bf16", encoding));
}

#if defined(__x86_64__)
// As many multiplications and additions as the instruction that the transforms live on can do: 16
// sums that do not wait for each other.
__attribute__((target("avx512f,avx512vnni"))) double PeakMacs(size_t rounds) {
  __m512i sums[16] = {};
  const double start = NowSeconds();
  for (size_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (__m512i& sum : sums) {
      sum = _mm512_dpwssd_epi32(sum, _mm512_set1_epi16(3), _mm512_set1_epi16(5));
      asm volatile("" : "+v"(sum));
    }
  }
  return 16.0 * 32 * static_cast<double>(rounds) / (NowSeconds() - start);
}

// The transform of the balanced profile by itself, none of its coefficients 0.
void MeasureTransform(std::vector<Row>* rows) {
  if (!__builtin_cpu_supports("avx512vnni")) return;
  constexpr size_t kBlock = 128, kChannels = 8 * kBlock, kTokens = 32, kRepeats = 400;
  std::vector<int16_t> matrix(kChannels * kBlock, 3), in(kTokens * kChannels, 5);
  std::vector<int16_t> pairs(kernels::PairedSize(kChannels, kBlock));
  kernels::PairRows(matrix.data(), kChannels, kBlock, pairs.data());
  std::vector<int32_t> out(in.size());
  std::vector<Pair> macs;
  for (int i = -1; i < kPairs; ++i) {
    const double start = NowSeconds();
    for (size_t repeat = 0; repeat < kRepeats; ++repeat) {
      kernels::ApplyIntegerBlocks(pairs.data(), kChannels, kBlock, in.data(), kTokens, out.data());
    }
    const double ours = kRepeats * kTokens * kChannels * kBlock / (NowSeconds() - start);
    const double peak = PeakMacs(4000000);
    if (i >= 0) macs.push_back({ours / 1e9, peak / 1e9});
  }
  rows->push_back(MakeRow("balanced_transform_gmac_s", "GMAC/s", "a loop of vpdpwssd", macs));
  rows->back().note = "the roofline: 128 multiplications and additions a value";
}
#else
void MeasureTransform(std::vector<Row>*) {}
#endif

}  // namespace

absl::StatusOr<std::vector<Row>> RunCodec(const Context&) {
  std::vector<Row> rows;
  MeasureEntropy("", kernels::RansEncode, kernels::RansDecode, &rows);
  MeasureEntropy("_avx2", kernels::RansEncodeAvx2, kernels::RansDecodeAvx2, &rows);
  absl::Status status = MeasureProfile(Transform::kChannel, "fast", &rows);
  if (status.ok()) status = MeasureProfile(Transform::kHead, "balanced", &rows);
  MeasureTransform(&rows);
  if (status.ok()) status = MeasureLossless(&rows);
  if (!status.ok()) return status;
  return rows;
}

}  // namespace terrace::bench
