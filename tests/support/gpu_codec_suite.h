// What the GPU's kernels of codec 3 must do, as a suite over a Machine that runs them: the GPU
// itself (tests/kernels/cuda_codec_test.cc) or a CPU that runs their code lane after lane
// (tests/kernels/gpu_emulation_test.cc). A Machine has memory that both sides see, and
//   void* Allocate(size_t bytes)          zeroed, aligned to 256 bytes; freed with the Machine
//   void FillTurns(frequencies, pairs, first, positions, out)
//   void Decode(const DecodeLaunch&), Encode(const EncodeLaunch&)      until it is done
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "codec/chunk_codec.h"
#include "codec/gpu_profile.h"
#include "kernels/checksum.h"
#include "kernels/cuda_codec.h"
#include "kernels/float_format.h"
#include "tests/support/codec_profile.h"

namespace terrace::testing {

using codec::KvShape;
using codec::Transform;

// A profile, some KV, and its container.
struct GpuCase {
  static constexpr uint32_t kRawHead = 2, kRawTail = 1;

  std::shared_ptr<const codec::Encoder> encoder;
  KvShape shape;
  std::vector<std::vector<uint8_t>> sections;
  std::vector<uint8_t> container;

  GpuCase(const ProfileParameters& of, uint32_t tokens, Dtype dtype, KvOrder order,
          int32_t lambda16)
      : shape{dtype, order, of.layers, of.heads, of.k_dim, of.v_dim, tokens, 1000} {
    encoder = *codec::Encoder::Make(*codec::Profile::Parse(MakeProfile(of)));
    std::mt19937 random(of.seed);
    std::normal_distribution<float> normal(0, 2);
    std::vector<const uint8_t*> pointers;
    for (uint32_t s = 0; s < shape.Sections(); ++s) {
      std::vector<uint8_t> bytes(shape.SectionBytes(s));
      for (size_t i = 0; i < bytes.size(); i += DtypeBytes(dtype)) {
        // A few are far out, so that some tokens' coefficients do not fit.
        const float value = normal(random) * (random() % 5000 == 0 ? 20000.0f : 1.0f);
        const uint16_t half =
            dtype == Dtype::kBf16 ? kernels::Bf16OfFloat(value) : kernels::F16OfFloat(value);
        if (dtype == Dtype::kF32) std::memcpy(&bytes[i], &value, 4);
        if (dtype != Dtype::kF32) std::memcpy(&bytes[i], &half, 2);
      }
      sections.push_back(std::move(bytes));
    }
    for (const auto& section : sections) pointers.push_back(section.data());
    container = *encoder->Encode(shape, lambda16, kRawHead, kRawTail, pointers);
  }

  const codec::Profile& profile() const { return *encoder->profile(); }
  std::span<const uint8_t> Tile(const codec::ParsedChunk& chunk, uint32_t section,
                                uint32_t tile) const {
    return *codec::SectionTiles::Find(container, chunk, section)->At(tile);
  }
};

// A section as the container has it.
inline kernels::KvPlaces ContiguousPlaces(const KvShape& shape, uint32_t section, uint8_t* base) {
  const uint64_t row = uint64_t{shape.Dim(section)} * DtypeBytes(shape.dtype);
  const bool by_token = shape.order == KvOrder::kTokenMajor;
  const uint64_t token = by_token ? row * shape.heads : row;
  return {base, nullptr, 1, token, 0, by_token ? row : row * shape.tokens};
}

template <typename Machine>
class OnMachine {
 public:
  explicit OnMachine(const codec::Encoder& encoder)
      : profile_(*encoder.profile()), gpu_profile_(encoder) {
    image_ = Bytes(gpu_profile_.size());
    std::memcpy(image_, gpu_profile_.ImageAt(image_).data(), gpu_profile_.size());
  }
  uint8_t* Bytes(size_t size) { return static_cast<uint8_t*>(machine_.Allocate(size)); }

  const kernels::Turn* Turns(const KvShape& shape) {
    const size_t pairs = profile_.frequencies().size();
    auto* turns = reinterpret_cast<kernels::Turn*>(Bytes(shape.tokens * pairs * 8 + 8));
    machine_.FillTurns(gpu_profile_.FrequenciesAt(image_), pairs, shape.position, shape.tokens,
                       turns);
    return turns;
  }

