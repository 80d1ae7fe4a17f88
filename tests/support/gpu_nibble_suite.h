// What the GPU's kernels of codec 1 must do, as a suite over a Machine as in gpu_codec_suite.h,
// with
//   void DecodeNibbles(const NibbleLaunch&), EncodeNibbles(const NibbleLaunch&)   until it is done
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "codec/chunk_codec.h"
#include "kernels/cuda_codec.h"
#include "kernels/float_format.h"
#include "tests/support/gpu_codec_suite.h"

namespace terrace::testing {

// Some KV and its container of codec 1.
struct NibbleCase {
  KvShape shape;
  std::vector<std::vector<uint8_t>> sections;
  std::vector<uint8_t> container;

  // Exponents of `octaves` kinds: with very many, nibbles do not pay.
  NibbleCase(const KvShape& of, uint32_t octaves) : shape(of) {
    std::mt19937 random(octaves);
    std::vector<const uint8_t*> pointers;
    for (uint32_t s = 0; s < shape.Sections(); ++s) {
      std::vector<uint8_t> bytes(shape.SectionBytes(s));
      for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
      for (size_t i = 0; shape.dtype == Dtype::kBf16 && i < bytes.size(); i += 2) {
        const uint32_t exponent = 120 + random() % octaves * (random() % 4 == 0 ? 1 : 0);
        const auto value = static_cast<uint16_t>(exponent % 256 << 7 | (random() & 0x807f));
        std::memcpy(&bytes[i], &value, sizeof value);
      }
      sections.push_back(std::move(bytes));
    }
    for (const auto& section : sections) pointers.push_back(section.data());
    container = *codec::Encode("lossless-fast", {shape, pointers});
  }
};

// A tile of `section` in the machine's memory at `at`.
inline kernels::NibbleJob NibbleJobOf(const KvShape& shape, uint32_t section, uint32_t tile,
                                      uint8_t* at, uint32_t bytes, uint8_t* values) {
  return {at,
          bytes,
          shape.TileTokens(tile),
          tile * codec::kTileTokens,
          shape.heads,
          shape.Dim(section),
          DtypeBytes(shape.dtype),
          shape.dtype == Dtype::kBf16,
          shape.order == KvOrder::kHeadMajor,
          ContiguousPlaces(shape, section, values)};
}

template <typename Machine>
class NibblesOnMachine {
 public:
  uint8_t* Bytes(size_t size) { return static_cast<uint8_t*>(machine_.Allocate(size)); }
  uint8_t* Copy(std::span<const uint8_t> bytes, size_t skew) {
    uint8_t* copy = Bytes(bytes.size() + 8) + skew;
    if (!bytes.empty()) std::memcpy(copy, bytes.data(), bytes.size());
    return copy;
  }
  std::vector<kernels::TileStatus> Decode(const std::vector<kernels::NibbleJob>& jobs) {
    const kernels::NibbleLaunch launch = Launch(jobs);
    machine_.DecodeNibbles(launch);
    return {launch.status, launch.status + launch.count};
  }
  std::vector<uint32_t> Encode(const std::vector<kernels::NibbleJob>& jobs) {
    const kernels::NibbleLaunch launch = Launch(jobs);
    machine_.EncodeNibbles(launch);
    return {launch.sizes, launch.sizes + launch.count};
  }

