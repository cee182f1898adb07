// RMSNorm, rotary embedding and the gated activation: one pass over the rows each.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "activation.h"
#include "ops.h"

namespace dure::DURE_ISA {

// y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019); the mean's sum runs in sixteen lanes, then a fixed tree.
void rms_norm(const float* x, int64_t n, int64_t width, const float* weight, float eps, float* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * width > 65536)
  for (int64_t i = 0; i < n; ++i) {
    const float* row = x + i * width;
    float* y = out + i * width;
    f32x16 squares = set1(0);
    int64_t c = 0;
    for (; c + 16 <= width; c += 16) {
      const f32x16 v = load(row + c);
      squares = fma(v, v, squares);
    }
    const int rest = static_cast<int>(width - c);
    if (rest) {
      const f32x16 v = load_n(row + c, rest);
      squares = fma(v, v, squares);
    }
    const f32x16 scale = set1(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + eps));
    for (c = 0; c + 16 <= width; c += 16) store(y + c, load(row + c) * scale * load(weight + c));
    if (rest) store_n(y + c, load_n(row + c, rest) * scale * load_n(weight + c, rest), rest);
  }
}

// Rotates pairs (i, i + half) or (2i, 2i + 1) of the first 2 * half dimensions (Su et al. 2021).
void rope(float* x, int64_t n, int heads, int dim, const float* cos, const float* sin, int half, bool interleaved,
          int threads) {
  const int near = interleaved ? 2 : 1, far = interleaved ? 1 : half;
#pragma omp parallel for num_threads(threads) schedule(static) if (n * heads * dim > 65536)
  for (int64_t i = 0; i < n; ++i)
    for (int h = 0; h < heads; ++h) {
      float* v = x + (i * heads + h) * dim;
      for (int j = 0; j < half; ++j) {
        const float c = cos[i * half + j], s = sin[i * half + j];
        const float a = v[j * near], b = v[j * near + far];
        v[j * near] = a * c - b * s;
        v[j * near + far] = b * c + a * s;
      }
    }
}

void silu_mul(const float* gate, const float* up, int64_t count, float* out, int threads) {
  constexpr int64_t kPiece = 4096;  // floats: a multiple of 16, so that pieces change nothing
  const int64_t pieces = (count + kPiece - 1) / kPiece;
#pragma omp parallel for num_threads(threads) schedule(static) if (pieces > 8)
  for (int64_t i = 0; i < pieces; ++i)
    silu_mul_range(gate + i * kPiece, up + i * kPiece, std::min(kPiece, count - i * kPiece), out + i * kPiece);
}

}  // namespace dure::DURE_ISA
