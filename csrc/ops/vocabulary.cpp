// What sampling does with every logit of a vocabulary: maxima and exponentials, one pass each.
#include <algorithm>
#include <limits>

#include "isa/simd.h"
#include "ops/ops.h"

namespace dure::DURE_ISA {

// The highest of every kPeakChunk logits; true if one of all is a NaN or infinitely high.
bool chunk_peaks(const float* x, int64_t n, float* peaks) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  f32x16 broken = set1(0);
  bool broken_rest = false;
  for (int64_t first = 0; first < n; first += kPeakChunk) {
    const int64_t end = std::min(first + kPeakChunk, n);
    f32x16 high = set1(-kInfinity);
    int64_t i = first;
    for (; i + 16 <= end; i += 16) {
      const f32x16 v = load(x + i);
      high = max(v, high);
      broken = max(broken, zero_below(set1(1), v, kInfinity));
    }
    float peak = max_lanes(high);
    for (; i < end; ++i) peak = std::max(peak, x[i]), broken_rest |= !(x[i] < kInfinity);
    *peaks++ = peak;
  }
  return broken_rest || max_lanes(broken) > 0;
}

// e^(scale * (x - peak)) for x <= peak; out may be x.
void exp_below(const float* x, int64_t n, float peak, float scale, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const int count = static_cast<int>(std::min<int64_t>(16, n - i));
    store_n(out + i, exp16((load_n(x + i, count) - set1(peak)) * set1(scale)), count);
  }
}

// Their sum, in sixteen lanes of double and then from the first lane to the last.
double exp_sum(const float* x, int64_t n, float peak, float scale) {
  double lanes[16] = {};
  float weights[16] = {};
  auto add = [&](int count) {
    for (int lane = 0; lane < count; ++lane) lanes[lane] += static_cast<double>(weights[lane]);
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    store(weights, exp16((load(x + i) - set1(peak)) * set1(scale)));
    add(16);
  }
  exp_below(x + i, n - i, peak, scale, weights);
  add(static_cast<int>(n - i));
  double total = 0;
  for (const double lane : lanes) total += lane;
  return total;
}

}  // namespace dure::DURE_ISA
