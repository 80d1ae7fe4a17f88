#include "kernels/rans.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <vector>

#include "kernels/checksum.h"
#include "kernels/rans_decoder.h"

namespace terrace::kernels {
namespace {

using Bytes = std::vector<uint8_t>;
using Frequencies = std::array<uint16_t, kRansSymbols>;

constexpr decltype(&RansEncode) kEncoders[] = {RansEncodeScalar, RansEncodeAvx2, RansEncodeAvx512,
                                               RansEncode};
constexpr decltype(&RansDecode) kDecoders[] = {RansDecodeScalar, RansDecodeAvx2, RansDecodeAvx512,
                                               RansDecode};

// `used` symbols at random places share 256 unevenly.
Frequencies RandomFrequencies(std::mt19937& random, size_t used) {
  Frequencies frequency{};
  std::vector<size_t> symbols(kRansSymbols);
  for (size_t i = 0; i < kRansSymbols; ++i) symbols[i] = i;
  std::shuffle(symbols.begin(), symbols.end(), random);
  uint32_t left = kRansTotal;
  for (size_t i = 0; i < used; ++i) {
    const uint32_t others = static_cast<uint32_t>(used - i - 1);
    const uint32_t share = others == 0 ? left : 1 + random() % (left - others);
    frequency[symbols[i]] = static_cast<uint16_t>(share);
    left -= share;
  }
  return frequency;
}

struct Bank {
  explicit Bank(uint32_t seed) : tables(std::make_unique<RansTables>()) {
    std::mt19937 random(seed);
    for (size_t id = 0; id < kRansTables; ++id) {
      const Frequencies frequency = RandomFrequencies(random, 1 + (id + seed) % kRansSymbols);
      EXPECT_TRUE(RansBuildTable(tables.get(), id, frequency.data()));
    }
  }
  std::unique_ptr<RansTables> tables;
};

struct Tile {
  Bytes schedule;
  Bytes symbols;
  Bytes data;  // once encoded
};

// Symbols as likely as their table says.
Tile RandomTile(const RansTables& bank, const RansShape& shape, std::mt19937& random) {
  Tile tile;
  tile.schedule.resize(shape.rounds);
  tile.symbols.resize(shape.rounds * kRansLanes);
  for (size_t round = 0; round < shape.rounds; ++round) {
    tile.schedule[round] = random() % kRansTables;
    const bool last = (round + 1) % shape.rounds_per_channel == 0;
    const size_t active = last ? shape.tail_lanes : kRansLanes;
    for (size_t lane = 0; lane < active; ++lane) {
      tile.symbols[round * kRansLanes + lane] =
          bank.tables[tile.schedule[round]].slot_to_symbol[random() % kRansTotal];
    }
  }
  return tile;
}

bool Encode(decltype(&RansEncode) encode, const RansTables& bank, const RansShape& shape,
            std::vector<Tile>* tiles) {
  std::vector<RansSource> sources;
  for (Tile& tile : *tiles) {
    tile.data.assign(RansBound(shape.rounds), 0xAA);
    sources.push_back({tile.symbols.data(), tile.schedule.data(), tile.data.data()});
  }
  const bool all = encode(bank, shape, sources);
  for (size_t i = 0; i < sources.size(); ++i) {
    (*tiles)[i].data.resize(sources[i].size);
    (*tiles)[i].data.shrink_to_fit();  // so that sanitizers see what is read past the end
  }
  return all;
}

// What each tile decodes to, nothing where it does not.
std::vector<Bytes> Decode(decltype(&RansDecode) decode, const RansTables& bank,
                          const RansShape& shape, const std::vector<Tile>& tiles) {
  std::vector<Bytes> decoded(tiles.size(), Bytes(shape.rounds * kRansLanes));
  std::vector<RansStream> streams;
  for (size_t i = 0; i < tiles.size(); ++i) {
    streams.push_back(
        {tiles[i].data.data(), tiles[i].data.size(), tiles[i].schedule.data(), decoded[i].data()});
  }
  const bool all = decode(bank, shape, streams);
  bool every = true;
  for (size_t i = 0; i < tiles.size(); ++i) {
    for (uint8_t symbol : decoded[i]) EXPECT_LT(symbol, kRansSymbols);
    if (!streams[i].ok) decoded[i].clear();
    every = every && streams[i].ok;
  }
  EXPECT_EQ(all, every);
  return decoded;
}

void ExpectRoundTrip(const RansTables& bank, const RansShape& shape, std::vector<Tile> tiles) {
  ASSERT_TRUE(Encode(RansEncodeScalar, bank, shape, &tiles));
  std::vector<Tile> again = tiles;
  for (auto encode : kEncoders) {
    ASSERT_TRUE(Encode(encode, bank, shape, &again));
    for (size_t i = 0; i < tiles.size(); ++i) ASSERT_EQ(again[i].data, tiles[i].data);
  }
  for (auto decode : kDecoders) {
    const std::vector<Bytes> decoded = Decode(decode, bank, shape, tiles);
    for (size_t i = 0; i < tiles.size(); ++i) ASSERT_EQ(decoded[i], tiles[i].symbols);
  }
}

TEST(Rans, KnownStream) {
  RansTables bank;
  Frequencies frequency{};
  frequency[3] = frequency[30] = 128;
  ASSERT_TRUE(RansBuildTable(&bank, 5, frequency.data()));
  Tile tile;
  tile.schedule.assign(1, 5);
  tile.symbols.assign(kRansLanes, 3);
  tile.symbols[1] = 30;
  std::vector<Tile> tiles = {tile};
  const RansShape shape = {.rounds = 1};
  ASSERT_TRUE(Encode(RansEncode, bank, shape, &tiles));
  // x = 256: 256 / 128 << 8 | 256 % 128 + start.
  Bytes expected(64, 0);
  for (size_t lane = 0; lane < kRansLanes; ++lane) expected[2 * lane + 1] = 2;
  expected[2] = 128;
  EXPECT_EQ(tiles[0].data, expected);
  ExpectRoundTrip(bank, shape, tiles);
}

// Streams are kept on disk: what is written today must be read tomorrow.
TEST(Rans, TheFormatStays) {
  std::mt19937 random(11);
  RansTables bank;
  Frequencies frequency{};
  for (size_t id = 0; id < kRansTables; ++id) {
    frequency.fill(static_cast<uint16_t>(1 + id % 2));
    frequency[id % kRansSymbols] += kRansTotal - (1 + id % 2) * kRansSymbols;
    ASSERT_TRUE(RansBuildTable(&bank, id, frequency.data()));
  }
  const RansShape shape = {.rounds = 60, .rounds_per_channel = 3, .tail_lanes = 17};
  std::vector<Tile> tiles = {RandomTile(bank, shape, random)};
  ASSERT_TRUE(Encode(RansEncode, bank, shape, &tiles));
  EXPECT_EQ(tiles[0].data.size(), 396u);
  EXPECT_EQ(Crc32c(tiles[0].data.data(), tiles[0].data.size()), 520341970u);
  ExpectRoundTrip(bank, shape, tiles);
}

TEST(Rans, ReciprocalsDivideExactly) {
  for (uint32_t frequency = 1; frequency <= kRansTotal; ++frequency) {
    RansTables bank;
    Frequencies frequencies{};
    frequencies[7] = static_cast<uint16_t>(frequency);
    frequencies[9] = static_cast<uint16_t>(kRansTotal - frequency);
    ASSERT_TRUE(RansBuildTable(&bank, 0, frequencies.data()));
    const uint32_t reciprocal = bank.tables[0].reciprocal[7];
    for (uint32_t x = 0; x < frequency << 8; ++x) {
      // As the vector implementations divide.
      uint32_t quotient = x * reciprocal >> 16;
      if (x - quotient * frequency >= frequency) ++quotient;
      ASSERT_EQ(quotient, x / frequency) << x << " " << frequency;
    }
  }
}

TEST(Rans, RoundTripsEveryTail) {
  std::mt19937 random(1);
  for (size_t rounds_per_channel = 1; rounds_per_channel <= 5; ++rounds_per_channel) {
    for (size_t tail = 1; tail <= kRansLanes; ++tail) {
      const Bank bank(static_cast<uint32_t>(tail * 7 + rounds_per_channel));
      const size_t channels = 1 + random() % 12;
      const RansShape shape = {rounds_per_channel * channels, rounds_per_channel, tail};
      std::vector<Tile> tiles;
      const size_t count = 1 + random() % 9;
      for (size_t i = 0; i < count; ++i) tiles.push_back(RandomTile(*bank.tables, shape, random));
      ExpectRoundTrip(*bank.tables, shape, tiles);
      if (HasFatalFailure()) FAIL() << rounds_per_channel << " " << tail;
    }
  }
}

TEST(Rans, RoundTripsLongStreamsAndPartialChannels) {
  std::mt19937 random(2);
  const Bank bank(3);
  for (size_t rounds : {size_t{1}, size_t{2}, size_t{15}, size_t{17}, size_t{768}, size_t{3001}}) {
    const RansShape shape = {rounds, 4, 13};
    std::vector<Tile> tiles;
    for (int i = 0; i < 7; ++i) tiles.push_back(RandomTile(*bank.tables, shape, random));
    ExpectRoundTrip(*bank.tables, shape, tiles);
  }
}

TEST(Rans, ADecoderGivesTheSameSomeRoundsAtATime) {
  const Bank bank(5);
  std::mt19937 random(6);
  const RansShape shape{3 * 41, 3, 17};
  for (auto decode : {rans::FastestDecodeRounds(), rans::DecodeRounds{rans::DecodeRoundsScalar}}) {
    for (size_t streams = 1; streams <= RansDecoder::kTogether; ++streams) {
      RansDecoder decoder(*bank.tables, shape, decode);
      std::vector<Tile> tiles;
      for (size_t k = 0; k < streams; ++k) {
        tiles.push_back(RandomTile(*bank.tables, shape, random));
      }
      ASSERT_TRUE(Encode(RansEncodeScalar, *bank.tables, shape, &tiles));
      for (size_t k = 0; k < streams; ++k) {
        EXPECT_TRUE(decoder.Add(tiles[k].data.data(), tiles[k].data.size()));
      }
      EXPECT_FALSE(decoder.Add(tiles[0].data.data(), 63));
      std::vector<Bytes> decoded(streams, Bytes(shape.rounds * kRansLanes));
      for (size_t round = 0; round < shape.rounds;) {
        const size_t some = std::min<size_t>(1 + random() % 30, shape.rounds - round);
        std::vector<const uint8_t*> schedules;
        std::vector<uint8_t*> symbols;
        for (size_t k = 0; k < streams; ++k) {
          EXPECT_FALSE(decoder.Ended(k));
          schedules.push_back(tiles[k].schedule.data() + round);
          symbols.push_back(decoded[k].data() + round * kRansLanes);
        }
        ASSERT_TRUE(decoder.Decode(some, schedules.data(), symbols.data()));
        round += some;
      }
      for (size_t k = 0; k < streams; ++k) {
        EXPECT_TRUE(decoder.Ended(k));
        EXPECT_EQ(decoded[k], tiles[k].symbols);
      }
      EXPECT_FALSE(decoder.Decode(1, nullptr, nullptr));
    }
  }
}

TEST(Rans, EverySlotOfEveryTableDecodesAlike) {
  std::mt19937 random(4);
  for (uint32_t seed = 0; seed < 32; ++seed) {
    const Bank bank(seed);
    const RansShape shape = {.rounds = 8};
    std::vector<Tile> tiles(kRansTables);
    for (size_t i = 0; i < tiles.size(); ++i) {
      tiles[i].schedule.assign(8, static_cast<uint8_t>(i));
      tiles[i].symbols.resize(8 * kRansLanes);
      for (size_t slot = 0; slot < kRansTotal; ++slot) {
        tiles[i].symbols[slot] = bank.tables->tables[i].slot_to_symbol[slot];
      }
      std::shuffle(tiles[i].symbols.begin(), tiles[i].symbols.end(), random);
    }
    ExpectRoundTrip(*bank.tables, shape, tiles);
  }
}

TEST(Rans, ASymbolThatIsAllThereIsCostsNothing) {
  const RansTables bank;
  const RansShape shape = {.rounds = 1000};
  std::vector<Tile> tiles(1);
  tiles[0].schedule.assign(1000, 63);
  tiles[0].symbols.assign(1000 * kRansLanes, 0);
  ASSERT_TRUE(Encode(RansEncode, bank, shape, &tiles));
  EXPECT_EQ(tiles[0].data.size(), 64u);
  ExpectRoundTrip(bank, shape, tiles);
}

TEST(Rans, ShortStreamsHoldOnlyTheStatesTheyUse) {
  const RansTables bank;
  const RansShape shape = {.rounds = 3, .rounds_per_channel = 1, .tail_lanes = 5};
  std::vector<Tile> tiles(2);
  for (Tile& tile : tiles) {
    tile.schedule.assign(3, 0);
    tile.symbols.assign(3 * kRansLanes, 0);
  }
  ASSERT_TRUE(Encode(RansEncode, bank, shape, &tiles));
  EXPECT_EQ(tiles[0].data.size(), 10u);
  ExpectRoundTrip(bank, shape, tiles);
}

TEST(Rans, RefusesFrequenciesThatDoNotSum) {
  RansTables bank;
  const RansTable before = bank.tables[2];
  Frequencies frequency{};
  EXPECT_FALSE(RansBuildTable(&bank, 2, frequency.data()));
  frequency[0] = 255;
  EXPECT_FALSE(RansBuildTable(&bank, 2, frequency.data()));
  frequency[1] = 2;
  EXPECT_FALSE(RansBuildTable(&bank, 2, frequency.data()));
  frequency.fill(65535);
  EXPECT_FALSE(RansBuildTable(&bank, 2, frequency.data()));
  // 256 modulo 2^16 is not 256.
  frequency.fill(0);
  frequency[0] = frequency[1] = 32768 + 128;
  EXPECT_FALSE(RansBuildTable(&bank, 2, frequency.data()));
  EXPECT_TRUE(std::ranges::equal(before.slot_to_symbol, bank.tables[2].slot_to_symbol));
  EXPECT_TRUE(std::ranges::equal(before.gap, bank.tables[2].gap));
  EXPECT_TRUE(std::ranges::equal(before.start, bank.tables[2].start));
  EXPECT_TRUE(std::ranges::equal(before.tree, bank.tables[2].tree));
  frequency[0] = frequency[1] = 128;
  EXPECT_FALSE(RansBuildTable(&bank, kRansTables, frequency.data()));
  EXPECT_TRUE(RansBuildTable(&bank, 2, frequency.data()));
}

TEST(Rans, RefusesWhatCannotBeCoded) {
  const Bank bank(5);
  std::mt19937 random(5);
  const RansShape shape = {.rounds = 40, .rounds_per_channel = 4, .tail_lanes = 20};
  std::vector<Tile> good;
  for (int i = 0; i < 7; ++i) good.push_back(RandomTile(*bank.tables, shape, random));
  for (auto encode : kEncoders) {
    for (size_t which = 0; which < good.size(); ++which) {
      const size_t round = random() % shape.rounds;
      const RansTable& table = bank.tables->tables[good[which].schedule[round]];
      const auto* const gap = std::find(table.gap, table.gap + kRansSymbols, kRansTotal);
      std::vector<Tile> tiles = good;
      uint8_t& symbol = tiles[which].symbols[round * kRansLanes + random() % 20];
      const uint8_t uncodable = static_cast<uint8_t>(gap - table.gap);  // 32 if all can be coded
      for (uint8_t bad : {uncodable, uint8_t{32}, uint8_t{64}, uint8_t{128}, uint8_t{255}}) {
        symbol = bad;
        EXPECT_FALSE(Encode(encode, *bank.tables, shape, &tiles));
        for (size_t i = 0; i < tiles.size(); ++i) EXPECT_EQ(tiles[i].data.empty(), i == which);
      }
      tiles = good;
      tiles[which].schedule[round] = kRansTables + random() % (256 - kRansTables);
      EXPECT_FALSE(Encode(encode, *bank.tables, shape, &tiles));
      EXPECT_TRUE(tiles[which].data.empty());
    }
  }
}

TEST(Rans, InactiveLanesAreIgnoredAndComeBackZero) {
  const Bank bank(6);
  std::mt19937 random(6);
  const RansShape shape = {.rounds = 12, .rounds_per_channel = 3, .tail_lanes = 9};
  std::vector<Tile> tiles = {RandomTile(*bank.tables, shape, random)};
  const Bytes symbols = tiles[0].symbols;
  for (size_t round = 2; round < 12; round += 3) {
    for (size_t lane = 9; lane < 32; ++lane) tiles[0].symbols[round * 32 + lane] = random();
  }
  for (auto encode : kEncoders) {
    ASSERT_TRUE(Encode(encode, *bank.tables, shape, &tiles));
    for (auto decode : kDecoders) EXPECT_EQ(Decode(decode, *bank.tables, shape, tiles)[0], symbols);
  }
}

TEST(Rans, RefusesImpossibleShapesAndSchedules) {
  const Bank bank(7);
  std::mt19937 random(7);
  const RansShape shape = {.rounds = 9, .rounds_per_channel = 3, .tail_lanes = 32};
  std::vector<Tile> tiles = {RandomTile(*bank.tables, shape, random)};
  ASSERT_TRUE(Encode(RansEncode, *bank.tables, shape, &tiles));
  std::vector<Tile> unscheduled = tiles;
  unscheduled[0].schedule[8] = kRansTables;
  for (auto decode : kDecoders) {
    for (const RansShape& bad :
         {RansShape{0, 3, 32}, RansShape{9, 0, 32}, RansShape{9, 3, 0}, RansShape{9, 3, 33}}) {
      EXPECT_TRUE(Decode(decode, *bank.tables, bad, tiles)[0].empty());
    }
    EXPECT_TRUE(Decode(decode, *bank.tables, shape, unscheduled)[0].empty());
  }
  for (auto encode : kEncoders) {
    std::vector<Tile> copy = tiles;
    EXPECT_FALSE(Encode(encode, *bank.tables, {9, 3, 33}, &copy));
    EXPECT_FALSE(Encode(encode, *bank.tables, {0, 3, 32}, &copy));
    EXPECT_TRUE(encode(*bank.tables, shape, {}));
  }
}

// Damages one of several tiles: the others still decode, and the implementations agree.
void ExpectDamageContained(const Bank& bank, const RansShape& shape, const std::vector<Tile>& tiles,
                           size_t which, bool must_fail) {
  const Bytes expected = Decode(RansDecodeScalar, *bank.tables, shape, tiles)[which];
  EXPECT_TRUE(!must_fail || expected.empty());
  for (auto decode : kDecoders) {
    const std::vector<Bytes> decoded = Decode(decode, *bank.tables, shape, tiles);
    for (size_t i = 0; i < tiles.size(); ++i) {
      ASSERT_EQ(decoded[i], i == which ? expected : tiles[i].symbols) << i;
    }
  }
}

TEST(Rans, TruncatedAndExtendedStreamsAreRefused) {
  const Bank bank(8);
  std::mt19937 random(8);
  const RansShape shape = {.rounds = 36, .rounds_per_channel = 4, .tail_lanes = 11};
  std::vector<Tile> good;
  for (int i = 0; i < 7; ++i) good.push_back(RandomTile(*bank.tables, shape, random));
  ASSERT_TRUE(Encode(RansEncode, *bank.tables, shape, &good));
  for (size_t which : {0, 3, 4, 6}) {
    std::vector<Tile> tiles = good;
    for (size_t size = 0; size < good[which].data.size(); ++size) {
      tiles[which].data = Bytes(good[which].data.begin(), good[which].data.begin() + size);
      ExpectDamageContained(bank, shape, tiles, which, true);
    }
    for (size_t more : {1, 2, 31, 32, 33, 600}) {
      tiles[which].data = good[which].data;
      tiles[which].data.resize(tiles[which].data.size() + more, 0);
      ExpectDamageContained(bank, shape, tiles, which, true);
    }
  }
}

TEST(Rans, FlippedBitsNeverHarm) {
  const Bank bank(9);
  std::mt19937 random(9);
  const RansShape shape = {.rounds = 20, .rounds_per_channel = 4, .tail_lanes = 32};
  std::vector<Tile> tiles;
  for (int i = 0; i < 3; ++i) tiles.push_back(RandomTile(*bank.tables, shape, random));
  ASSERT_TRUE(Encode(RansEncode, *bank.tables, shape, &tiles));
  for (size_t which : {0, 2}) {
    for (size_t bit = 0; bit < tiles[which].data.size() * 8; ++bit) {
      tiles[which].data[bit / 8] ^= 1 << bit % 8;
      // Coding is one to one: what is accepted is other symbols.
      const Bytes decoded = Decode(RansDecodeScalar, *bank.tables, shape, tiles)[which];
      EXPECT_NE(decoded, tiles[which].symbols) << bit;
      ExpectDamageContained(bank, shape, tiles, which, false);
      tiles[which].data[bit / 8] ^= 1 << bit % 8;
    }
  }
}

TEST(Rans, RandomBytesNeverHarm) {
  std::mt19937 random(10);
  for (uint32_t run = 0; run < 600; ++run) {
    const Bank bank(run % 32);
    const RansShape shape = {1 + random() % 100, 1 + random() % 5, 1 + random() % 32};
    std::vector<Tile> tiles;
    for (int i = 0; i < 5; ++i) tiles.push_back(RandomTile(*bank.tables, shape, random));
    ASSERT_TRUE(Encode(RansEncode, *bank.tables, shape, &tiles));
    const size_t which = random() % tiles.size();
    tiles[which].data = Bytes(random() % 3000);
    for (uint8_t& byte : tiles[which].data) byte = random();
    // States that can be: the bytes after them are read too.
    for (size_t i = 1; i < tiles[which].data.size() && i < 64; i += 2) tiles[which].data[i] |= 1;
    ExpectDamageContained(bank, shape, tiles, which, false);
  }
}

}  // namespace
}  // namespace terrace::kernels
