// silu(gate) * up, where silu(x) = x / (1 + e^-x), two forms of it with a limit, and GELU.
#pragma once

#include "isa/simd.h"
#include "ops/ops.h"

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

// min(silu(gate), limit) * clip(up, ±limit); a NaN stays one.
inline void limited_mul_range(const float* gate, const float* up, int64_t count, float limit,
                              float* out) {
  const f32x16 zero = set1(0.0f), low = set1(-limit);
  auto least = [&](f32x16 x) { return zero - max(low, zero - x); };  // of x and the limit
  auto one = [&](f32x16 g, f32x16 u) {
    const f32x16 silu = zero_below(g / (set1(1.0f) + exp16(zero - g)), g, -88.0f);
    return least(silu) * max(low, least(u));
  };
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, one(load(gate + i), load(up + i)));
  const int rest = static_cast<int>(count - i);
  if (rest) store_n(out + i, one(load_n(gate + i, rest), load_n(up + i, rest)), rest);
}

// (clamp(up) + 1) * g * sigmoid(alpha * g), g = min(gate, limit); a NaN stays one.
inline void clamped_mul_range(const float* gate, const float* up, int64_t count, float alpha,
                              float limit, float* out) {
  const f32x16 zero = set1(0.0f), low = set1(-limit);
  auto least = [&](f32x16 x) { return zero - max(low, zero - x); };  // of x and the limit
  auto one = [&](f32x16 g, f32x16 u) {
    g = least(g);
    const f32x16 x = g * set1(alpha);
    const f32x16 share = zero_below(g / (set1(1.0f) + exp16(zero - x)), x, -88.0f);
    return (max(low, least(u)) + set1(1.0f)) * share;
  };
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, one(load(gate + i), load(up + i)));
  const int rest = static_cast<int>(count - i);
  if (rest) store_n(out + i, one(load_n(gate + i, rest), load_n(up + i, rest)), rest);
}

// GELU by its tanh (Hendrycks & Gimpel 2016): x / 2 (1 + tanh z) is x / (1 + e^-2z), where
// 2z = x sqrt(8 / pi) (1 + 0.044715 x^2).
inline void gelu_mul_range(const float* gate, const float* up, int64_t count, float* out) {
  auto one = [](f32x16 g, f32x16 u) {
    const f32x16 twice = g * fma(g * g, set1(0.0713548162726f), set1(1.5957691216057308f));
    return zero_below(g / (set1(1.0f) + exp16(set1(0.0f) - twice)), twice, -88.0f) * u;
  };
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, one(load(gate + i), load(up + i)));
  const int rest = static_cast<int>(count - i);
  if (rest) store_n(out + i, one(load_n(gate + i, rest), load_n(up + i, rest)), rest);
}

inline void activate(const GateActivation& how, const float* gate, const float* up, int64_t count,
                     float* out) {
  switch (how.kind) {
    case Gating::Silu:
      return silu_mul_range(gate, up, count, out);
    case Gating::Limited:
      return limited_mul_range(gate, up, count, how.limit, out);
    case Gating::Clamped:
      return clamped_mul_range(gate, up, count, how.alpha, how.limit, out);
    case Gating::Gelu:
      return gelu_mul_range(gate, up, count, out);
  }
}

}  // namespace dure::DURE_ISA
