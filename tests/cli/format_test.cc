#include "client/cli/format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace terrace::cli {
namespace {

TEST(HumanBytes, ChangesUnitBeforeRoundingOverflows) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(uint64_t{3} << 30), "3.0 GiB");
  EXPECT_EQ(HumanBytes(std::numeric_limits<uint64_t>::max()), "16.0 EiB");
}

TEST(HumanCount, GroupsThousands) {
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(1000), "1,000");
  EXPECT_EQ(HumanCount(1234567), "1,234,567");
  EXPECT_EQ(HumanCount(std::numeric_limits<uint64_t>::max()), "18,446,744,073,709,551,615");
}

TEST(HumanDuration, TwoUnits) {
  EXPECT_EQ(HumanDuration(999), "999 ms");
  EXPECT_EQ(HumanDuration(1000), "1 s");
  EXPECT_EQ(HumanDuration(59999), "59 s");
  EXPECT_EQ(HumanDuration(61000), "1 m 01 s");
  EXPECT_EQ(HumanDuration(3 * 3600'000 + 4 * 60'000), "3 h 04 m");
  EXPECT_EQ(HumanDuration(50 * uint64_t{3600'000}), "2 d 02 h");
}

TEST(Percent, OfNothingIsADash) {
  EXPECT_EQ(Percent(0, 0), "-");
  EXPECT_EQ(Percent(1, 3), "33.3%");
  EXPECT_EQ(Percent(3, 3), "100.0%");
}

TEST(Bar, StaysInItsWidth) {
  EXPECT_EQ(Bar(0, 0, 4), "[....]");
  EXPECT_EQ(Bar(1, 2, 4), "[##..]");
  EXPECT_EQ(Bar(9, 2, 4), "[####]");
}

TEST(CounterValue, UnitComesFromTheName) {
  EXPECT_EQ(CounterValue("promoted_bytes", 2048), "2.0 KiB");
  EXPECT_EQ(CounterValue("lookup_calls", 2048), "2,048");
}

TEST(Table, AlignsByCodePointsAndCutsTrailingBlanks) {
  Table table({{"NAME"}, {"N", Table::Align::kRight}, {"NOTE"}});
  table.AddRow({"é", "7", ""});
  table.AddRow({"long", "1,000", "x"});
  EXPECT_EQ(table.Render(),
            "NAME      N  NOTE\n"
            "é         7\n"
            "long  1,000  x\n");
  EXPECT_EQ(table.Render(2).substr(0, 6), "  NAME");
}

TEST(HitRates, ShareTheAcquireTotal) {
  StatusReply status;
  status.counters = {{"lookup_keys", 10},
                     {"lookup_hits", 4},
                     {"acquired_host", 3},
                     {"acquired_nvme", 2},
                     {"acquire_misses", 1}};
  const auto rates = HitRates(status);
  ASSERT_EQ(rates.size(), 3u);
  EXPECT_EQ(rates[0].hits, 4u);
  EXPECT_EQ(rates[0].asked, 10u);
  EXPECT_EQ(rates[1].hits, 3u);
  EXPECT_EQ(rates[2].hits, 2u);
  EXPECT_EQ(rates[1].asked, 6u);
  EXPECT_EQ(rates[2].asked, 6u);
}

}  // namespace
}  // namespace terrace::cli