  // Queues a tile. Its bytes are copied to where they are not aligned.
  void AddTile(const KvShape& shape, int32_t lambda16, uint32_t section, uint32_t tile,
               std::span<const uint8_t> bytes, const kernels::Turn* turns, kernels::KvPlaces to) {
    const size_t skew = jobs_.size() % 4;
    uint8_t* copy = Bytes(bytes.size() + 8) + skew;
    std::memcpy(copy, bytes.data(), bytes.size());
    const uint32_t first = tile * codec::kTileTokens;
    jobs_.push_back({gpu_profile_.SectionAt(image_, section), copy,
                     static_cast<uint32_t>(bytes.size()), shape.TileTokens(tile), first, lambda16,
                     turns + first * profile_.frequencies().size(), to});
  }

  // The tiles of one layer that lies at `from` (in order: all of its K, all of its V).
  std::vector<std::vector<uint8_t>> Encode(const KvShape& shape, int32_t lambda16, uint32_t layer,
                                           uint32_t raw_head, uint32_t raw_tail,
                                           const kernels::Turn* turns,
                                           const kernels::KvPlaces (&from)[2], uint32_t capacity) {
    std::vector<kernels::EncodeJob> jobs;
    for (uint32_t tile = 0; tile < shape.Tiles(); ++tile) {
      const uint32_t first = tile * codec::kTileTokens, end = shape.tokens - raw_tail;
      jobs.push_back({gpu_profile_.SectionAt(image_, 2 * layer),
                      {from[0], from[1]},
                      shape.TileTokens(tile),
                      first,
                      raw_head - std::min(first, raw_head),
                      end - std::min(first, end),
                      lambda16,
                      turns + first * profile_.frequencies().size(),
                      {Bytes(capacity), Bytes(capacity)},
                      capacity});
    }
    kernels::EncodeLaunch launch;
    auto* copy = Bytes(jobs.size() * sizeof jobs[0]);
    std::memcpy(copy, jobs.data(), jobs.size() * sizeof jobs[0]);
    launch.jobs = reinterpret_cast<const kernels::EncodeJob*>(copy);
    launch.count = static_cast<uint32_t>(jobs.size());
    launch.format = static_cast<kernels::ValueFormat>(shape.dtype);
    launch.tables = gpu_profile_.EncodeTablesAt(image_);
    launch.layer_channels = shape.Channels(0) + shape.Channels(1);
    launch.scratch = Bytes(jobs.size() * kernels::EncodeScratchBytes(launch.layer_channels));
    launch.sizes = reinterpret_cast<uint32_t*>(Bytes(jobs.size() * 8));
    machine_.Encode(launch);
    std::vector<std::vector<uint8_t>> tiles;
    for (uint32_t part = 0; part < 2; ++part) {
      for (size_t i = 0; i < jobs.size(); ++i) {
        tiles.emplace_back(jobs[i].out[part], jobs[i].out[part] + launch.sizes[2 * i + part]);
      }
    }
    return tiles;
  }

  // Of the tiles that were queued.
  std::vector<kernels::TileStatus> Decode(Dtype dtype) {
    kernels::DecodeLaunch launch;
    auto* jobs = Bytes(jobs_.size() * sizeof jobs_[0]);
    std::memcpy(jobs, jobs_.data(), jobs_.size() * sizeof jobs_[0]);
    launch.jobs = reinterpret_cast<const kernels::DecodeJob*>(jobs);
    launch.count = static_cast<uint32_t>(jobs_.size());
    launch.format = static_cast<kernels::ValueFormat>(dtype);
    launch.tables = gpu_profile_.DecodeTablesAt(image_);
    launch.scratch_coefficients = gpu_profile_.scratch_coefficients();
    launch.scratch = Bytes(jobs_.size() * kernels::DecodeScratchBytes(launch.scratch_coefficients));
    launch.status = reinterpret_cast<kernels::TileStatus*>(Bytes(jobs_.size() * 4));
    machine_.Decode(launch);
    jobs_.clear();
    return {launch.status, launch.status + launch.count};
  }

