// What it costs an engine to make an extent again, learned per layout from the costs that engines
// report with their stores: cost = per_token * n + attention * n * context + fixed, where `context`
// is the mean number of tokens that each of the n new ones attends to. Least squares of the
// error a token, online, with non-negative coefficients and exponential forgetting (a window of
// some 256 reports). Loop thread; no allocation.
//
// An engine's hiccup must not move it, a new GPU must: a report counts for at most four times as
// much, and no less than a quarter, of what was expected.
#pragma once

#include <array>
#include <cstdint>

namespace terrace {

class RecomputeModel {
 public:
  // Ignored when `cost_us` or `tokens` is 0. `position`: of the first token, or kUnknownPosition
  // (daemon/catalog.h), then taken to be the usual one.
  void Observe(uint32_t position, uint32_t tokens, uint32_t cost_us);
  // Microseconds, at least 1; 0 while too few reports came.
  uint32_t Estimate(uint32_t position, uint32_t tokens) const;

 private:
  static constexpr int kTerms = 3;
  using Terms = std::array<double, kTerms>;
  Terms TermsOf(uint32_t position, uint32_t tokens) const;
  double Predict(const Terms& terms) const;
  void Solve();

  // Sums of products of the terms with each other and with the cost, faded.
  std::array<Terms, kTerms> products_{};
  Terms cost_products_{};
  Terms coefficients_{};
  uint32_t reports_ = 0;
  double mean_position_ = 0;
};

}  // namespace terrace
