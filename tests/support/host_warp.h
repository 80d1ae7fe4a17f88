// A warp on the CPU, lane after lane, so that tests run the very code of the GPU's kernels
// (kernels/warp.h). Lanes run upwards or downwards: what depends on their order is missing a Sync.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/gpu_tile.h"
#include "kernels/tile_rows.cuh"

namespace terrace::testing {

class HostWarp {
 public:
  template <typename T>
  using Lanes = std::array<T, 32>;

  explicit HostWarp(bool downwards) : downwards_(downwards) {}

  template <typename F>
  void Each(F f) const {
    for (uint32_t i = 0; i < 32; ++i) f(downwards_ ? 31 - i : i);
  }
  template <typename F>
  uint32_t Ballot(F f) const {
    uint32_t votes = 0;
    Each(
        [&](uint32_t lane) { votes |= static_cast<uint32_t>(static_cast<bool>(f(lane))) << lane; });
    return votes;
  }
  template <typename F>
  uint32_t Sum(F f) const {
    uint32_t sum = 0;
    Each([&](uint32_t lane) { sum += static_cast<uint32_t>(f(lane)); });
    return sum;
  }
  template <typename T>
  T From(const Lanes<T>& values, uint32_t lane) const {
    return values[lane];
  }
  uint32_t Scan(Lanes<uint32_t>& values) const {
    uint32_t sum = 0;
    for (uint32_t& value : values) sum += std::exchange(value, sum);
    return sum;
  }
  void Sync() const {}

  // mma.m16n8k32 as the PTX ISA lays its fragments out (kernels/tile_rows.cuh).
  template <bool kSignedA, bool kSignedB, typename B, typename Sums>
  void Multiply(const Lanes<kernels::RowBytes>& a, B b, Sums sums) const {
    const auto byte = [](uint32_t word, uint32_t i, bool is_signed) {
      const auto value = static_cast<uint8_t>(word >> 8 * i);
      return is_signed ? static_cast<int32_t>(static_cast<int8_t>(value)) : int32_t{value};
    };
    for (uint32_t row = 0; row < 16; ++row) {
      for (uint32_t column = 0; column < 8; ++column) {
        uint32_t sum = 0;
        for (uint32_t k = 0; k < 32; ++k) {
          const uint32_t half = k / 16, of_lane = k % 16 / 4;
          const uint32_t a_word = a[row % 8 * 4 + of_lane].word[row / 8 + 2 * half];
          const uint32_t b_word = b(column * 4 + of_lane)[half];
          sum +=
              static_cast<uint32_t>(byte(a_word, k % 4, kSignedA) * byte(b_word, k % 4, kSignedB));
        }
        int32_t& to = sums(row % 8 * 4 + column / 2)[row / 8 * 2 + column % 2];
        to = static_cast<int32_t>(static_cast<uint32_t>(to) + sum);
      }
    }
  }

  static uint32_t Count(uint32_t bits) { return static_cast<uint32_t>(std::popcount(bits)); }
  static uint32_t Load(const uint8_t* at) {
    uint32_t word;
    std::memcpy(&word, at, sizeof word);
    return word;
  }
  static kernels::MatrixWords LoadMatrix(const kernels::MatrixWords* at) { return *at; }
  static void Store4(uint8_t* at, const uint32_t* words) { std::memcpy(at, words, 16); }
  static float Fma(float a, float b, float c) { return std::fma(a, b, c); }
  static float Mul(float a, float b) { return a * b; }
  static float Add(float a, float b) { return a + b; }
  static float Divide(float a, float b) { return a / b; }
  static float Floor(float a) { return std::floor(a); }
  static float RoundToEven(float a) { return std::nearbyint(a); }
  static void AtomicAdd(uint32_t* to, uint32_t value) { *to += value; }

 private:
  bool downwards_;
};

}  // namespace terrace::testing