 private:
  Machine machine_;
  const codec::Profile& profile_;
  codec::GpuProfile gpu_profile_;
  uint8_t* image_;
  std::vector<kernels::DecodeJob> jobs_;
};

template <typename Machine>
class GpuCodecSuite : public ::testing::Test {};
TYPED_TEST_SUITE_P(GpuCodecSuite);

// All sections of a container in one launch, against the decoder of the CPU.
template <typename Machine>
void ExpectDecodesAlike(const GpuCase& c) {
  const auto chunk = codec::ParseHeader(c.container);
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  const auto decoder = codec::Decoder::Make(c.container, c.encoder->profile());
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  OnMachine<Machine> on(*c.encoder);
  const kernels::Turn* turns = on.Turns(c.shape);
  std::vector<uint8_t*> outs;
  for (uint32_t s = 0; s < c.shape.Sections(); ++s) {
    outs.push_back(on.Bytes(c.shape.SectionBytes(s)));
    for (uint32_t t = 0; t < c.shape.Tiles(); ++t) {
      on.AddTile(c.shape, chunk->header.lambda16, s, t, c.Tile(*chunk, s, t), turns,
                 ContiguousPlaces(c.shape, s, outs.back()));
    }
  }
  for (const auto status : on.Decode(c.shape.dtype)) {
    EXPECT_EQ(status, kernels::TileStatus::kDone);
  }
  for (uint32_t s = 0; s < c.shape.Sections(); ++s) {
    std::vector<uint8_t> expected(c.shape.SectionBytes(s));
    ASSERT_TRUE(decoder->Section(s, expected.data()).ok());
    EXPECT_EQ(std::memcmp(outs[s], expected.data(), expected.size()), 0) << "section " << s;
  }
}

// Every tile of the container, from the values that were encoded.
template <typename Machine>
void ExpectEncodesAlike(const GpuCase& c) {
  const auto chunk = *codec::ParseHeader(c.container);
  OnMachine<Machine> on(*c.encoder);
  const kernels::Turn* turns = on.Turns(c.shape);
  for (uint32_t layer = 0; layer < c.shape.layers; ++layer) {
    kernels::KvPlaces from[2];
    for (uint32_t part = 0; part < 2; ++part) {
      const auto& section = c.sections[2 * layer + part];
      uint8_t* copy = on.Bytes(section.size());
      std::memcpy(copy, section.data(), section.size());
      from[part] = ContiguousPlaces(c.shape, 2 * layer + part, copy);
    }
    const auto tiles = on.Encode(c.shape, chunk.header.lambda16, layer, GpuCase::kRawHead,
                                 GpuCase::kRawTail, turns, from, 1 << 20);
    for (uint32_t i = 0; i < tiles.size(); ++i) {
      const uint32_t part = i / c.shape.Tiles(), tile = i % c.shape.Tiles();
      const auto expected = c.Tile(chunk, 2 * layer + part, tile);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), tiles[i].begin(), tiles[i].end()))
          << "layer " << layer << (part == 0 ? " K" : " V") << " tile " << tile << ": "
          << tiles[i].size() << " bytes, of the CPU " << expected.size();
    }
  }
}

// Calls run(case) for all transforms, lengths with and without tails, formats and orders, steps
// small enough for escapes and large ones.
template <typename Run>
void ForTiles(Run run) {
  for (Transform transform : {Transform::kChannel, Transform::kHead, Transform::kLayer}) {
    for (uint32_t tokens : {1u, 33u, 96u, 300u}) {
      for (int32_t lambda16 : {-90, 12, 80}) {
        const Dtype dtype = tokens == 33 ? Dtype::kF16 : tokens == 96 ? Dtype::kF32 : Dtype::kBf16;
        const KvOrder order = lambda16 == 12 ? KvOrder::kHeadMajor : KvOrder::kTokenMajor;
        SCOPED_TRACE(::testing::Message()
                     << static_cast<int>(transform) << ' ' << tokens << ' ' << lambda16);
        run(GpuCase({transform, 1, 2, 3, 64, 32, 7}, tokens, dtype, order, lambda16));
      }
    }
  }
}

