// Integer dot products of ARMv8.2: four products of a signed code and an activation added to an
// int32 lane at once.
#pragma once

namespace dure::DURE_ISA {

// sums[t] = start(t) + sum over groups First..Last-1 of code * activation, for 16 rows.
// codes(g): four registers of signed codes.
template <int T, int First, int Last, class C, class S>
__attribute__((always_inline)) inline void dot_signed(C&& codes, const int8_t* a, S&& start,
                                                      i32x16* sums) {
  int32x4_t s[T][4];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) s[t][0] = s[t][1] = s[t][2] = s[t][3] = start(t);
  for_range<First / 4, Last / 4>([&](auto four) __attribute__((always_inline)) {
    int8x16_t x[T];  // of four groups
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) x[t] = vld1q_s8(a + t * kBlock + 16 * four);
    for_range<0, 4>([&](auto lane) __attribute__((always_inline)) {
      constexpr int kLane = lane;
      const u8x64 w = codes(std::integral_constant<int, 4 * four + lane>{});
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          s[t][q] = vdotq_laneq_s32(s[t][q], vreinterpretq_s8_u8(w.v[q]), x[t], kLane);
          pin(s[t][q]);
        }
    });
  });
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sums[t] = {{s[t][0], s[t][1], s[t][2], s[t][3]}};
}

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in
// int32. Codes of 8 bits are made signed, of fewer the offset is taken from the sum.
template <int Bits, int Offset, int T, int First, int Last, class W>
__attribute__((always_inline)) inline void dot_groups(W&& weights, const int8_t* a,
                                                      const int32_t* act_sums, i32x16* sums) {
  constexpr int kFlip = Bits == 8 ? 128 : 0;
  dot_signed<T, First, Last>(
      [&](auto g) __attribute__((always_inline)) { return minus<kFlip>(weights(g)); }, a,
      [&](int t) { return vdupq_n_s32(kSumStart - (Offset - kFlip) * act_sums[t]); }, sums);
}

}  // namespace dure::DURE_ISA

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "isa/dot_i8mm.h"
#else

namespace dure::DURE_ISA {

// Two neighbouring groups of signed codes, as they are.
inline void store_pair(uint8_t* out, u8x64 first, u8x64 second) {
  store_u8(out, first), store_u8(out + 64, second);
}
template <int Bits, int Offset, int T, int First, int Last>
__attribute__((always_inline)) inline void dot_pairs(const uint8_t* codes, const int8_t* a,
                                                     i32x16* sums) {
  dot_signed<T, First, Last>([&](auto g) { return load_u8(codes + g * 64); }, a,
                             [&](int) { return vdupq_n_s32(kSumStart); }, sums);
}

}  // namespace dure::DURE_ISA

#endif
