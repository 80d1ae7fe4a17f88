// The codecs that give every byte back, over what they may be given.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "codec/chunk_codec.h"
#include "kernels/checksum.h"
#include "kernels/float_format.h"

namespace terrace::codec {
namespace {

struct Geometry {
  uint32_t layers, heads, k_dim, v_dim, tokens;
};

enum class Fill { kZero, kAny, kModel, kOneNumberAChannel };

struct Kv {
  KvShape shape;
  std::vector<std::vector<uint8_t>> sections;
  std::vector<const uint8_t*> pointers;

  Kv(const Geometry& of, Dtype dtype, KvOrder order, Fill fill)
      : shape{dtype, order, of.layers, of.heads, of.k_dim, of.v_dim, of.tokens, 7} {
    std::mt19937 random(of.tokens);
    for (uint32_t s = 0; s < shape.Sections(); ++s) {
      std::vector<uint8_t> bytes(shape.SectionBytes(s));
      for (size_t i = 0; i < bytes.size(); i += DtypeBytes(dtype)) Put(fill, i, random, bytes);
      sections.push_back(std::move(bytes));
    }
    for (const auto& section : sections) pointers.push_back(section.data());
  }

  void Put(Fill fill, size_t at, std::mt19937& random, std::vector<uint8_t>& bytes) const {
    const size_t width = DtypeBytes(shape.dtype);
    if (fill == Fill::kZero) return;
    uint32_t value = static_cast<uint32_t>(random());
    if (fill != Fill::kAny) {
      std::normal_distribution<float> normal(0, 3);
      const float number =
          fill == Fill::kModel ? normal(random) : std::exp2(static_cast<float>(at / width % 8)) - 3;
      // Infinities, NaNs, denormals and zeros among them.
      const bool strange = fill == Fill::kModel && random() % 500 == 0;
      const float special[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 1e-42f, -1e38f};
      const float f = strange ? special[random() % 7] : number;
      std::memcpy(&value, &f, 4);
      if (width == 2) value = shape.dtype == Dtype::kF16 ? kernels::F16OfFloat(f) : value >> 16;
      if (width == 1) value = static_cast<uint32_t>(kernels::F16OfFloat(f)) >> 8;
    }
    std::memcpy(bytes.data() + at, &value, width);
  }
};

using Case = std::tuple<const char*, Dtype, Fill>;
class LosslessCodecTest : public ::testing::TestWithParam<Case> {};

TEST_P(LosslessCodecTest, EveryByteComesBack) {
  const auto [codec, dtype, fill] = GetParam();
  const Geometry geometries[] = {{1, 1, 1, 1, 0},     {1, 1, 1, 1, 1},     {2, 2, 64, 64, 1},
                                 {1, 3, 5, 7, 31},    {1, 3, 80, 64, 33},  {1, 2, 256, 128, 160},
                                 {1, 1, 576, 1, 129}, {1, 4, 96, 96, 1000}};
  for (const Geometry& geometry : geometries) {
    for (KvOrder order : {KvOrder::kTokenMajor, KvOrder::kHeadMajor}) {
      const Kv kv(geometry, dtype, order, fill);
      const auto container = Encode(codec, {kv.shape, kv.pointers});
      ASSERT_TRUE(container.ok()) << container.status();
      const auto decoder = Decoder::Make(*container, nullptr);
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
        std::vector<uint8_t> out(kv.shape.SectionBytes(s), 0xee);
        const absl::Status status = decoder->Section(s, out.data());
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_EQ(out, kv.sections[s]) << geometry.tokens << " tokens, section " << s;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, LosslessCodecTest,
    ::testing::Combine(::testing::Values("raw", "lossless-fast", "lossless", "zstd"),
                       ::testing::Values(Dtype::kF32, Dtype::kF16, Dtype::kBf16, Dtype::kF8E4M3,
                                         Dtype::kF8E5M2, Dtype::kI8),
                       ::testing::Values(Fill::kZero, Fill::kAny, Fill::kModel,
                                         Fill::kOneNumberAChannel)));

size_t Encoded(const char* codec, const Kv& kv) {
  const auto container = Encode(codec, {kv.shape, kv.pointers});
  EXPECT_TRUE(container.ok()) << container.status();
  return container->size();
}

TEST(LosslessCodec, NothingBecomesMuchLargerAndNumbersBecomeSmaller) {
  const Geometry geometry{1, 4, 128, 128, 1024};
  for (const char* codec : {"lossless-fast", "lossless", "zstd"}) {
    const Kv any(geometry, Dtype::kBf16, KvOrder::kTokenMajor, Fill::kAny);
    EXPECT_LT(Encoded(codec, any), 1.001 * Encoded("raw", any)) << codec;
  }
  const Kv numbers(geometry, Dtype::kBf16, KvOrder::kTokenMajor, Fill::kModel);
  const auto raw = static_cast<double>(Encoded("raw", numbers));
  EXPECT_GT(raw / static_cast<double>(Encoded("lossless-fast", numbers)), 1.32);
  EXPECT_GT(raw / static_cast<double>(Encoded("lossless", numbers)), 1.48);
}

TEST(LosslessCodec, EncodingTwiceGivesTheSameBytes) {
  const Kv kv({2, 2, 64, 64, 300}, Dtype::kBf16, KvOrder::kHeadMajor, Fill::kModel);
  for (const CodecEntry& codec : Codecs()) {
    if (codec.needs_profile) continue;
    const EncodeRequest request{kv.shape, kv.pointers};
    EXPECT_EQ(*codec.encode(request), *codec.encode(request)) << codec.name;
  }
}

TEST(LosslessCodec, DamageIsNamedByItsPlace) {
  const Kv kv({1, 2, 64, 64, 300}, Dtype::kBf16, KvOrder::kTokenMajor, Fill::kModel);
  std::vector<uint8_t> out(kv.shape.SectionBytes(1));
  for (const char* codec : {"raw", "lossless-fast", "lossless", "zstd"}) {
    auto container = *Encode(codec, {kv.shape, kv.pointers});
    container.back() ^= 1;
    const auto decoder = *Decoder::Make(container, nullptr);
    const absl::Status status = decoder.Section(1, out.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(status.message(), "section 1: checksum of tile 2 does not match");
    EXPECT_TRUE(decoder.Section(0, out.data()).ok());
  }
}

TEST(LosslessCodec, DamagedTablesAreRefusedBeforeAnySection) {
  const Kv kv({1, 2, 64, 64, 300}, Dtype::kBf16, KvOrder::kTokenMajor, Fill::kModel);
  auto container = *Encode("lossless", {kv.shape, kv.pointers});
  const SectionPlace tables = ParseHeader(container)->tables;
  ASSERT_GT(tables.bytes, 0u);
  container[tables.offset + tables.bytes / 2] ^= 4;
  const absl::Status status = Decoder::Make(container, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(status.message(), "tables: checksum does not match");
}

TEST(LosslessCodec, ImpossibleShapesAndCodecsAreRefusedByName) {
  Kv kv({1, 2, 64, 64, 3}, Dtype::kBf16, KvOrder::kTokenMajor, Fill::kModel);
  EXPECT_EQ(Encode("gzip", {kv.shape, kv.pointers}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Encode("profile", {kv.shape, kv.pointers}).status().message(),
            "codec profile needs a profile");
  kv.shape.heads = 5000;
  EXPECT_EQ(Encode("lossless", {kv.shape, kv.pointers}).status().message(),
            "chunk header: kv_heads must be 1 .. 1024");
}

}  // namespace
}  // namespace terrace::codec