template <typename Run>
void ForHeads(Run run) {
  for (Transform transform : {Transform::kChannel, Transform::kHead, Transform::kLayer}) {
    for (uint32_t dim : {2u, 6u, 80u, 128u, 192u}) {
      for (uint8_t pairing : {0, 1, 2}) {
        SCOPED_TRACE(::testing::Message()
                     << static_cast<int>(transform) << ' ' << dim << ' ' << int{pairing});
        run(GpuCase({transform, pairing, 1, 2, dim, dim / 2, dim}, 50, Dtype::kBf16,
                    KvOrder::kTokenMajor, 0));
      }
    }
  }
}

TYPED_TEST_P(GpuCodecSuite, DecodesTheValuesOfTheCpu) { ForTiles(ExpectDecodesAlike<TypeParam>); }

TYPED_TEST_P(GpuCodecSuite, DecodesHeadsOfAnySizeAndBothPairings) {
  ForHeads(ExpectDecodesAlike<TypeParam>);
}

TYPED_TEST_P(GpuCodecSuite, EncodesTheBytesOfTheCpu) { ForTiles(ExpectEncodesAlike<TypeParam>); }

TYPED_TEST_P(GpuCodecSuite, EncodesHeadsOfAnySizeAndBothPairings) {
  ForHeads(ExpectEncodesAlike<TypeParam>);
}

TYPED_TEST_P(GpuCodecSuite, SaysWhenATileHasNoRoom) {
  const GpuCase c({}, 40, Dtype::kBf16, KvOrder::kTokenMajor, 0);
  const auto chunk = *codec::ParseHeader(c.container);
  OnMachine<TypeParam> on(*c.encoder);
  const kernels::Turn* turns = on.Turns(c.shape);
  const kernels::KvPlaces from[2] = {
      ContiguousPlaces(c.shape, 0, on.Bytes(c.shape.SectionBytes(0))),
      ContiguousPlaces(c.shape, 1, on.Bytes(c.shape.SectionBytes(1)))};
  const auto encode = [&](size_t room) {
    return on.Encode(c.shape, 0, 0, 0, 0, turns, from, static_cast<uint32_t>(room));
  };
  const size_t bytes = encode(1 << 16)[0].size();
  EXPECT_GT(bytes, 0u);
  EXPECT_EQ(encode(bytes)[0].size(), bytes);
  EXPECT_EQ(encode(bytes - 1)[0].size(), 0u);
}

TYPED_TEST_P(GpuCodecSuite, DecodesIntoBlocksOfPagedAttention) {
  const GpuCase c({Transform::kHead, 1, 1, 2, 64, 64, 3}, 200, Dtype::kBf16, KvOrder::kHeadMajor,
                  -16);
  const auto chunk = *codec::ParseHeader(c.container);
  const auto decoder = *codec::Decoder::Make(c.container, c.encoder->profile());
  OnMachine<TypeParam> on(*c.encoder);
  const kernels::Turn* turns = on.Turns(c.shape);
  // Blocks of 16 tokens as [heads, 16, dim] in an order of their own, one never used.
  constexpr uint32_t kBlocks = 14, kTokens = 16;
  auto* table = reinterpret_cast<int32_t*>(on.Bytes(kBlocks * sizeof(int32_t)));
  for (uint32_t b = 0; b < kBlocks; ++b) table[b] = static_cast<int32_t>((b * 5 + 3) % kBlocks);
  const uint64_t row = 64 * 2, block = row * kTokens * 2;
  for (uint32_t s = 0; s < 2; ++s) {
    uint8_t* pool = on.Bytes(block * kBlocks);
    for (uint32_t t = 0; t < c.shape.Tiles(); ++t) {
      on.AddTile(c.shape, chunk.header.lambda16, s, t, c.Tile(chunk, s, t), turns,
                 {pool, table, kTokens, block, row, row * kTokens});
    }
    on.Decode(c.shape.dtype);
    std::vector<uint8_t> expected(c.shape.SectionBytes(s));
    ASSERT_TRUE(decoder.Section(s, expected.data()).ok());
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint32_t token = 0; token < c.shape.tokens; ++token) {
        const uint8_t* at =
            pool + table[token / kTokens] * block + (head * kTokens + token % kTokens) * row;
        ASSERT_EQ(std::memcmp(at, &expected[(head * c.shape.tokens + token) * row], row), 0)
            << s << ' ' << head << ' ' << token;
      }
    }
    const uint8_t* unused = pool + table[kBlocks - 1] * block;
    EXPECT_TRUE(std::all_of(unused, unused + block, [](uint8_t byte) { return byte == 0; }));
  }
}

