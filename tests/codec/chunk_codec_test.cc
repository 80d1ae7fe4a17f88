#include "codec/chunk_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/float_format.h"
#include "tests/support/codec_profile.h"

namespace terrace::codec {
namespace {

struct Kv {
  KvShape shape;
  std::vector<std::vector<uint8_t>> sections;

  std::vector<const uint8_t*> Pointers() const {
    std::vector<const uint8_t*> pointers;
    for (const auto& section : sections) pointers.push_back(section.data());
    return pointers;
  }
};

Kv RandomKv(const testing::ProfileParameters& of, uint32_t tokens, Dtype dtype, KvOrder order) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2);
  Kv kv;
  kv.shape = {dtype, order, of.layers, of.heads, of.k_dim, of.v_dim, tokens, 1000};
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    std::vector<uint8_t> bytes(kv.shape.SectionBytes(s));
    for (size_t i = 0; i < bytes.size(); i += DtypeBytes(dtype)) {
      const float value = normal(random);
      const uint16_t half =
          dtype == Dtype::kBf16 ? kernels::Bf16OfFloat(value) : kernels::F16OfFloat(value);
      if (dtype == Dtype::kF32) {
        std::memcpy(bytes.data() + i, &value, 4);
      } else {
        std::memcpy(bytes.data() + i, &half, 2);
      }
    }
    kv.sections.push_back(std::move(bytes));
  }
  return kv;
}

std::shared_ptr<const Encoder> EncoderOf(const testing::ProfileParameters& of) {
  auto profile = Profile::Parse(testing::MakeProfile(of));
  EXPECT_TRUE(profile.ok()) << profile.status();
  auto encoder = Encoder::Make(*profile);
  EXPECT_TRUE(encoder.ok()) << encoder.status();
  return *encoder;
}

// Of geometries with odd heads, heads of 64 to 256, and tails.
class ChunkCodecTest
    : public ::testing::TestWithParam<std::tuple<Transform, uint32_t, uint32_t, Dtype>> {};

TEST_P(ChunkCodecTest, ValuesComeBackWithinAStepAndTheSameWhateverTheOrder) {
  const auto [transform, dim, tokens, dtype] = GetParam();
  const testing::ProfileParameters of{transform, 1, 2, 3, dim, dim / 2, 7};
  const auto encoder = EncoderOf(of);
  std::vector<std::vector<uint8_t>> containers;
  const Kv kv = RandomKv(of, tokens, dtype, KvOrder::kTokenMajor);
  const auto encoded = encoder->Encode(kv.shape, -48, 1, 0, kv.Pointers());
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  const auto decoder = Decoder::Make(*encoded, encoder->profile());
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    std::vector<uint8_t> out(kv.shape.SectionBytes(s));
    const absl::Status status = decoder->Section(s, out.data());
    ASSERT_TRUE(status.ok()) << status;
    double error = 0;
    for (size_t i = 0; i < out.size(); i += DtypeBytes(dtype)) {
      float a, b;
      if (dtype == Dtype::kF32) {
        std::memcpy(&a, &out[i], 4);
        std::memcpy(&b, &kv.sections[s][i], 4);
      } else {
        uint16_t x, y;
        std::memcpy(&x, &out[i], 2);
        std::memcpy(&y, &kv.sections[s][i], 2);
        a = dtype == Dtype::kBf16 ? kernels::FloatOfBf16(x) : kernels::FloatOfF16(x);
        b = dtype == Dtype::kBf16 ? kernels::FloatOfBf16(y) : kernels::FloatOfF16(y);
      }
      error += std::abs(a - b);
    }
    // A step is 1/8 of a unit, which is at most two here.
    EXPECT_LT(error / (out.size() / DtypeBytes(dtype)), 0.25) << s;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ChunkCodecTest,
    ::testing::Combine(::testing::Values(Transform::kChannel, Transform::kHead, Transform::kLayer),
                       ::testing::Values(64u, 128u), ::testing::Values(1u, 33u, 300u),
                       ::testing::Values(Dtype::kF32, Dtype::kF16, Dtype::kBf16)));

