// A small profile, made up rather than calibrated, for tests and fuzzing of codec/.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "codec/profile.h"
#include "kernels/checksum.h"

namespace terrace::testing {

struct ProfileParameters {
  codec::Transform transform = codec::Transform::kHead;
  uint8_t pairing = 1;
  uint32_t layers = 1, heads = 2, k_dim = 8, v_dim = 4;
  uint32_t seed = 1;
  // 16 log2 of the coefficients' standard deviations: from the lowest, over so many.
  uint32_t lowest_scale16 = 0, scales16 = 160;
  std::string model_id = {};
  std::vector<codec::OperatingPoint> points = {};
};

// Sets length and checksum, so that what is in between reaches the parser.
inline void SealProfile(std::vector<uint8_t>* bytes) {
  const uint64_t size = bytes->size();
  std::memcpy(bytes->data() + 16, &size, sizeof size);
  std::memset(bytes->data() + 12, 0, 4);
  const uint32_t crc = kernels::Crc32c(bytes->data(), bytes->size());
  std::memcpy(bytes->data() + 12, &crc, sizeof crc);
}

// Of symbols around 15 with a standard deviation of `scale`; every symbol can be coded.
inline std::array<uint16_t, 32> LaplacianFrequencies(double scale) {
  std::array<double, 32> share;
  double sum = 0;
  for (int s = 0; s < 32; ++s)
    sum += share[s] = std::exp(-std::sqrt(2.0) * std::abs(s - 15) / scale);
  std::array<uint16_t, 32> frequencies;
  int left = 256;
  for (int s = 0; s < 32; ++s) {
    frequencies[s] = static_cast<uint16_t>(std::max(1.0, std::floor(256 * share[s] / sum)));
    left -= frequencies[s];
  }
  frequencies[15] = static_cast<uint16_t>(frequencies[15] + left);
  return frequencies;
}

inline std::vector<uint8_t> MakeProfile(const ProfileParameters& of) {
  std::mt19937 random(of.seed);
  std::vector<uint8_t> out;
  const auto put = [&out](auto value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof value);
  };
  const uint32_t rotary_dim = of.pairing == 0 ? 0 : of.k_dim;
  for (char letter : {'T', 'K', 'V', 'P', 'R', 'O', 'F', '1'}) put(letter);
  put(uint16_t{1});
  put(uint16_t{0});
  put(uint32_t{0});
  put(uint64_t{0});
  put(static_cast<uint8_t>(of.transform));
  put(of.pairing);
  put(static_cast<uint16_t>(rotary_dim));
  for (uint32_t field : {of.layers, of.heads, of.k_dim, of.v_dim}) put(field);
  put(uint8_t{1});
  put(static_cast<uint8_t>(of.points.size()));
  put(static_cast<uint16_t>(of.model_id.size()));
  out.resize(128);
  for (char letter : of.model_id) put(letter);
  for (const codec::OperatingPoint& point : of.points) {
    put(point.lambda16);
    put(point.bits_per_value);
    put(point.mean_kl);
  }
  for (uint32_t i = 0; i < rotary_dim / 2; ++i) put(uint64_t{random()} << 32 | random());
  for (uint32_t t = 0; t < codec::kTables; ++t) {
    const double scale =
        t < codec::kScaleTables ? std::exp2((static_cast<int>(t) - 20) / 4.0) : 1e9;
    for (uint16_t frequency : LaplacianFrequencies(std::min(scale, 8.0))) put(frequency);
  }
  for (uint32_t s = 0; s < 2 * of.layers; ++s) {
    const uint32_t dim = s % 2 == 0 ? of.k_dim : of.v_dim, channels = of.heads * dim;
    const uint32_t block = of.transform == codec::Transform::kHead ? dim : channels;
    for (uint32_t c = 0; c < channels; ++c)
      put(static_cast<int16_t>(of.lowest_scale16 + random() % of.scales16));
    for (uint32_t c = 0; c < channels; ++c) put(static_cast<float>(random() % 16) / 8 - 1);
    for (uint32_t c = 0; c < channels; ++c) {
      put(of.transform == codec::Transform::kChannel ? 1.0f : 0x1p-14f);
    }
    if (of.transform != codec::Transform::kChannel) {
      for (uint32_t i = 0; i < channels * block; ++i) {  // mostly diagonal: it has an inverse
        const bool diagonal = i / block % block == i % block;
        put(static_cast<int16_t>((diagonal ? 20000 : 0) + static_cast<int>(random() % 200)));
      }
    }
    put(int32_t{220});
    for (uint32_t i = 0; i < of.heads * (of.k_dim + of.v_dim) + 3; ++i) {
      put(static_cast<float>(random() % 64) / 8192);
    }
  }
  SealProfile(&out);
  return out;
}

}  // namespace terrace::testing