// Whether the CPU decodes the tile, of a chunk of one tile and two sections.
inline bool CpuDecodes(const GpuCase& c, const codec::ChunkHeader& header, uint32_t section,
                       std::span<const uint8_t> tile) {
  std::vector<uint8_t> container(codec::HeaderBytes(header.shape));
  const codec::TilePlace place{static_cast<uint32_t>(tile.size()),
                               kernels::Crc32c(tile.data(), tile.size())};
  const codec::SectionPlace both{container.size(),
                                 static_cast<uint32_t>(sizeof place + tile.size()),
                                 kernels::Crc32c(&place, sizeof place)};
  codec::WriteHeader(header, {}, {{both, both}}, container.data());
  const auto* table = reinterpret_cast<const uint8_t*>(&place);
  container.insert(container.end(), table, table + sizeof place);
  container.insert(container.end(), tile.begin(), tile.end());
  std::vector<uint8_t> out(header.shape.SectionBytes(section));
  const auto decoder = codec::Decoder::Make(container, c.encoder->profile());
  return decoder.ok() && decoder->Section(section, out.data()).ok();
}

TYPED_TEST_P(GpuCodecSuite, FindsTheDamageThatTheCpuFinds) {
  const GpuCase c({Transform::kHead, 1, 1, 2, 16, 16, 5}, 70, Dtype::kBf16, KvOrder::kTokenMajor,
                  -40);
  const auto chunk = *codec::ParseHeader(c.container);
  const int32_t lambda16 = chunk.header.lambda16;
  OnMachine<TypeParam> on(*c.encoder);
  const kernels::Turn* turns = on.Turns(c.shape);
  std::mt19937 random(11);
  std::vector<bool> expected;
  for (uint32_t i = 0; i < 600; ++i) {
    const uint32_t s = i % 2;
    const auto whole = c.Tile(chunk, s, 0);
    std::vector<uint8_t> tile(whole.begin(), whole.end());
    if (i % 3 == 0) tile.resize(random() % tile.size());
    for (uint32_t flips = random() % 3; flips > 0 && !tile.empty(); --flips) {
      // Half of them where the counts, the states and the first bytes are.
      const size_t at =
          random() % (random() % 2 == 0 ? std::min<size_t>(80, tile.size()) : tile.size());
      tile[at] ^= static_cast<uint8_t>(1u << random() % 8);
    }
    expected.push_back(CpuDecodes(c, chunk.header, s, tile));
    on.AddTile(c.shape, lambda16, s, 0, tile, turns,
               ContiguousPlaces(c.shape, s, on.Bytes(c.shape.SectionBytes(s))));
  }
  const auto statuses = on.Decode(c.shape.dtype);
  for (uint32_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(statuses[i] == kernels::TileStatus::kDone, expected[i]) << "tile " << i;
  }
  EXPECT_GT(std::count(expected.begin(), expected.end(), true), 20);
  EXPECT_GT(std::count(expected.begin(), expected.end(), false), 200);
}

REGISTER_TYPED_TEST_SUITE_P(GpuCodecSuite, DecodesTheValuesOfTheCpu,
                            DecodesHeadsOfAnySizeAndBothPairings, EncodesTheBytesOfTheCpu,
                            EncodesHeadsOfAnySizeAndBothPairings, SaysWhenATileHasNoRoom,
                            DecodesIntoBlocksOfPagedAttention, FindsTheDamageThatTheCpuFinds);

}  // namespace terrace::testing