TEST(ChunkCodec, RawContainersGiveTheBytesBackInAnyOrderAndDtype) {
  for (KvOrder order : {KvOrder::kTokenMajor, KvOrder::kHeadMajor}) {
    const Kv kv = RandomKv({}, 150, Dtype::kF16, order);
    KvShape shape = kv.shape;
    for (Dtype dtype : {Dtype::kF16, Dtype::kF8E4M3}) {
      shape.dtype = dtype;
      const auto pointers = kv.Pointers();
      const auto container = Encode("raw", {shape, pointers});
      ASSERT_TRUE(container.ok()) << container.status();
      const auto decoder = Decoder::Make(*container, nullptr);
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      for (uint32_t s = 0; s < shape.Sections(); ++s) {
        std::vector<uint8_t> out(shape.SectionBytes(s));
        ASSERT_TRUE(decoder->Section(s, out.data()).ok());
        EXPECT_TRUE(std::equal(out.begin(), out.end(), kv.sections[s].begin()));
      }
    }
  }
}

// The same values, heads first.
std::vector<uint8_t> HeadsFirst(const KvShape& shape, uint32_t section,
                                const std::vector<uint8_t>& bytes) {
  const size_t run = shape.Dim(section) * DtypeBytes(shape.dtype);
  std::vector<uint8_t> out(bytes.size());
  for (size_t t = 0; t < shape.tokens; ++t) {
    for (size_t h = 0; h < shape.heads; ++h) {
      std::copy_n(bytes.begin() + static_cast<ptrdiff_t>((t * shape.heads + h) * run), run,
                  out.begin() + static_cast<ptrdiff_t>((h * shape.tokens + t) * run));
    }
  }
  return out;
}

std::vector<std::vector<uint8_t>> EncodedAndDecoded(const Encoder& encoder, const Kv& kv) {
  const auto container = encoder.Encode(kv.shape, -16, 1, 1, kv.Pointers());
  EXPECT_TRUE(container.ok()) << container.status();
  const auto decoder = Decoder::Make(*container, encoder.profile());
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  std::vector<std::vector<uint8_t>> sections;
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    sections.emplace_back(kv.shape.SectionBytes(s));
    EXPECT_TRUE(decoder->Section(s, sections.back().data()).ok());
  }
  return sections;
}

// More tiles than are decoded in lockstep; heads that fill no vector; one wide head, as MLA has.
TEST(ChunkCodec, BothOrdersOfAnyGeometryDecodeAlike) {
  for (Transform transform : {Transform::kChannel, Transform::kHead}) {
    for (const auto& [heads, dim, tokens] :
         {std::tuple{3u, 80u, 1200u}, std::tuple{1u, 576u, 150u}, std::tuple{2u, 6u, 257u}}) {
      const testing::ProfileParameters of{transform, 2, 1, heads, dim, dim / 2, 7};
      const auto encoder = EncoderOf(of);
      const Kv kv = RandomKv(of, tokens, Dtype::kBf16, KvOrder::kTokenMajor);
      Kv by_head = kv;
      by_head.shape.order = KvOrder::kHeadMajor;
      for (uint32_t s = 0; s < 2; ++s) {
        by_head.sections[s] = HeadsFirst(kv.shape, s, kv.sections[s]);
      }
      const auto decoded = EncodedAndDecoded(*encoder, kv);
      const auto decoded_by_head = EncodedAndDecoded(*encoder, by_head);
      for (uint32_t s = 0; s < 2; ++s) {
        EXPECT_EQ(HeadsFirst(kv.shape, s, decoded[s]), decoded_by_head[s]) << dim << " " << s;
      }
    }
  }
}

