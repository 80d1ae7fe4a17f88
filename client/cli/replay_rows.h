// What `terrace replay` prints: its results as JSON, as a table for people, and as a plot. Pure but
// for the plot, which runs Python. One thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace terrace::cli {

struct Rates {
  double objects = 0;  // hits / accesses
  double size = 0;     // the same in tokens; of experts, equal to the other
};

// One policy at one size.
struct ReplayRow {
  std::string policy;
  uint64_t capacity = 0;
  uint64_t requests = 0, accesses = 0, hits = 0;
  uint64_t tokens = 0, token_hits = 0;
  uint64_t evictions = 0, bypassed = 0;
  double seconds = 0;
  std::optional<Rates> lru, min;  // at this size, when they were replayed, too

  Rates rates() const;
};

struct ReplayTable {
  std::string trace, format, semantics;
  bool in_tokens = false;   // the capacities; rates of tokens are then what counts
  bool has_tokens = false;  // the trace
  uint32_t window = 0;
  std::vector<ReplayRow> rows;  // every policy at the first size, then at the next
};

// The hit rate by what the capacity counts.
double MainRate(const ReplayTable& table, const Rates& rates);
// (rate - LRU's) / (MIN's - LRU's); nothing where either is unknown or MIN is no better than LRU.
std::optional<double> GapClosed(const ReplayTable& table, const ReplayRow& row);

// One object for one row; otherwise {"trace", ..., "rows": [one object each]}.
std::string ReplayJson(const ReplayTable& table);
// Policies down, sizes across; for one size, more about each policy.
std::string ReplayText(const ReplayTable& table);

// Writes a PNG. False after a message on stderr.
bool PlotReplay(const ReplayTable& table, const std::string& path);

}  // namespace terrace::cli
