#include "kernels/exponent_nibbles.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "kernels/float_format.h"

namespace terrace::kernels {
namespace {

struct Packed {
  uint8_t exponents[kNibbleExponents];
  std::vector<uint8_t> codes, rests, escapes;

  bool operator==(const Packed& other) const {
    return codes == other.codes && rests == other.rests && escapes == other.escapes;
  }
  NibbleSource Source() const {
    return {codes.data(), rests.data(), escapes.data(), escapes.data() + escapes.size()};
  }
};

template <typename Pack>
Packed PackWith(const std::vector<uint16_t>& values, Pack pack) {
  Packed packed;
  ChooseExponents(values.data(), values.size(), packed.exponents);
  packed.codes.resize((values.size() + 1) / 2);
  packed.rests.resize(values.size());
  packed.escapes.resize(values.size());
  NibbleSink sink{packed.codes.data(), packed.rests.data(), packed.escapes.data()};
  pack(values.data(), values.size(), packed.exponents, &sink);
  EXPECT_EQ(sink.codes, packed.codes.data() + packed.codes.size());
  EXPECT_EQ(sink.rests, packed.rests.data() + packed.rests.size());
  packed.escapes.resize(sink.escapes - packed.escapes.data());
  return packed;
}

std::vector<uint16_t> Values(size_t count, bool any, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    const float scale = std::exp2(static_cast<float>(random() % 24));
    value = any ? static_cast<uint16_t>(random()) : Bf16OfFloat(normal(random) * scale);
  }
  return values;
}

using Unpack = std::function<bool(NibbleSource*, const uint8_t*, size_t, uint16_t*)>;
std::vector<Unpack> AllWays() {
  std::vector<Unpack> ways = {UnpackNibblesScalar};
  for (bool stream : {false, true}) {
    ways.push_back([stream](auto* source, auto* exponents, size_t count, uint16_t* out) {
      return UnpackNibblesAvx2(source, exponents, count, stream, out);
    });
    ways.push_back([stream](auto* source, auto* exponents, size_t count, uint16_t* out) {
      return UnpackNibbles(source, exponents, count, stream, out);
    });
  }
  return ways;
}

TEST(ExponentNibbles, EveryWayGivesTheSameBytesAndTheValuesBack) {
  for (bool any : {false, true}) {
    for (size_t count : {0, 1, 2, 31, 63, 64, 65, 127, 200, 1001, 5000}) {
      const std::vector<uint16_t> values = Values(count, any, static_cast<uint32_t>(count));
      const Packed packed = PackWith(values, PackNibbles);
      EXPECT_EQ(packed, PackWith(values, PackNibblesScalar));
      for (const Unpack& unpack : AllWays()) {
        for (size_t misaligned : {0, 1, 2, 5}) {
          std::vector<uint16_t> room(count + 64, 0xabcd);
          uint16_t* out = room.data() + misaligned;
          NibbleSource source = packed.Source();
          ASSERT_TRUE(unpack(&source, packed.exponents, count, out));
          EXPECT_TRUE(std::equal(values.begin(), values.end(), out));
          EXPECT_EQ(out[count], 0xabcd);
          EXPECT_EQ(source.escapes, source.escapes_end);
        }
      }
    }
  }
}

TEST(ExponentNibbles, ATileMayBeDoneInParts) {
  const std::vector<uint16_t> values = Values(1000, false, 9);
  const Packed packed = PackWith(values, PackNibbles);
  std::vector<uint16_t> out(values.size());
  NibbleSource source = packed.Source();
  for (size_t at = 0; at < values.size(); at += 100) {
    ASSERT_TRUE(UnpackNibbles(&source, packed.exponents, 100, false, out.data() + at));
  }
  EXPECT_EQ(out, values);
}

TEST(ExponentNibbles, MissingEscapesAreRefusedWhereverTheyAre) {
  const std::vector<uint16_t> values = Values(640, true, 10);
  const Packed packed = PackWith(values, PackNibbles);
  ASSERT_GT(packed.escapes.size(), 300u);
  for (const Unpack& unpack : AllWays()) {
    for (size_t kept = 0; kept < packed.escapes.size(); kept += 7) {
      const std::vector<uint8_t> escapes(packed.escapes.begin(), packed.escapes.begin() + kept);
      std::vector<uint16_t> out(values.size());
      NibbleSource source{packed.codes.data(), packed.rests.data(), escapes.data(),
                          escapes.data() + escapes.size()};
      EXPECT_FALSE(unpack(&source, packed.exponents, values.size(), out.data()));
    }
  }
}

}  // namespace
}  // namespace terrace::kernels
