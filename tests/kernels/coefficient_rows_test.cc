#include "kernels/coefficient_rows.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace terrace::kernels {
namespace {

constexpr size_t kLanes = 32;

struct Rounds {
  std::vector<uint8_t> symbols, planes;
  std::vector<LowBits> low;
  SymbolRounds view;

  // Channels a `stride` apart; low bits below `bits_end`.
  Rounds(size_t channels, size_t stride, uint32_t bits_end, uint32_t seed) {
    std::mt19937 random(seed);
    symbols.resize((channels - 1) * stride + kLanes);
    for (uint8_t& symbol : symbols) symbol = random() % 31;
    planes.resize(channels * 16 * 4 + 1);
    for (uint8_t& plane : planes) plane = static_cast<uint8_t>(random());
    for (size_t c = 0; c < channels; ++c) {  // planes anywhere, not aligned
      low.push_back({static_cast<uint32_t>(random() % bits_end), planes.data() + 1 + c * 64});
    }
    view = {symbols.data(), stride, channels, bits_end == 1 ? nullptr : low.data()};
  }

  int32_t Defined(size_t channel, size_t lane) const {
    const uint32_t bits = low[channel].bits;
    int32_t value = (symbols[channel * view.stride + lane] - 15) * (1 << bits) - ((1 << bits) >> 1);
    for (uint32_t b = 0; b < bits; ++b) {
      value += (low[channel].planes[4 * b + lane / 8] >> lane % 8 & 1) << b;
    }
    return value;
  }
};

template <typename T>
void Check(uint32_t bits_end) {
  using Unpack = void (*)(const SymbolRounds&, size_t, T*);
  for (size_t channels : {1, 7, 16, 31, 32, 33, 48, 80, 128, 200}) {
    for (size_t groups : {1, 4}) {
      const Rounds rounds(channels, groups * kLanes, bits_end, static_cast<uint32_t>(channels));
      const size_t row_stride = channels + groups;
      for (Unpack unpack : {Unpack{UnpackRows}, Unpack{UnpackRowsSse2}, Unpack{UnpackRowsScalar}}) {
        std::vector<T> rows(kLanes * row_stride, 99);
        unpack(rounds.view, row_stride, rows.data());
        for (size_t lane = 0; lane < kLanes; ++lane) {
          for (size_t c = 0; c < row_stride; ++c) {
            const T wanted = c < channels ? static_cast<T>(rounds.Defined(c, lane)) : T{99};
            ASSERT_EQ(rows[lane * row_stride + c], wanted)
                << channels << " channels: lane " << lane << ", channel " << c;
          }
        }
      }
    }
  }
}

TEST(CoefficientRows, SymbolsAreTransposed) {
  Check<int8_t>(1);
  Check<int16_t>(1);
}

TEST(CoefficientRows, LowBitsAreAdded) {
  Check<int8_t>(kNarrowBits + 1);
  Check<int16_t>(kNarrowBits + 1);
  Check<int16_t>(10);
}

TEST(CoefficientRows, SymbolsAreCounted) {
  std::mt19937 random(1);
  for (size_t count : {0, 1, 63, 64, 1000, 255 * 64 + 65, 100000}) {
    std::vector<uint8_t> symbols(count, 31);
    size_t wanted = count;
    EXPECT_EQ(CountSymbol(symbols.data(), count, 31), wanted);
    for (uint8_t& symbol : symbols) {
      symbol = random() % 32;
      wanted -= symbol != 31;
    }
    EXPECT_EQ(CountSymbol(symbols.data(), count, 31), wanted);
  }
}

}  // namespace
}  // namespace terrace::kernels
