// How the command line shows numbers and tables to people. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "transport/messages.h"

namespace terrace::cli {

std::string HumanBytes(uint64_t bytes);              // "0 B", "4.0 KiB", "1.5 GiB"
std::string HumanCount(uint64_t count);              // "1,234,567"
std::string HumanDuration(uint64_t milliseconds);    // "850 ms", "12 s", "3 h 04 m", "2 d 05 h"
std::string Percent(uint64_t part, uint64_t whole);  // "43.2%"; "-" when whole is 0
// "[######....]" with `width` cells.
std::string Bar(uint64_t part, uint64_t whole, int width);
// A counter's value in the unit its name ends in: bytes as HumanBytes, the rest as HumanCount.
std::string CounterValue(std::string_view name, uint64_t value);

// Columns as wide as their widest cell, two spaces between; trailing blanks are cut.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };
  explicit Table(std::vector<Column> columns);
  void AddRow(std::vector<std::string> cells);  // as many as there are columns
  bool empty() const { return rows_.empty(); }
  // Every line ends in '\n' and starts with `indent` spaces.
  std::string Render(int indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// How often an answer was found, from the daemon's counters (daemon/metrics.h).
struct HitRate {
  std::string name;
  uint64_t hits = 0;
  uint64_t asked = 0;
};
// Always the same names in the same order.
std::vector<HitRate> HitRates(const StatusReply& status);

}  // namespace terrace::cli
