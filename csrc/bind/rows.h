// Rows that products take, as Python holds them: quantised or normed once for all that ask.
#pragma once

#include <nanobind/stl/optional.h>

#include <cstring>
#include <vector>

#include "bind/matrix.h"

namespace dure {

// Rows, or rows that RMSNorm is still to be applied to; as floats, int8 tiles or both, each made
// when first asked for.
struct Activations {
  In<float, 2> x;
  std::optional<In<float, 1>> weight;  // of the norm, if there is one
  float eps = 0;
  PooledBuffer<float> normed;
  ActTiles tiles;
  bool has_floats = true, has_tiles = false;

  explicit Activations(In<float, 2> rows) : x(std::move(rows)) {}
  Activations(In<float, 2> rows, In<float, 1> norm, float norm_eps)
      : x(std::move(rows)), weight(norm), eps(norm_eps), has_floats(false) {
    require(norm.shape(0) == x.shape(1), "the weight must have one entry a column");
  }
  int64_t rows() const { return static_cast<int64_t>(x.shape(0)); }
  int64_t cols() const { return static_cast<int64_t>(x.shape(1)); }

  Activations take(const In<int32_t, 1>& chosen) const {
    auto some = fresh<float, In<float, 2>>({chosen.shape(0), x.shape(1)});
    auto* to = const_cast<float*>(some.data());  // ours to fill
    for (size_t i = 0; i < chosen.shape(0); ++i) {
      const int32_t row = chosen.data()[i];
      require(row >= 0 && row < rows(),
              "row " + std::to_string(row) + " is not one of " + std::to_string(rows()));
      std::memcpy(to + i * x.shape(1), x.data() + row * cols(), x.shape(1) * sizeof(float));
    }
    return weight ? Activations(some, *weight, eps) : Activations(some);
  }
  const float* as_floats(int threads) {
    if (!weight) return x.data();
    if (!has_floats) {
      normed = PooledBuffer<float>(x.size());
      ops().rms_norm(x.data(), rows(), cols(), weight->data(), eps, normed.data(), threads);
      has_floats = true;
    }
    return normed.data();
  }
  const ActTiles& as_tiles(int threads) {
    if (!has_tiles) {
      if (weight && !has_floats) {
        ops().norm_tiles(x.data(), rows(), cols(), weight->data(), eps, tiles, threads);
      } else {
        ops().make_tiles(as_floats(threads), rows(), cols(), cols(), tiles, threads);
      }
      has_tiles = true;
    }
    return tiles;
  }
};

using Vector = std::optional<In<float, 1>>;
using Rows = std::optional<In<float, 2>>;
using Floats = In<float, 2>;

inline const float* addend(const Rows& add, size_t rows, size_t cols) {
  require(!add || (add->shape(0) == rows && add->shape(1) == cols),
          "what is added must have the shape of the result");
  return add ? add->data() : nullptr;
}

inline void check_product(const Matrix& matrix, const Vector& bias, int64_t cols) {
  const Packed& w = matrix.view;
  require(cols == w.cols,
          "x has " + std::to_string(cols) + " columns, the matrix " + std::to_string(w.cols));
  require(!bias || static_cast<int64_t>(bias->shape(0)) == w.rows,
          "the bias must have one entry a row");
}

// The rows times each of the products' matrices, the quantised ones in one hand-out of work.
inline void multiply(Activations& a, const std::vector<Product>& products, bool exact,
                     int threads) {
  if (a.rows() == 0) return;
  std::vector<Product> integers;
  for (const Product& product : products) {
    if (product.squares) {
      const float* x = a.as_floats(threads);
      add_squares(a.rows(), a.cols(), threads, product.squares,
                  [&](int64_t row) { return x + row * a.cols(); });
      product.squares[a.cols()] += static_cast<double>(a.rows());
    }
    if (exact || is_float(product.w.type)) {
      ops().matmul_float(a.as_floats(threads), a.rows(), a.cols(), product, threads);
    } else {
      integers.push_back(product);
    }
  }
  if (!integers.empty())
    ops().matmul_int8(a.as_tiles(threads), integers.data(), static_cast<int>(integers.size()),
                      threads);
}

}  // namespace dure
