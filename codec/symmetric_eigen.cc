#include "codec/symmetric_eigen.h"

#include <cmath>

namespace terrace::codec {
namespace {

constexpr int kMostSweeps = 30;

// Rows p and q of [n][n] become (c p - s q, s p + c q).
void RotateRows(double* rows, size_t n, size_t p, size_t q, double c, double s) {
  double* a = rows + p * n;
  double* b = rows + q * n;
  for (size_t i = 0; i < n; ++i) {
    const double x = a[i], y = b[i];
    a[i] = c * x - s * y;
    b[i] = s * x + c * y;
  }
}

// Makes m[p][q] zero.
void Annihilate(std::vector<double>& m, std::vector<double>& vectors, size_t n, size_t p,
                size_t q) {
  const double theta = (m[q * n + q] - m[p * n + p]) / (2 * m[p * n + q]);
  const double t = (theta < 0 ? -1 : 1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
  const double c = 1 / std::sqrt(t * t + 1), s = t * c;
  RotateRows(m.data(), n, p, q, c, s);
  for (size_t i = 0; i < n; ++i) {  // and columns
    const double x = m[i * n + p], y = m[i * n + q];
    m[i * n + p] = c * x - s * y;
    m[i * n + q] = s * x + c * y;
  }
  RotateRows(vectors.data(), n, p, q, c, s);
}

}  // namespace

SymmetricEigen DecomposeSymmetric(std::span<const double> matrix, size_t n) {
  std::vector<double> m(matrix.begin(), matrix.end()), vectors(n * n);
  double all = 0;
  for (size_t i = 0; i < n; ++i) vectors[i * n + i] = 1;
  for (double x : m) all += x * x;
  // Below this, all that is left beside the diagonal is 1e-9 of the whole.
  const double small = 1e-9 * std::sqrt(all) / static_cast<double>(n);
  bool turned = true;
  for (int sweep = 0; turned && sweep < kMostSweeps; ++sweep) {
    turned = false;
    for (size_t p = 0; p + 1 < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        if (!(std::abs(m[p * n + q]) > small)) continue;
        Annihilate(m, vectors, n, p, q);
        turned = true;
      }
    }
  }
  SymmetricEigen eigen{std::vector<double>(n), std::move(vectors)};
  for (size_t i = 0; i < n; ++i) eigen.values[i] = m[i * n + i];
  return eigen;
}

}  // namespace terrace::codec
