#include <gtest/gtest.h>

#include "bench/bench.h"
#include "bench/read_rows.h"
#include "bench/report.h"

namespace terrace::bench {
namespace {

TEST(Percentile, IsTheNearestRank) {
  std::vector<double> samples = {5, 1, 4, 2, 3};
  EXPECT_EQ(Percentile(samples, 50), 3);
  EXPECT_EQ(Percentile(samples, 99), 5);
  EXPECT_EQ(Percentile(samples, 1), 1);
  std::vector<double> one = {7};
  EXPECT_EQ(Percentile(one, 50), 7);
}

TEST(MakeRow, TakesTheMedianOfRatiosNotTheRatioOfMedians) {
  const Row row = MakeRow("n", "us", "r", {{10, 1}, {2, 2}, {9, 3}});
  EXPECT_EQ(row.value, 9);
  EXPECT_EQ(row.reference_value, 2);
  EXPECT_EQ(row.ratio_median, 3);
  EXPECT_EQ(row.ratio_min, 1);
  EXPECT_EQ(row.ratio_max, 10);
  EXPECT_EQ(row.pairs, 3u);
}

TEST(ReadRows, ReadsBackWhatRenderJsonWrites) {
  Row row = MakeRow("lookup", "us", "a \"quoted\" \\ name", {{1.5, 0.1}, {3, 0.25}, {1e-7, 4e9}});
  row.note = "noted";
  const auto rows = ReadRows(RenderJson("all", {2, 1 << 30, "avx2", "disk"}, {row, row}));
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  const Row& read = rows->back();
  EXPECT_EQ(read.name, row.name);
  EXPECT_EQ(read.unit, row.unit);
  EXPECT_EQ(read.reference_name, row.reference_name);
  EXPECT_EQ(read.value, row.value);
  EXPECT_EQ(read.reference_value, row.reference_value);
  EXPECT_EQ(read.ratio_median, row.ratio_median);
  EXPECT_EQ(read.ratio_min, row.ratio_min);
  EXPECT_EQ(read.ratio_max, row.ratio_max);
  EXPECT_EQ(read.pairs, 3u);
  EXPECT_EQ(read.note, "noted");
}

TEST(ReadRows, RefusesWhatIsNotRows) {
  for (const char* text : {"", "{}", "{\"rows\": 3}", "{\"rows\": [", "{\"rows\": [{}]}",
                           "{\"rows\": [{\"name\": \"x\"}]}", "{\"rows\": [{\"name\": \"x",
                           "{\"rows\": [{\"name\": [1]}]}", "{\"rows\": [{\"value\": 1e}]}"}) {
    EXPECT_FALSE(ReadRows(text).ok()) << text;
  }
  EXPECT_TRUE(ReadRows("{\"rows\": []}")->empty());
}

TEST(ReadRows, SaysWhichFigureOfWhichRowIsMissing) {
  std::string text =
      RenderJson("all", {2, 1 << 30, "avx2", "disk"},
                 {MakeRow("first", "us", "r", {{1, 2}}), MakeRow("second", "us", "r", {{1, 2}})});
  text.replace(text.rfind("ratio_min"), 5, "other");
  const std::string message(ReadRows(text).status().message());
  EXPECT_NE(message.find("row 1 (second)"), std::string::npos) << message;
  EXPECT_NE(message.find("ratio_min"), std::string::npos) << message;
}

TEST(Report, TableHasARowAFigureAndItsNote) {
  Row row = MakeRow("bytes_per_object", "B", "the bar", {{200, 256}});
  row.note = "few objects";
  const std::string table = RenderTable("footprint", {row});
  EXPECT_NE(table.find("bytes_per_object"), std::string::npos);
  EXPECT_NE(table.find("0.78x"), std::string::npos);
  EXPECT_NE(table.find("few objects"), std::string::npos);
}

TEST(Machine, IsDescribed) {
  const Machine machine = DescribeMachine("/");
  EXPECT_GT(machine.cores, 0u);
  EXPECT_GT(machine.memory_bytes, 0u);
  EXPECT_FALSE(machine.disk.empty());
}

}  // namespace
}  // namespace terrace::bench
