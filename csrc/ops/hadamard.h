// Keys that are kept in 8 bits are turned first, so that a column which is much larger than the
// others (models with a key bias have some) does not take all the steps of its scale: a Hadamard
// matrix spreads it over all columns. Turned queries meet turned keys in the same products (QuaRot,
// Ashkboos et al. 2024).
#pragma once

#include <algorithm>

namespace dure {

// Columns that are turned together: the largest power of two that divides the head, up to 128.
inline int turned_columns(int dim) { return std::min(dim & -dim, 128); }

// x (dim) times the Hadamard matrix, unscaled: dot products grow by a factor of turned_columns.
inline void turn(float* x, int dim) {
  const int n = turned_columns(dim);
  for (int half = 1; half < n; half *= 2)
    for (int base = 0; base < dim; base += 2 * half)
      for (int i = base; i < base + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
}

}  // namespace dure