TEST(ChunkCodec, TokensWithValuesThatAreNotFiniteComeBackAsTheyWere) {
  const testing::ProfileParameters of{Transform::kHead, 1, 1, 2, 64, 64, 7};
  const auto encoder = EncoderOf(of);
  Kv kv = RandomKv(of, 140, Dtype::kBf16, KvOrder::kTokenMajor);
  const size_t row = 2 * 64 * 2;
  for (const auto& [token, bits] :
       {std::pair<size_t, uint16_t>{0, 0x7fc1}, std::pair<size_t, uint16_t>{77, 0xff80},
        std::pair<size_t, uint16_t>{139, 0xffff}}) {
    std::memcpy(&kv.sections[token % 2][token * row + 10], &bits, sizeof bits);
  }
  const auto decoded = EncodedAndDecoded(*encoder, kv);
  for (uint32_t s = 0; s < 2; ++s) {
    for (size_t token : {0, 77, 139}) {
      EXPECT_TRUE(std::equal(decoded[s].begin() + static_cast<ptrdiff_t>(token * row),
                             decoded[s].begin() + static_cast<ptrdiff_t>((token + 1) * row),
                             kv.sections[s].begin() + static_cast<ptrdiff_t>(token * row)));
    }
  }
}

TEST(ChunkCodec, OtherDtypesAndGeometriesAreRefusedByName) {
  const auto encoder = EncoderOf({});
  Kv kv = RandomKv({}, 10, Dtype::kF16, KvOrder::kTokenMajor);
  kv.shape.dtype = Dtype::kF8E4M3;
  const auto status = encoder->Encode(kv.shape, 0, 0, 0, kv.Pointers()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("must be float32, float16 or bfloat16"), std::string::npos);
  kv.shape.dtype = Dtype::kF16;
  kv.shape.heads = 3;
  EXPECT_EQ(encoder->Encode(kv.shape, 0, 0, 0, kv.Pointers()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ChunkCodec, ASectionIsDecodedFromItsOwnBytesAlone) {
  const auto encoder = EncoderOf({});
  const Kv kv = RandomKv({}, 200, Dtype::kBf16, KvOrder::kTokenMajor);
  auto container = *encoder->Encode(kv.shape, -32, 4, 0, kv.Pointers());
  const auto decoder = *Decoder::Make(container, encoder->profile());
  std::vector<uint8_t> before(kv.shape.SectionBytes(1)), after(before.size());
  ASSERT_TRUE(decoder.Section(1, before.data()).ok());
  const SectionPlace other = ParseHeader(container)->sections[0];
  std::fill_n(container.begin() + other.offset, other.bytes, 0xee);
  ASSERT_TRUE(decoder.Section(1, after.data()).ok());
  EXPECT_EQ(before, after);
  EXPECT_EQ(decoder.Section(0, before.data()).code(), absl::StatusCode::kDataLoss);
}

double MeanError(const Kv& kv, const Decoder& decoder, uint32_t section) {
  std::vector<uint8_t> out(kv.shape.SectionBytes(section));
  EXPECT_TRUE(decoder.Section(section, out.data()).ok());
  double error = 0;
  for (size_t i = 0; i < out.size(); i += 4) {
    float a, b;
    std::memcpy(&a, &out[i], 4);
    std::memcpy(&b, &kv.sections[section][i], 4);
    error += std::abs(a - b);
  }
  return error / (static_cast<double>(out.size()) / 4);
}

TEST(ChunkCodec, ARefinedContainerIsCloserAndWhereverItIsCutItHoldsWhatIsLeft) {
  for (Transform transform : {Transform::kChannel, Transform::kHead, Transform::kLayer}) {
    const testing::ProfileParameters of{.transform = transform, .layers = 2, .k_dim = 40};
    const auto encoder = EncoderOf(of);
    const Kv kv = RandomKv(of, 300, Dtype::kF32, KvOrder::kHeadMajor);
    const auto pointers = kv.Pointers();
    EncodeRequest request{kv.shape, pointers, encoder.get(), -32, 4, 0};
    const std::vector<uint8_t> plain = *encoder->Encode(request);
    request.refined = true;
    const std::vector<uint8_t> refined = *encoder->Encode(request);
    const ParsedChunk chunk = *ParseHeader(refined);
    ASSERT_EQ(chunk.refined.size(), kv.shape.Sections());
    const auto whole = *Decoder::Make(refined, encoder->profile());
    const auto base = *Decoder::Make(plain, encoder->profile());
    for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
      const double ratio = MeanError(kv, base, s) / MeanError(kv, whole, s);
      EXPECT_GT(ratio, 2.8) << s;
      EXPECT_LT(ratio, 3.2) << s;
    }
    // The start of each refined section, and of their directory.
    std::vector<uint64_t> cuts = {chunk.refined[0].offset - 40};
    for (const SectionPlace& place : chunk.refined) cuts.push_back(place.offset + place.bytes - 1);
    for (uint64_t cut : cuts) {
      const std::vector<uint8_t> some(refined.begin(),
                                      refined.begin() + static_cast<ptrdiff_t>(cut));
      const auto decoder = Decoder::Make(some, encoder->profile());
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
        const bool is_whole = chunk.refined[s].offset + chunk.refined[s].bytes <= cut;
        const double error = MeanError(kv, *decoder, s);
        EXPECT_EQ(is_whole, error < 2 * MeanError(kv, whole, s)) << cut << " " << s;
      }
    }
  }
}

