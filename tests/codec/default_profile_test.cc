#include "codec/default_profile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "codec/chunk_codec.h"
#include "codec/profile_codec.h"
#include "codec/symmetric_eigen.h"
#include "kernels/float_format.h"

namespace terrace::codec {
namespace {

constexpr DefaultRope kRope = {kernels::RopePairing::kHalf, 12, 10000};

struct Kv {
  KvShape shape;
  std::vector<std::vector<float>> sections;  // [token][channel]

  std::vector<const uint8_t*> Pointers() const {
    std::vector<const uint8_t*> pointers;
    for (const auto& s : sections) pointers.push_back(reinterpret_cast<const uint8_t*>(s.data()));
    return pointers;
  }
};

// Channels of a head that depend on each other, around a mean, as KV has them.
Kv MakeKv(uint32_t tokens, double unit = 1) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal(0, 1);
  Kv kv;
  kv.shape = {Dtype::kF32, KvOrder::kTokenMajor, 2, 2, 16, 8, tokens, 0};
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    const uint32_t channels = kv.shape.Channels(s);
    std::vector<float> values;
    for (uint32_t t = 0; t < tokens; ++t) {
      const double common = normal(random);
      for (uint32_t c = 0; c < channels; ++c) {
        const double spread = 1 + c % 8 * 0.5;
        values.push_back(
            static_cast<float>(unit * (0.5 + spread * (2 * common + 0.3 * normal(random)))));
      }
    }
    kv.sections.push_back(std::move(values));
  }
  return kv;
}

absl::StatusOr<std::vector<uint8_t>> ProfileOf(const Kv& kv, const DefaultRope& rope = kRope,
                                               std::string_view model_id = "a model") {
  return MakeDefaultProfile(kv.shape, rope, kv.Pointers(), model_id);
}

std::shared_ptr<const Profile> Parsed(const Kv& kv, const DefaultRope& rope = kRope) {
  const auto bytes = ProfileOf(kv, rope);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  const auto profile = Profile::Parse(*bytes);
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *profile;
}

// Bytes of a container of `kv`, and its root mean square error over the deviation of a unit.
std::pair<size_t, double> Through(const std::shared_ptr<const Profile>& profile, const Kv& kv,
                                  int32_t lambda16) {
  const auto encoder = *Encoder::Make(profile);
  const auto container = *encoder->Encode(kv.shape, lambda16, 4, 0, kv.Pointers());
  const auto decoder = *Decoder::Make(container, profile);
  double error = 0, energy = 0;
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    std::vector<float> out(kv.sections[s].size());
    EXPECT_TRUE(decoder.Section(s, reinterpret_cast<uint8_t*>(out.data())).ok());
    for (size_t i = 0; i < out.size(); ++i) {
      error += (out[i] - kv.sections[s][i]) * (out[i] - kv.sections[s][i]);
      energy += kv.sections[s][i] * kv.sections[s][i];
    }
  }
  return {container.size(), std::sqrt(error / energy)};
}

TEST(DefaultProfile, IsAProfileOfTheChunksModel) {
  const auto profile = Parsed(MakeKv(200));
  EXPECT_EQ(profile->model_id(), "a model");
  EXPECT_EQ(profile->transform(), Transform::kHead);
  EXPECT_EQ(profile->rotary_dim(), 12u);
  EXPECT_TRUE(profile->StepFor(0.01).has_value());
  EXPECT_FALSE(profile->StepFor(0.001).has_value());
  // 2^64 / (2 pi) turns for the first pair, 10000^(-1/6) of it for the next.
  EXPECT_NEAR(static_cast<double>(profile->frequencies()[0]), 0x1p64 / (2 * M_PI), 1e6);
  EXPECT_NEAR(static_cast<double>(profile->frequencies()[1]),
              0x1p64 / (2 * M_PI) * std::pow(10000, -1.0 / 6), 1e6);
}

TEST(DefaultProfile, TheSameChunkGivesTheSameBytesWhateverItsOrder) {
  Kv kv = MakeKv(150);
  const auto bytes = *ProfileOf(kv);
  EXPECT_EQ(bytes, *ProfileOf(kv));
  Kv turned = kv;
  turned.shape.order = KvOrder::kHeadMajor;
  for (uint32_t s = 0; s < kv.shape.Sections(); ++s) {
    const uint32_t dim = kv.shape.Dim(s), channels = kv.shape.Channels(s);
    for (uint32_t t = 0; t < 150; ++t) {
      for (uint32_t c = 0; c < channels; ++c) {
        turned.sections[s][(c / dim * 150 + t) * dim + c % dim] = kv.sections[s][t * channels + c];
      }
    }
  }
  EXPECT_EQ(bytes, *ProfileOf(turned));
}

