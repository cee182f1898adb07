// silu(gate) * up, where silu(x) = x / (1 + e^-x).
#pragma once

#include "isa/simd.h"

namespace dure::DURE_ISA {

inline void silu_mul_range(const float* gate, const float* up, int64_t count, float* out) {
  // Below -88 the true value is under 1e-36: zero, and not what a saturated exponential would make
  // of -1e38.
  auto one = [](f32x16 g, f32x16 u) {
    return zero_below(g / (set1(1.0f) + exp16(set1(0.0f) - g)), g, -88.0f) * u;
  };
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, one(load(gate + i), load(up + i)));
  const int rest = static_cast<int>(count - i);
  if (rest) store_n(out + i, one(load_n(gate + i, rest), load_n(up + i, rest)), rest);
}

}  // namespace dure::DURE_ISA