 private:
  kernels::NibbleLaunch Launch(const std::vector<kernels::NibbleJob>& jobs) {
    uint8_t* copy = Bytes(jobs.size() * sizeof jobs[0]);
    std::memcpy(copy, jobs.data(), jobs.size() * sizeof jobs[0]);
    return {reinterpret_cast<const kernels::NibbleJob*>(copy), static_cast<uint32_t>(jobs.size()),
            reinterpret_cast<kernels::TileStatus*>(Bytes(jobs.size() * 4)),
            reinterpret_cast<uint32_t*>(Bytes(jobs.size() * 4))};
  }
  Machine machine_;
};

template <typename Machine>
class GpuNibbleSuite : public ::testing::Test {};
TYPED_TEST_SUITE_P(GpuNibbleSuite);

// Both ways, each tile, against what the CPU made.
template <typename Machine>
void ExpectNibblesAlike(const NibbleCase& c) {
  const auto chunk = *codec::ParseHeader(c.container);
  for (uint32_t s = 0; s < c.shape.Sections(); ++s) {
    NibblesOnMachine<Machine> on;
    const auto tiles = *codec::SectionTiles::Find(c.container, chunk, s);
    uint8_t* const decoded = on.Bytes(c.sections[s].size());
    uint8_t* const values = on.Copy(c.sections[s], 0);
    std::vector<kernels::NibbleJob> decoding, encoding, without_room;
    for (uint32_t t = 0; t < c.shape.Tiles(); ++t) {
      const std::span<const uint8_t> tile = *tiles.At(t);
      const auto bytes = static_cast<uint32_t>(tile.size());
      decoding.push_back(NibbleJobOf(c.shape, s, t, on.Copy(tile, (t + s) % 4), bytes, decoded));
      encoding.push_back(NibbleJobOf(c.shape, s, t, on.Bytes(bytes), bytes, values));
      without_room.push_back(encoding.back());
      --without_room.back().bytes;
    }
    for (const auto status : on.Decode(decoding)) EXPECT_EQ(status, kernels::TileStatus::kDone);
    EXPECT_EQ(std::memcmp(decoded, c.sections[s].data(), c.sections[s].size()), 0)
        << "section " << s;
    for (const uint32_t size : on.Encode(without_room)) EXPECT_EQ(size, 0u);
    const std::vector<uint32_t> sizes = on.Encode(encoding);
    for (uint32_t t = 0; t < c.shape.Tiles(); ++t) {
      const std::span<const uint8_t> tile = *tiles.At(t);
      ASSERT_EQ(sizes[t], tile.size());
      EXPECT_EQ(std::memcmp(encoding[t].tile, tile.data(), tile.size()), 0) << "tile " << t;
    }
  }
}

TYPED_TEST_P(GpuNibbleSuite, GivesTheBytesAndValuesOfTheCpu) {
  for (uint32_t octaves : {8u, 30u, 256u}) {
    for (uint32_t tokens : {1u, 3u, 128u, 200u}) {
      for (uint32_t dim : {1u, 5u, 64u}) {
        for (KvOrder order : {KvOrder::kTokenMajor, KvOrder::kHeadMajor}) {
          SCOPED_TRACE(::testing::Message()
                       << octaves << ' ' << tokens << ' ' << dim << ' ' << static_cast<int>(order));
          ExpectNibblesAlike<TypeParam>(
              NibbleCase({Dtype::kBf16, order, 1, 3, dim, 2 * dim, tokens, 0}, octaves));
        }
      }
    }
  }
}

TYPED_TEST_P(GpuNibbleSuite, KeepsOtherDtypes) {
  for (Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kI8}) {
    ExpectNibblesAlike<TypeParam>(
        NibbleCase({dtype, KvOrder::kHeadMajor, 1, 2, 16, 16, 130, 0}, 8));
  }
}

TYPED_TEST_P(GpuNibbleSuite, FindsWrongLengthsFormsAndEscapes) {
  const NibbleCase c({Dtype::kBf16, KvOrder::kTokenMajor, 1, 2, 16, 16, 40, 0}, 30);
  const auto whole =
      *codec::SectionTiles::Find(c.container, *codec::ParseHeader(c.container), 0)->At(0);
  NibblesOnMachine<TypeParam> on;
  uint8_t* const out = on.Bytes(c.sections[0].size());
  std::vector<kernels::NibbleJob> jobs;
  const auto add = [&](const std::vector<uint8_t>& tile) {
    jobs.push_back(NibbleJobOf(c.shape, 0, 0, on.Copy(tile, jobs.size() % 4),
                               static_cast<uint32_t>(tile.size()), out));
  };
  const std::vector<uint8_t> good(whole.begin(), whole.end());
  add({});
  add({good.begin(), good.end() - 1});
  add({good.begin(), good.begin() + 20});
  for (const uint8_t form : {0, 2}) {
    add(good);
    jobs.back().tile[0] = form;
  }
  add(good);
  jobs.back().tile[16] = static_cast<uint8_t>(good[16] & 0xf) == 0xf ? 0 : 0xf;
  add(good);
  using enum kernels::TileStatus;
  EXPECT_EQ(on.Decode(jobs),
            (std::vector<kernels::TileStatus>{kShort, kWrongEscapes, kShort, kWrongLength,
                                              kWrongForm, kWrongEscapes, kDone}));
}

REGISTER_TYPED_TEST_SUITE_P(GpuNibbleSuite, GivesTheBytesAndValuesOfTheCpu, KeepsOtherDtypes,
                            FindsWrongLengthsFormsAndEscapes);

}  // namespace terrace::testing
