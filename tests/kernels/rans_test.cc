#include "kernels/rans.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

namespace terrace::kernels {
namespace {

struct Coded {
  RansShape shape;
  std::vector<uint8_t> schedule, symbols, bytes;
};

class RansTest : public testing::Test {
 protected:
  RansTest() {
    for (uint32_t t = 0; t < kRansMaxTables; ++t) {
      uint16_t frequencies[32] = {};
      uint32_t left = 256;
      for (uint32_t s = 0; s < 31; ++s) {
        frequencies[s] = random_() % 3 == 0 ? 0 : random_() % (left / (t % 7 + 1) + 1);
        left -= frequencies[s];
      }
      frequencies[31] = left;
      if (t == 5) {
        std::fill(frequencies, frequencies + 32, 0);
        frequencies[9] = 256;
      }
      EXPECT_TRUE(RansBuildTable(frequencies, t, tables_.get()));
    }
  }

  Coded Random(uint32_t channels, uint32_t group, uint32_t tail) {
    Coded coded;
    coded.shape = {channels * group, group, tail};
    coded.symbols.assign(32 * coded.shape.rounds, 0);
    for (uint32_t round = 0; round < coded.shape.rounds; ++round) {
      const uint32_t table = random_() % kRansMaxTables;
      coded.schedule.push_back(table);
      for (uint32_t lane = 0; lane < coded.shape.Lanes(round); ++lane) {
        coded.symbols[32 * round + lane] = tables_->symbol_of_slot[table][random_() % 256];
      }
    }
    coded.bytes.resize(RansBound(coded.shape));
    coded.bytes.resize(RansEncodeScalar(*tables_, coded.shape, coded.schedule.data(),
                                        coded.symbols.data(), coded.bytes.data()));
    return coded;
  }

  std::unique_ptr<RansTables> tables_ = std::make_unique<RansTables>();
  std::mt19937 random_{11};
};

TEST_F(RansTest, EveryImplementationGivesTheSameBytesAndTheSymbolsBack) {
  for (uint32_t i = 0; i < 400; ++i) {
    const uint32_t group = 1 + i % 5, tail = 1 + i % 32, count = 1 + i % 7;
    const uint32_t channels = 1 + random_() % 40;
    std::vector<Coded> all;
    for (uint32_t k = 0; k < count; ++k) all.push_back(Random(channels, group, tail));
    for (auto decode : {RansDecode, RansDecodeScalar}) {
      std::vector<std::vector<uint8_t>> outs;
      std::vector<RansStream> streams;
      for (Coded& coded : all) {
        outs.emplace_back(coded.symbols.size(), 77);
        streams.push_back({coded.bytes.data(), coded.bytes.size(), coded.schedule.data(),
                           outs.back().data(), false});
      }
      decode(*tables_, all[0].shape, streams.data(), streams.size());
      for (uint32_t k = 0; k < count; ++k) {
        EXPECT_TRUE(streams[k].ok);
        EXPECT_EQ(outs[k], all[k].symbols);
      }
    }
    std::vector<uint8_t> bytes(RansBound(all[0].shape));
    bytes.resize(RansEncode(*tables_, all[0].shape, all[0].schedule.data(), all[0].symbols.data(),
                            bytes.data()));
    EXPECT_EQ(bytes, all[0].bytes);
  }
}

TEST_F(RansTest, PeekGivesTheFirstRounds) {
  const Coded coded = Random(20, 3, 17);
  std::vector<uint8_t> first(96);
  ASSERT_TRUE(RansPeek(*tables_, coded.shape, coded.bytes.data(), coded.bytes.size(),
                       coded.schedule.data(), 3, first.data()));
  EXPECT_TRUE(std::equal(first.begin(), first.end(), coded.symbols.begin()));
  EXPECT_FALSE(RansPeek(*tables_, coded.shape, coded.bytes.data(), 63, coded.schedule.data(), 3,
                        first.data()));
}

TEST_F(RansTest, DamagedStreamsAreRefusedOrGiveSymbolsInRange) {
  const Coded coded = Random(12, 4, 32);
  for (auto decode : {RansDecode, RansDecodeScalar}) {
    for (size_t size = 0; size < coded.bytes.size(); ++size) {
      const std::vector<uint8_t> cut(coded.bytes.begin(), coded.bytes.begin() + size);
      std::vector<uint8_t> out(coded.symbols.size());
      RansStream stream{cut.data(), size, coded.schedule.data(), out.data(), true};
      decode(*tables_, coded.shape, &stream, 1);
      EXPECT_FALSE(stream.ok) << size;
    }
    for (int i = 0; i < 2000; ++i) {
      std::vector<uint8_t> bytes = coded.bytes;
      bytes[random_() % bytes.size()] ^= 1 << random_() % 8;
      if (i % 3 == 0) std::generate(bytes.begin(), bytes.end(), std::ref(random_));
      std::vector<uint8_t> out(coded.symbols.size());
      RansStream stream{bytes.data(), bytes.size(), coded.schedule.data(), out.data(), true};
      decode(*tables_, coded.shape, &stream, 1);
      for (uint8_t symbol : out) ASSERT_LT(symbol, 32);
    }
  }
}

TEST_F(RansTest, DivisionIsExactForEveryStateAndFrequency) {
  for (uint32_t f = 1; f <= 256; ++f) {
    const uint32_t reciprocal = 65535 / f;
    for (uint32_t x = 0; x < std::min(256 * f, 65536u); ++x) {
      const uint32_t estimate = x * reciprocal >> 16;
      ASSERT_TRUE(estimate == x / f || estimate + 1 == x / f) << x << " / " << f;
    }
  }
}

TEST_F(RansTest, ASymbolOfFrequencyZeroAndABadTableAreRefused) {
  const RansShape shape{1, 1, 1};
  const uint8_t schedule = 5, good[32] = {9}, bad[32] = {8};
  std::vector<uint8_t> out(RansBound(shape));
  for (auto encode : {RansEncode, RansEncodeScalar}) {
    EXPECT_EQ(encode(*tables_, shape, &schedule, good, out.data()), 2u);
    EXPECT_EQ(encode(*tables_, shape, &schedule, bad, out.data()), 0u);
  }
  uint16_t frequencies[32] = {255};
  EXPECT_FALSE(RansBuildTable(frequencies, 0, tables_.get()));
}

}  // namespace
}  // namespace terrace::kernels
