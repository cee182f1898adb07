// The instruction set this translation unit is compiled for (DURE_ISA, DURE_ISA_HEADER), and what
// is built on it alike.
#pragma once

#include <type_traits>
#include <utility>

namespace dure {
// Calls f(integral_constant<int, First>) … f(integral_constant<int, Last - 1>): a loop whose index
// is a constant.
template <int First, int Last, class F>
__attribute__((always_inline)) inline void for_range(F&& f) {
  if constexpr (First < Last) {
    f(std::integral_constant<int, First>{});
    for_range<First + 1, Last>(f);
  }
}
}  // namespace dure

#include DURE_ISA_HEADER

#include "isa/contract.h"

namespace dure::DURE_ISA {

// Adds the sixteen lanes in one fixed order, the same on every instruction set.
inline float sum_lanes(f32x16 a) {
  float v[16];
  store(v, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}
inline float max_lanes(f32x16 a) {
  float v[16];
  store(v, a);
  float m = v[0];
  for (int i = 1; i < 16; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// e^x to 2 ulp: x = n ln 2 + r, a degree-6 polynomial in r (minimax on |r| <= ln2 / 2, Cephes'
// expf), times 2^n. Below -87.33 the result would be subnormal: it is 0. Above 88.37 it saturates
// near 2.4e38.
inline f32x16 exp16(f32x16 x) {
  const f32x16 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  const float low = -87.33654f;
  // max returns its second operand when either is NaN, so a NaN goes through.
  const f32x16 clamped = set1(0) - max(set1(-88.37626f), set1(0) - max(set1(low), x));
  const f32x16 shifted = clamped * set1(1.44269504f) + magic;
  const f32x16 n = shifted - magic;
  f32x16 r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.0f));
  return zero_below(scale_by_power(p, shifted), x, low);
}

}  // namespace dure::DURE_ISA
