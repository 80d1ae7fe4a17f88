#include "codec/inverse_transform.h"

#include <cmath>

#include "kernels/tile_math.h"

namespace terrace::codec {
namespace {

// Gauss-Jordan with partial pivoting on [n][2n], the right half of which becomes the inverse.
bool Invert(std::vector<double>& rows, size_t n) {
  for (size_t column = 0; column < n; ++column) {
    size_t pivot = column;
    for (size_t r = column + 1; r < n; ++r) {
      if (std::abs(rows[r * 2 * n + column]) > std::abs(rows[pivot * 2 * n + column])) pivot = r;
    }
    const double top = rows[pivot * 2 * n + column];
    if (top == 0 || !std::isfinite(top)) return false;
    for (size_t i = 0; i < 2 * n; ++i) {
      std::swap(rows[column * 2 * n + i], rows[pivot * 2 * n + i]);
      rows[column * 2 * n + i] = rows[column * 2 * n + i] / top;
    }
    for (size_t r = 0; r < n; ++r) {
      const double factor = rows[r * 2 * n + column];
      if (r == column || factor == 0) continue;
      for (size_t i = column; i < 2 * n; ++i) {
        rows[r * 2 * n + i] = rows[r * 2 * n + i] - factor * rows[column * 2 * n + i];
      }
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<std::vector<float>> InverseTransform(const SectionProfile& section) {
  const size_t n = section.block;
  std::vector<float> inverse(section.pairs.empty() ? 0 : section.channels * n);
  std::vector<double> rows(2 * n * n);
  for (size_t first = 0; first < section.channels && !inverse.empty(); first += n) {
    const int16_t* pairs = section.pairs.data() + kernels::PairedSize(first, n);
    std::fill(rows.begin(), rows.end(), 0.0);
    for (size_t j = 0; j < n; ++j) {
      for (size_t k = 0; k < n; ++k) {
        rows[j * 2 * n + k] = static_cast<double>(section.row_scale[first + j]) *
                              pairs[kernels::PairedIndex(n, k, j)];
      }
      rows[j * 2 * n + n + j] = 1;
    }
    if (!Invert(rows, n)) {
      return absl::FailedPreconditionError("profile: a transform has no inverse");
    }
    for (size_t j = 0; j < n; ++j) {
      for (size_t k = 0; k < n; ++k) {
        inverse[(first + j) * n + k] = static_cast<float>(rows[k * 2 * n + n + j]);
      }
    }
  }
  return inverse;
}

}  // namespace terrace::codec