TEST(DefaultProfile, ChannelsThatDependOnEachOtherTakeFewBits) {
  const Kv kv = MakeKv(512);
  const auto [bytes, error] = Through(Parsed(kv), kv, -40);
  EXPECT_LT(error, 0.1);
  EXPECT_LT(8.0 * bytes / (512 * (2 * 2 * (16 + 8))), 4.0);  // of 32
}

TEST(DefaultProfile, StepsFollowTheUnitOfTheValues) {
  const auto small = Through(Parsed(MakeKv(256)), MakeKv(256), -32);
  const auto large = Through(Parsed(MakeKv(256, 1024)), MakeKv(256, 1024), -32);
  EXPECT_NEAR(small.second, large.second, 0.02 * small.second);
  EXPECT_NEAR(small.first, large.first, 0.02 * small.first);
}

TEST(DefaultProfile, WithoutRopeKeysStayAsTheyAre) {
  const auto profile = Parsed(MakeKv(128), {});
  EXPECT_EQ(profile->pairing(), kernels::RopePairing::kNone);
  EXPECT_LT(Through(profile, MakeKv(128), -48).second, 0.1);
}

TEST(DefaultProfile, ValuesThatAreNotFiniteAreLeftOut) {
  Kv kv = MakeKv(100);
  kv.sections[0][10 * 32] = std::numeric_limits<float>::quiet_NaN();
  kv.sections[3][20 * 16] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(Profile::Parse(*ProfileOf(kv)).ok());
}

TEST(DefaultProfile, ConstantAndTinyAndHugeValuesAreNoTrouble) {
  Kv kv = MakeKv(100);
  for (auto& section : kv.sections) std::fill(section.begin(), section.end(), 0.25f);
  EXPECT_LT(Through(Parsed(kv), kv, -48).second, 0.05);
  for (double unit : {1e-40, 1e-30, 1e-12, 1e16}) Parsed(MakeKv(100, unit));
}

TEST(DefaultProfile, WhatItCannotBeMadeOfIsRefusedByName) {
  const auto message = [](const Kv& kv, const DefaultRope& rope = kRope,
                          std::string_view model_id = "") {
    const auto status = ProfileOf(kv, rope, model_id).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message(MakeKv(67)),
            "default profile: tokens of finite values after the first 4 must be at least 64; layer "
            "0 has 63");
  Kv kv = MakeKv(100);
  const std::string no_rope =
      "default profile: rotary_dim must be even, at most k_dim, and 0 only without pairing";
  EXPECT_EQ(message(kv, {kernels::RopePairing::kHalf, 18, 1e4}), no_rope);
  EXPECT_EQ(message(kv, {kernels::RopePairing::kHalf, 0, 1e4}), no_rope);
  EXPECT_EQ(message(kv, {kernels::RopePairing::kHalf, 16, 1}),
            "default profile: theta must be above 1, to 1e12");
  EXPECT_EQ(message(kv, kRope, std::string(513, 'x')),
            "default profile: length of model_id must be 0 .. 512");
  kv.shape.dtype = Dtype::kF8E4M3;
  EXPECT_EQ(message(kv), "default profile: dtype must be float32, float16 or bfloat16");
}

TEST(SymmetricEigen, VectorsTurnTheMatrixIntoItsValues) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal(0, 1);
  for (size_t n : {1u, 2u, 7u, 64u}) {
    std::vector<double> matrix(n * n);
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j <= i; ++j) matrix[i * n + j] = matrix[j * n + i] = normal(random);
    }
    const SymmetricEigen eigen = DecomposeSymmetric(matrix, n);
    for (size_t k = 0; k < n; ++k) {
      for (size_t i = 0; i < n; ++i) {
        double product = 0;
        for (size_t j = 0; j < n; ++j) product += matrix[i * n + j] * eigen.vectors[k * n + j];
        EXPECT_NEAR(product, eigen.values[k] * eigen.vectors[k * n + i], 1e-7);
      }
    }
  }
}

}  // namespace
}  // namespace terrace::codec
