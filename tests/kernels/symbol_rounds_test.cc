#include "kernels/symbol_rounds.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "kernels/coefficient_rows.h"
#include "tests/support/codec_profile.h"

namespace terrace::kernels {
namespace {

// Tables with low bits from 0 to 9, of which some cannot code the outermost symbols.
struct Bank {
  std::unique_ptr<RansTables> tables = std::make_unique<RansTables>();
  uint8_t low_bits[kRansTables];

  Bank() {
    for (size_t t = 0; t < kRansTables; ++t) {
      auto frequencies = testing::LaplacianFrequencies(4);
      if (t % 3 == 0) frequencies[15] += std::exchange(frequencies[0], uint16_t{0});
      RansBuildTable(tables.get(), t, frequencies.data());
      low_bits[t] = t % 2 == 0 ? 0 : t / 2 % 10;
    }
  }
};

struct Packed {
  std::vector<uint8_t> symbols;
  std::vector<uint32_t> escapes, planes;
  bool operator==(const Packed&) const = default;
};

TEST(SymbolRounds, ImplementationsAgreeAndUnpackingGivesTheCoefficientsBack) {
  const Bank bank;
  std::mt19937 random(3);
  for (size_t channels : {1, 8, 31, 32, 33, 80, 128}) {
    for (size_t lanes : {1, 7, 16, 31, 32}) {
      const size_t step = 1 + lanes % 4;
      std::vector<int16_t> values(lanes * channels);
      for (int16_t& q : values) {
        q = static_cast<int16_t>(random() % 8 == 0 ? random() : random() % 41 - 20);
      }
      values[0] = 32767;
      std::vector<const int16_t*> rows;
      for (size_t lane = 0; lane < lanes; ++lane) rows.push_back(values.data() + lane * channels);
      std::vector<uint8_t> tables(channels * step);
      std::vector<uint32_t> plane_at(channels * step);
      uint32_t planes = 0;
      for (size_t r = 0; r < tables.size(); ++r) {
        tables[r] = random() % kRansTables;
        plane_at[r] = planes;
        planes += bank.low_bits[tables[r]];
      }
      const auto pack = [&](auto function) {
        Packed packed{std::vector<uint8_t>(tables.size() * 32, 0x55),
                      std::vector<uint32_t>(tables.size()), std::vector<uint32_t>(planes)};
        function({rows.data(), lanes, channels, step, bank.tables.get(), tables.data(),
                  bank.low_bits, packed.symbols.data(), packed.escapes.data(), plane_at.data(),
                  packed.planes.data()});
        return packed;
      };
      const Packed packed = pack(PackRounds);
      ASSERT_TRUE(packed == pack(PackRoundsScalar)) << channels << " " << lanes;
      std::vector<LowBits> low;
      for (size_t c = 0; c < channels; ++c) {
        low.push_back(
            {bank.low_bits[tables[c * step]],
             reinterpret_cast<const uint8_t*>(packed.planes.data() + plane_at[c * step])});
      }
      std::vector<int16_t> back(32 * channels);
      UnpackRows({packed.symbols.data(), step * 32, channels, low.data()}, channels, back.data());
      for (size_t i = 0; i < values.size(); ++i) {
        const size_t lane = i / channels, c = i % channels;
        const bool escaped = (packed.escapes[c * step] >> lane & 1) != 0;
        ASSERT_EQ(escaped, packed.symbols[c * step * 32 + lane] == 31);
        if (!escaped) {
          ASSERT_EQ(back[i], values[i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace terrace::kernels