TEST(ChunkCodec, DamageInARefinementIsFound) {
  const auto encoder = EncoderOf({});
  const Kv kv = RandomKv({}, 200, Dtype::kBf16, KvOrder::kTokenMajor);
  const auto pointers = kv.Pointers();
  EncodeRequest request{kv.shape, pointers, encoder.get(), -32, 4, 0};
  request.refined = true;
  std::vector<uint8_t> container = *encoder->Encode(request);
  const SectionPlace place = ParseHeader(container)->refined[1];
  container[place.offset + place.bytes - 3] ^= 4;
  const auto decoder = *Decoder::Make(container, encoder->profile());
  std::vector<uint8_t> out(kv.shape.SectionBytes(1));
  const absl::Status status = decoder.Section(1, out.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("section 1"), std::string::npos);
  uint64_t directory;
  std::memcpy(&directory, container.data() + 112, sizeof directory);
  container[directory + 3] ^= 1;
  EXPECT_EQ(ParseHeader(container).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ChunkCodec, AContainerMayBringItsProfile) {
  const auto bytes = testing::MakeProfile({});
  const auto encoder = EncoderOf({});
  const Kv kv = RandomKv({}, 100, Dtype::kBf16, KvOrder::kTokenMajor);
  const auto pointers = kv.Pointers();
  EncodeRequest request{kv.shape, pointers, encoder.get(), -32, 4, 0};
  const std::vector<uint8_t> without = *encoder->Encode(request);
  request.embed = bytes;
  const std::vector<uint8_t> with = *encoder->Encode(request);
  EXPECT_EQ(Decoder::Make(without, nullptr).status().code(), absl::StatusCode::kFailedPrecondition);
  const auto decoder = Decoder::Make(with, nullptr);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  const auto other = *Decoder::Make(without, encoder->profile());
  std::vector<uint8_t> a(kv.shape.SectionBytes(0)), b(a.size());
  ASSERT_TRUE(decoder->Section(0, a.data()).ok());
  ASSERT_TRUE(other.Section(0, b.data()).ok());
  EXPECT_EQ(a, b);
  // Another profile than the header names.
  const auto strange = testing::MakeProfile({.seed = 2});
  request.embed = strange;
  EXPECT_EQ(Decoder::Make(*encoder->Encode(request), nullptr).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace terrace::codec
