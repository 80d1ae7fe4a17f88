#include "kernels/checksum.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace terrace::kernels {
namespace {

std::vector<uint8_t> RandomBytes(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> data(bytes);
  for (uint8_t& byte : data) byte = random();
  return data;
}

// RFC 3720, appendix B.4.
TEST(Checksum, KnownVectors) {
  std::vector<uint8_t> zeros(32, 0), ones(32, 0xff), up(32), down(32);
  for (int i = 0; i < 32; ++i) {
    up[i] = i;
    down[i] = 31 - i;
  }
  for (auto crc : {Crc32c, Crc32cSse, Crc32cScalar}) {
    EXPECT_EQ(crc(zeros.data(), 32, 0), 0x8A9136AAu);
    EXPECT_EQ(crc(ones.data(), 32, 0), 0x62A8AB43u);
    EXPECT_EQ(crc(up.data(), 32, 0), 0x46DD794Eu);
    EXPECT_EQ(crc(down.data(), 32, 0), 0x113FDB5Cu);
    EXPECT_EQ(crc("123456789", 9, 0), 0xE3069283u);
  }
}

TEST(Checksum, OfTwoPiecesFollowsFromTheirChecksums) {
  const auto data = RandomBytes(9000, 7);
  for (size_t first : {size_t{0}, size_t{1}, size_t{64}, size_t{4096}, data.size()}) {
    const uint32_t a = Crc32c(data.data(), first);
    const uint32_t b = Crc32c(data.data() + first, data.size() - first);
    EXPECT_EQ(Crc32cConcat(a, b, data.size() - first), Crc32c(data.data(), data.size())) << first;
  }
}

TEST(Checksum, EveryImplementationAgreesWithTheScalarOne) {
  const auto data = RandomBytes(8192, 1);
  for (size_t bytes = 0; bytes <= 4096; ++bytes) {
    const uint8_t* from = data.data() + bytes % 67;
    const uint32_t expected = Crc32cScalar(from, bytes, 0x1234);
    ASSERT_EQ(Crc32c(from, bytes, 0x1234), expected) << bytes;
    ASSERT_EQ(Crc32cSse(from, bytes, 0x1234), expected) << bytes;
  }
}

TEST(Checksum, EveryImplementationAgreesOnLargeInputs) {
  const auto data = RandomBytes((2 << 20) + 64, 5);
  for (size_t bytes : {size_t{65536}, size_t{65537}, size_t{1} << 20, (size_t{2} << 20) - 1}) {
    for (size_t shift : {0, 1, 31, 63}) {
      const uint32_t expected = Crc32cScalar(data.data() + shift, bytes);
      ASSERT_EQ(Crc32c(data.data() + shift, bytes), expected) << bytes << " " << shift;
      ASSERT_EQ(Crc32cSse(data.data() + shift, bytes), expected) << bytes << " " << shift;
    }
  }
}

TEST(Checksum, NothingFromNowhereIsNotAnError) {
  for (auto copy : {CopyCrc32c, CopyCrc32cSse, CopyCrc32cScalar}) {
    EXPECT_EQ(copy(nullptr, nullptr, 0, 0x1234), 0x1234u);
  }
  for (auto crc : {Crc32c, Crc32cSse, Crc32cScalar}) EXPECT_EQ(crc(nullptr, 0, 0x1234), 0x1234u);
}

class ChecksumCopy : public testing::TestWithParam<decltype(&CopyCrc32c)> {};

INSTANTIATE_TEST_SUITE_P(Implementations, ChecksumCopy,
                         testing::Values(CopyCrc32c, CopyCrc32cSse, CopyCrc32cScalar));

TEST_P(ChecksumCopy, CopiesExactlyAndChecksumsInOnePass) {
  const size_t large = (3 << 20) + 77;
  const auto data = RandomBytes(large + 64, 2);
  std::vector<uint8_t> to(large + 200);
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{255}, size_t{256}, size_t{1000},
                       size_t{4096}, size_t{262143}, size_t{262144}, size_t{262145}, large}) {
    for (size_t shift : {0, 1, 15, 64}) {
      std::memset(to.data(), 0xAA, to.size());
      const uint32_t crc = GetParam()(to.data() + 3 + shift, data.data() + shift, bytes, 7);
      ASSERT_EQ(crc, Crc32cScalar(data.data() + shift, bytes, 7)) << bytes << " " << shift;
      ASSERT_EQ(std::memcmp(to.data() + 3 + shift, data.data() + shift, bytes), 0);
      ASSERT_EQ(to[2 + shift], 0xAA);
      ASSERT_EQ(to[3 + shift + bytes], 0xAA);
    }
  }
}

TEST(Checksum, ContinuesWhereItStopped) {
  const auto data = RandomBytes(100000, 3);
  const uint32_t whole = Crc32c(data.data(), data.size());
  for (size_t cut : {size_t{1}, size_t{511}, size_t{512}, size_t{65536}}) {
    EXPECT_EQ(Crc32c(data.data() + cut, data.size() - cut, Crc32c(data.data(), cut)), whole);
  }
}

TEST(Checksum, EveryFlippedBitShows) {
  auto data = RandomBytes(1024, 4);
  const uint32_t whole = Crc32c(data.data(), data.size());
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= 1 << bit % 8;
    ASSERT_NE(Crc32c(data.data(), data.size()), whole) << bit;
    data[bit / 8] ^= 1 << bit % 8;
  }
}

}  // namespace
}  // namespace terrace::kernels
