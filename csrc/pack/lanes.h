// Sixteen floats that are worked on at once, one of each of sixteen groups of weights: a group's
// sums run over its weights in order and come out the same on every instruction set.
#pragma once

#include "common.h"

namespace dure::DURE_ISA {
namespace {

constexpr int kLanes = 16;
#if defined(__AVX512F__)
constexpr int kWidth = 16;  // lanes in a register
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// Sixteen lanes in the compiler's own vectors: GCC takes one that is wider than a register apart,
// lane by lane.
template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(4 * kWidth)));
  static constexpr int kVectors = kLanes / kWidth;
  Vector v[kVectors] = {};

  Lanes() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): numbers stand beside lanes in sums and products
  Lanes(T x) {
    for (auto& part : v) part = Vector{} + x;
  }
  T operator[](int lane) const { return v[lane / kWidth][lane % kWidth]; }
  void set(int lane, T x) { v[lane / kWidth][lane % kWidth] = x; }
};
using floats = Lanes<float>;
using mask = Lanes<int32_t>;  // -1 where it holds

#define DURE_EACH(expr) \
  for (int i = 0; i < floats::kVectors; ++i) expr
#define DURE_ALWAYS __attribute__((always_inline)) inline
DURE_ALWAYS floats operator+(floats a, const floats& b) {
  DURE_EACH(a.v[i] += b.v[i]);
  return a;
}
DURE_ALWAYS floats operator-(floats a, const floats& b) {
  DURE_EACH(a.v[i] -= b.v[i]);
  return a;
}
DURE_ALWAYS floats operator*(floats a, const floats& b) {
  DURE_EACH(a.v[i] *= b.v[i]);
  return a;
}
DURE_ALWAYS floats operator/(floats a, const floats& b) {
  DURE_EACH(a.v[i] /= b.v[i]);
  return a;
}
DURE_ALWAYS void operator+=(floats& a, const floats& b) { DURE_EACH(a.v[i] += b.v[i]); }
DURE_ALWAYS mask operator>(const floats& a, const floats& b) {
  mask m;
  DURE_EACH(m.v[i] = a.v[i] > b.v[i]);
  return m;
}
DURE_ALWAYS mask operator!=(const floats& a, const floats& b) {
  mask m;
  DURE_EACH(m.v[i] = a.v[i] != b.v[i]);
  return m;
}
DURE_ALWAYS mask operator&(mask a, const mask& b) {
  DURE_EACH(a.v[i] &= b.v[i]);
  return a;
}
DURE_ALWAYS floats choose(const mask& m, const floats& yes, const floats& no) {
  floats r;
  DURE_EACH(r.v[i] = m.v[i] ? yes.v[i] : no.v[i]);
  return r;
}
DURE_ALWAYS floats larger(const floats& a, const floats& b) {
  return choose(a > b, a, b);
}  // b if a is NaN
DURE_ALWAYS floats magnitude(floats x) {
  DURE_EACH(x.v[i] = reinterpret_cast<floats::Vector>(reinterpret_cast<mask::Vector>(x.v[i]) &
                                                      0x7FFFFFFF));
  return x;
}
#undef DURE_EACH

// The nearest whole number between low and high, which are whole; low for NaN.
DURE_ALWAYS floats nearest(const floats& x, float low, float high) {
  const floats magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even
  const floats least = larger(x, low);
  return (choose(floats(high) > least, least, high) + magic) - magic;
}
}  // namespace
}  // namespace dure::DURE_ISA
