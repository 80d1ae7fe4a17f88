#include "config/size.h"

#include <gtest/gtest.h>

#include <limits>

namespace terrace {
namespace {

TEST(Size, AcceptsBytesBinaryUnitsAndPercent) {
  EXPECT_EQ(*ParseSize("8GiB"), Size::Bytes(uint64_t{8} << 30));
  EXPECT_EQ(*ParseSize("512MiB"), Size::Bytes(uint64_t{512} << 20));
  EXPECT_EQ(*ParseSize("64KiB"), Size::Bytes(65536));
  EXPECT_EQ(*ParseSize("2TiB"), Size::Bytes(uint64_t{2} << 40));
  EXPECT_EQ(*ParseSize("123"), Size::Bytes(123));
  EXPECT_EQ(*ParseSize("60%"), Size::Percent(60));
}

TEST(Size, RefusesWhatItWouldHaveToGuess) {
  for (std::string_view bad :
       {"", "GiB", "8GB", "8G", "8gib", "8 GiB", " 8GiB", "8GiB ", "-1", "+1", "1.5GiB", "0%",
        "101%", "60%%", "1e9", "0x10", "99999999999999999999", "99999999TiB"}) {
    const absl::StatusOr<Size> size = ParseSize(bad);
    EXPECT_EQ(size.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Size, FormatIsExactAndReadsBack) {
  for (uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{1023}, uint64_t{1024}, uint64_t{4097}, uint64_t{3} << 20,
        uint64_t{5} << 30, uint64_t{7} << 40, std::numeric_limits<uint64_t>::max()}) {
    EXPECT_EQ(*ParseSize(FormatSize(Size::Bytes(bytes))), Size::Bytes(bytes)) << bytes;
  }
  EXPECT_EQ(FormatSize(Size::Bytes(uint64_t{64} << 20)), "64MiB");
  EXPECT_EQ(FormatSize(Size::Percent(25)), "25%");
}

TEST(Size, AShareIsWholePagesAndNeverWraps) {
  EXPECT_EQ(Size::Percent(50).Of(8192), 4096u);
  EXPECT_EQ(Size::Percent(50).Of(8191), 0u);
  EXPECT_EQ(Size::Percent(100).Of(std::numeric_limits<uint64_t>::max()),
            std::numeric_limits<uint64_t>::max() / 4096 * 4096);
  EXPECT_EQ(Size::Bytes(5).Of(1), 5u);
}

}  // namespace
}  // namespace terrace
