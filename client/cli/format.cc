#include "client/cli/format.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::cli {
namespace {

// Columns of a terminal that a UTF-8 cell takes: its code points (no wide characters are printed).
size_t DisplayWidth(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string HumanBytes(uint64_t bytes) {
  static constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 1023.95 would print as "1024.0": move on to the next unit before rounding does it.
  while (value >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string HumanCount(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (size_t at = text.size(); at > 3;) {
    at -= 3;
    text.insert(at, 1, ',');
  }
  return text;
}

std::string HumanDuration(uint64_t milliseconds) {
  const uint64_t seconds = milliseconds / 1000;
  if (milliseconds < 1000) return absl::StrCat(milliseconds, " ms");
  if (seconds < 60) return absl::StrCat(seconds, " s");
  if (seconds < 3600) return absl::StrFormat("%d m %02d s", seconds / 60, seconds % 60);
  if (seconds < 86400) return absl::StrFormat("%d h %02d m", seconds / 3600, seconds / 60 % 60);
  return absl::StrFormat("%d d %02d h", seconds / 86400, seconds / 3600 % 24);
}

std::string Percent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f%%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string Bar(uint64_t part, uint64_t whole, int width) {
  const double share =
      whole == 0 ? 0 : std::min(1.0, static_cast<double>(part) / static_cast<double>(whole));
  const auto filled = static_cast<size_t>(share * width + 0.5);
  return absl::StrCat("[", std::string(filled, '#'),
                      std::string(static_cast<size_t>(width) - filled, '.'), "]");
}

std::string CounterValue(std::string_view name, uint64_t value) {
  return name.ends_with("bytes") ? HumanBytes(value) : HumanCount(value);
}

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::AddRow(std::vector<std::string> cells) {
  assert(cells.size() == columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::Render(int indent) const {
  std::vector<size_t> widths;
  for (const Column& column : columns_) widths.push_back(DisplayWidth(column.title));
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::string out;
  const auto add_line = [&](auto&& cell_at) {
    std::string line(static_cast<size_t>(indent), ' ');
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string& cell = cell_at(i);
      const std::string padding(widths[i] - DisplayWidth(cell), ' ');
      const bool right = columns_[i].align == Align::kRight;
      absl::StrAppend(&line, i == 0 ? "" : "  ", right ? padding : "", cell, right ? "" : padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  };
  add_line([&](size_t i) -> const std::string& { return columns_[i].title; });
  for (const auto& row : rows_) add_line([&](size_t i) -> const std::string& { return row[i]; });
  return out;
}

std::vector<HitRate> HitRates(const StatusReply& status) {
  const auto counter = [&](std::string_view wanted) -> uint64_t {
    for (const auto& [name, value] : status.counters) {
      if (name == wanted) return value;
    }
    return 0;
  };
  const uint64_t host = counter("acquired_host");
  const uint64_t nvme = counter("acquired_nvme");
  const uint64_t hbm = counter("acquired_hbm");
  const uint64_t loads = hbm + host + nvme + counter("acquire_misses");
  std::vector<HitRate> rates = {{"lookup", counter("lookup_hits"), counter("lookup_keys")}};
  if (!status.tiers.empty() && status.tiers.front().name == "hbm") {
    rates.push_back({"load from hbm", hbm, loads});
  }
  rates.push_back({"load from host", host, loads});
  rates.push_back({"load from nvme", nvme, loads});
  return rates;
}

}  // namespace terrace::cli
