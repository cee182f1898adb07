// RMSNorm, rotary embedding and the gated activation: one pass over the rows each.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "ops/activation.h"
#include "ops/tiles.h"

namespace dure::DURE_ISA {

namespace {

// One row of rms_norm; y may be x itself. The mean's sum runs in sixteen lanes, then a fixed tree.
void norm_row(const float* x, int64_t width, const float* weight, float eps, float* y) {
  f32x16 squares = set1(0);
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) {
    const f32x16 v = load(x + c);
    squares = fma(v, v, squares);
  }
  const int rest = static_cast<int>(width - c);
  if (rest) {
    const f32x16 v = load_n(x + c, rest);
    squares = fma(v, v, squares);
  }
  const f32x16 scale = set1(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + eps));
  for (c = 0; c + 16 <= width; c += 16) store(y + c, load(x + c) * scale * load(weight + c));
  if (rest) store_n(y + c, load_n(x + c, rest) * scale * load_n(weight + c, rest), rest);
}

// Pairs (i, i + half): both halves are runs of lanes.
void rotate_halves(float* v, const float* cos, const float* sin, int half) {
  int j = 0;
  for (; j + 16 <= half; j += 16) {
    const f32x16 a = load(v + j), b = load(v + half + j), c = load(cos + j), s = load(sin + j);
    store(v + j, a * c - b * s);
    store(v + half + j, b * c + a * s);
  }
  if (const int n = half - j; n) {
    const f32x16 a = load_n(v + j, n), b = load_n(v + half + j, n), c = load_n(cos + j, n),
                 s = load_n(sin + j, n);
    store_n(v + j, a * c - b * s, n);
    store_n(v + half + j, b * c + a * s, n);
  }
}

// Pairs (2i, 2i + 1). The compiler makes vectors of it only when told that nothing overlaps.
void rotate_neighbours(float* __restrict v, const float* __restrict cos,
                       const float* __restrict sin, int half) {
  for (int j = 0; j < half; ++j) {
    const float a = v[2 * j], b = v[2 * j + 1];
    v[2 * j] = a * cos[j] - b * sin[j];
    v[2 * j + 1] = b * cos[j] + a * sin[j];
  }
}

}  // namespace

// y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019).
void rms_norm(const float* x, int64_t n, int64_t width, const float* weight, float eps, float* out,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * width > 65536)
  for (int64_t i = 0; i < n; ++i) norm_row(x + i * width, width, weight, eps, out + i * width);
}

// The same, straight to int8: the normed floats of a row live in the first cache and nowhere else.
void norm_tiles(const float* x, int64_t n, int64_t width, const float* weight, float eps,
                ActTiles& tiles, int threads) {
  shape_tiles(tiles, n, width);
#pragma omp parallel num_threads(threads) if (n > 4)
  {
    PooledBuffer<float> row(static_cast<size_t>(width));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      norm_row(x + i * width, width, weight, eps, row.data());
      quantize_row_into(row.data(), tiles, static_cast<int>(i));
    }
  }
}

// Rotates pairs (i, i + half) or (2i, 2i + 1) of the first 2 * half dimensions (Su et al. 2021).
void rope(float* x, int64_t n, int heads, int dim, const float* cos, const float* sin, int half,
          bool interleaved, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * heads * dim > 65536)
  for (int64_t i = 0; i < n; ++i)
    for (int h = 0; h < heads; ++h) {
      float* v = x + (i * heads + h) * dim;
      if (interleaved) {
        rotate_neighbours(v, cos + i * half, sin + i * half, half);
      } else {
        rotate_halves(v, cos + i * half, sin + i * half, half);
      }
    }
}

void silu_mul(const float* gate, const float* up, int64_t count, float* out, int threads) {
  constexpr int64_t kPiece = 4096;  // floats: a multiple of 16, so that pieces change nothing
  const int64_t pieces = (count + kPiece - 1) / kPiece;
#pragma omp parallel for num_threads(threads) schedule(static) if (pieces > 8)
  for (int64_t i = 0; i < pieces; ++i)
    silu_mul_range(gate + i * kPiece, up + i * kPiece, std::min(kPiece, count - i * kPiece),
                   out + i * kPiece);
}

}  // namespace dure::DURE_ISA
