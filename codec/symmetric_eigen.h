// Eigenvectors of a symmetric matrix by Jacobi's rotations (Golub and Van Loan, Matrix
// Computations, 8.5): of sums, products, quotients and square roots alone, so the same on every
// machine. Any thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace terrace::codec {

struct SymmetricEigen {
  std::vector<double> values;   // [n], in no order
  std::vector<double> vectors;  // [n][n]: row k belongs to value k; of unit length
};

// matrix: [n][n], symmetric, finite. About 10 n^3 multiplications and additions a sweep, a few
// sweeps.
SymmetricEigen DecomposeSymmetric(std::span<const double> matrix, size_t n);

}  // namespace terrace::codec
