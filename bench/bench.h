// What a suite of terrace-bench is: a name and a function that returns rows. A row compares one
// figure of ours with a reference measured in the same run, alternated (DESIGN section 10).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace terrace::bench {

struct Row {
  std::string name;
  std::string unit;  // of value and reference_value
  double value = 0;  // median over the pairs
  std::string reference_name;
  double reference_value = 0;
  double ratio_median = 0;  // ours / reference, as the bar states it
  double ratio_min = 0;
  double ratio_max = 0;
  uint64_t pairs = 0;
  std::string note;  // what a reader must know to judge the figure; may be empty
};

struct Context {
  std::string binary_dir;   // where terrace-bench lies, and terraced next to it
  std::string scratch_dir;  // removed at the end; on a real file system, not tmpfs
};

struct Suite {
  const char* name;
  const char* what;
  absl::StatusOr<std::vector<Row>> (*run)(const Context& context);
};

absl::StatusOr<std::vector<Row>> RunCodec(const Context& context);
absl::StatusOr<std::vector<Row>> RunLinks(const Context& context);
absl::StatusOr<std::vector<Row>> RunRpc(const Context& context);
absl::StatusOr<std::vector<Row>> RunStore(const Context& context);
absl::StatusOr<std::vector<Row>> RunLoad(const Context& context);
absl::StatusOr<std::vector<Row>> RunFootprint(const Context& context);
absl::StatusOr<std::vector<Row>> RunTtft(const Context& context);
absl::StatusOr<std::vector<Row>> RunNvme(const Context& context);
absl::StatusOr<std::vector<Row>> RunRestart(const Context& context);
absl::StatusOr<std::vector<Row>> RunEndurance(const Context& context);
absl::StatusOr<std::vector<Row>> RunHints(const Context& context);
absl::StatusOr<std::vector<Row>> RunVictim(const Context& context);
absl::StatusOr<std::vector<Row>> RunReplay(const Context& context);
absl::StatusOr<std::vector<Row>> RunResize(const Context& context);
absl::StatusOr<std::vector<Row>> RunMrc(const Context& context);
absl::StatusOr<std::vector<Row>> RunPolicy(const Context& context);

// One measured pair, in the row's unit.
struct Pair {
  double ours = 0;
  double reference = 0;
};
// Medians and the range of ours / reference. Requires pairs not empty and references not zero.
Row MakeRow(std::string name, std::string unit, std::string reference_name,
            const std::vector<Pair>& pairs);
// The value below which `percent` of `samples` lie (nearest rank). Reorders `samples`.
double Percentile(std::vector<double>& samples, double percent);
inline double Percentile(std::vector<double>&& samples, double percent) {
  return Percentile(samples, percent);
}

double NowSeconds();  // CLOCK_MONOTONIC

// A line on stderr: how far a suite is that takes long.
void Progress(const std::string& line);

}  // namespace terrace::bench
