// The softmax over a long row of keys, in fixed spans of positions, for every operation that
// attends.
//
// The keys of a span are scored, then weighed against the span's own peak; the partial results of a
// row's spans are merged in order (the split of Flash-Decoding, Dao et al. 2023, with the merge of
// Milakov & Gimelshein 2018). Spans are cut by position and nothing else, so a row has the same
// bits whether its spans went through one thread or many. Scores are in units of ln 2: the caller
// scales its queries by log2(e), and 2^x takes fewer steps than e^x.
#pragma once

#include <algorithm>
#include <limits>

#include "isa/simd.h"

namespace dure::DURE_ISA {

constexpr int kSpan = 256;  // keys
// Floats between two rows of scores, so that they do not meet in one cache set.
constexpr int kScoreStride = kSpan + 16;
constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// What a row has gathered from one span, or from all so far: peak, total, then from kRecordHead on
// the sum of p * v.
constexpr int kRecordHead = 16;

// 2^x for x <= 0, to 0.7 ulp: a minimax polynomial of degree 6 on |r| <= 1/2, exactly 1 at 0. Below
// -126 it is 0.
inline f32x16 exp2_16(f32x16 x) {
  const f32x16 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  const float low = -126.0f;
  const f32x16 clamped = max(set1(low), x);  // the second operand if it is NaN
  const f32x16 shifted = clamped + magic;
  const f32x16 r = clamped - (shifted - magic);
  f32x16 p = set1(1.5345812426e-04f);
  p = fma(p, r, set1(1.3399930904e-03f));
  p = fma(p, r, set1(9.6184890717e-03f));
  p = fma(p, r, set1(5.5503286421e-02f));
  p = fma(p, r, set1(2.4022646248e-01f));
  p = fma(p, r, set1(6.9314718246e-01f));
  p = fma(p, r, set1(1.0f));
  return zero_below(scale_by_power(p, shifted), x, low);
}

// The largest lane, in a fixed order because a NaN's effect depends on it. (Unrolled by hand: GCC
// 12 makes a loop of it.)
inline float peak_of(f32x16 a) {
  float v[16];
  store(v, a);
  auto halve = [&](auto width) {
    for_range<0, width>([&](auto i) { v[i] = v[i] > v[i + width] ? v[i] : v[i + width]; });
  };
  halve(std::integral_constant<int, 8>{}), halve(std::integral_constant<int, 4>{});
  halve(std::integral_constant<int, 2>{}), halve(std::integral_constant<int, 1>{});
  return v[0];
}
inline float total_of(f32x16 a) {
  float v[16];
  store(v, a);
  auto halve = [&](auto width) { for_range<0, width>([&](auto i) { v[i] += v[i + width]; }); };
  halve(std::integral_constant<int, 8>{}), halve(std::integral_constant<int, 4>{});
  halve(std::integral_constant<int, 2>{}), halve(std::integral_constant<int, 1>{});
  return v[0];
}

// All keys at -inf (only a NaN or an infinite query can do that) must not make inf - inf of it.
inline f32x16 shift_of(float peak) { return set1(peak == kLowest ? 0.0f : peak); }

// Scores of the keys [lo, hi) -> weights relative to their peak; the rest of the vectors they touch
// becomes 0.
inline void span_softmax(float* scores, int lo, int hi, float* record) {
  const int from = lo / 16 * 16, to = (hi + 15) / 16 * 16;
  for (int t = from; t < lo; ++t) scores[t] = kLowest;
  for (int t = hi; t < to; ++t) scores[t] = kLowest;
  f32x16 most = set1(kLowest);
  for (int t = from; t < to; t += 16) most = max(most, load(scores + t));
  const float peak = peak_of(most);
  const f32x16 shift = shift_of(peak);
  f32x16 total = set1(0);
  for (int t = from; t < to; t += 16) {
    const f32x16 p = exp2_16(load(scores + t) - shift);
    store(scores + t, p);
    total = total + p;
  }
  record[0] = peak;
  record[1] = total_of(total);
}

// state becomes what it and the next span's `part` gathered together; `width` is a multiple of 16.
inline void merge_records(float* state, const float* part, int width) {
  const float peak = std::max(state[0], part[0]);
  const f32x16 shift = shift_of(peak);
  const f32x16 before = exp2_16(set1(state[0]) - shift), now = exp2_16(set1(part[0]) - shift);
  float totals[16];
  store(totals, fma(set1(part[1]), now, set1(state[1]) * before));
  state[0] = peak;
  state[1] = totals[0];
  for (int d = kRecordHead; d < kRecordHead + width; d += 16)
    store(state + d, fma(load(part + d), now, load(state + d) * before));
}

}  // namespace dure::DURE_ISA
