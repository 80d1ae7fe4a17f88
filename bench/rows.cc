#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

#include "bench/bench.h"

namespace terrace::bench {

double Percentile(std::vector<double>& samples, double percent) {
  assert(!samples.empty());
  const auto count = static_cast<double>(samples.size());
  const auto rank = static_cast<size_t>(std::max(1.0, std::ceil(percent / 100 * count)));
  const auto at = samples.begin() + static_cast<ptrdiff_t>(rank - 1);
  std::nth_element(samples.begin(), at, samples.end());
  return *at;
}

Row MakeRow(std::string name, std::string unit, std::string reference_name,
            const std::vector<Pair>& pairs) {
  std::vector<double> ours, references, ratios;
  for (const Pair& pair : pairs) {
    ours.push_back(pair.ours);
    references.push_back(pair.reference);
    ratios.push_back(pair.ours / pair.reference);
  }
  Row row;
  row.name = std::move(name);
  row.unit = std::move(unit);
  row.reference_name = std::move(reference_name);
  row.value = Percentile(ours, 50);
  row.reference_value = Percentile(references, 50);
  row.ratio_median = Percentile(ratios, 50);
  row.ratio_min = *std::min_element(ratios.begin(), ratios.end());
  row.ratio_max = *std::max_element(ratios.begin(), ratios.end());
  row.pairs = pairs.size();
  return row;
}

double NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Progress(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

}  // namespace terrace::bench
