#include "daemon/recompute_model.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "daemon/catalog.h"

namespace terrace {

namespace {

constexpr uint32_t kReportsNeeded = 8;
// Before so many, what is expected is no measure of what is told.
constexpr uint32_t kReportsTrusted = 32;
constexpr double kKept = 1 - 1.0 / 256;  // of the past, at each report
constexpr double kMostOff = 4;
// Of the diagonal: terms that reports cannot tell apart share the cost instead of cancelling out.
constexpr double kRidge = 1e-9;

// Solves a system of the terms in `set` by elimination; the others stay 0.
std::optional<std::array<double, 3>> SolveFor(uint32_t set, std::array<std::array<double, 3>, 3> a,
                                              std::array<double, 3> b) {
  for (int i = 0; i < 3; ++i) {
    a[i][i] *= 1 + kRidge;
    if ((set >> i & 1) != 0) continue;
    for (int j = 0; j < 3; ++j) a[i][j] = a[j][i] = 0;
    a[i][i] = 1;
    b[i] = 0;
  }
  for (int i = 0; i < 3; ++i) {  // positive definite: no pivoting
    if (!(a[i][i] > 0)) return std::nullopt;
    for (int row = i + 1; row < 3; ++row) {
      const double factor = a[row][i] / a[i][i];
      for (int j = i; j < 3; ++j) a[row][j] -= factor * a[i][j];
      b[row] -= factor * b[i];
    }
  }
  std::array<double, 3> x{};
  for (int i = 2; i >= 0; --i) {
    double sum = b[i];
    for (int j = i + 1; j < 3; ++j) sum -= a[i][j] * x[j];
    x[i] = sum / a[i][i];
    if (!std::isfinite(x[i]) || x[i] < 0) return std::nullopt;
  }
  return x;
}

}  // namespace

// Thousands and millions of tokens: the sums then are of like size.
RecomputeModel::Terms RecomputeModel::TermsOf(uint32_t position, uint32_t tokens) const {
  const double n = tokens;
  const double first = position == kUnknownPosition ? mean_position_ : position;
  return {n / 1e3, n * (first + n / 2) / 1e6, 1};
}

double RecomputeModel::Predict(const Terms& terms) const {
  double sum = 0;
  for (int i = 0; i < kTerms; ++i) sum += coefficients_[i] * terms[i];
  return sum;
}

void RecomputeModel::Observe(uint32_t position, uint32_t tokens, uint32_t cost_us) {
  if (cost_us == 0 || tokens == 0) return;
  if (position != kUnknownPosition) {
    const double share = 1.0 / std::min<uint32_t>(reports_ + 1, 256);
    mean_position_ += share * (position - mean_position_);
  }
  const Terms terms = TermsOf(position, tokens);
  double cost = cost_us;
  if (reports_ >= kReportsTrusted) {
    const double expected = Predict(terms);
    cost = std::clamp(cost, expected / kMostOff, expected * kMostOff);
  }
  // Of the cost a token: a large chunk says no more than a small one, and what was reported long
  // ago by a faster engine no more than what is reported now.
  const double weight = 1e6 / (static_cast<double>(tokens) * tokens);
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) {
      products_[i][j] = kKept * products_[i][j] + weight * terms[i] * terms[j];
    }
    cost_products_[i] = kKept * cost_products_[i] + weight * terms[i] * cost;
  }
  ++reports_;
  if (reports_ >= kReportsNeeded) Solve();
}

// Three terms: the best of all sets of them whose solution is nowhere negative is the best
// non-negative one.
void RecomputeModel::Solve() {
  double best = 0;
  std::optional<Terms> found;
  for (uint32_t set = 1; set < 8; ++set) {
    const auto x = SolveFor(set, products_, cost_products_);
    if (!x) continue;
    double loss = 0;  // less what does not depend on x
    for (int i = 0; i < kTerms; ++i) {
      for (int j = 0; j < kTerms; ++j) loss += (*x)[i] * (*x)[j] * products_[i][j];
      loss -= 2 * (*x)[i] * cost_products_[i];
    }
    if (found && loss >= best) continue;
    best = loss;
    found = x;
  }
  if (found) coefficients_ = *found;
}

uint32_t RecomputeModel::Estimate(uint32_t position, uint32_t tokens) const {
  if (reports_ < kReportsNeeded) return 0;
  return static_cast<uint32_t>(std::clamp(Predict(TermsOf(position, tokens)), 1.0, 4e9));
}

}  // namespace terrace
