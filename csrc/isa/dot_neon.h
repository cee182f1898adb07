// Integer dot products of plain NEON, by smlal: a code and an activation to an int16 lane, where
// they stay as long as their sum fits.
#pragma once

#include <algorithm>

namespace dure::DURE_ISA {

// sums[t] = start(t) + sum over groups First..Last-1 of code * activation, for 16 rows. No code is
// further than Reach from zero. codes(g, quarter): those of group g and four rows, signed.
template <int Reach, int T, int First, int Last, class C, class S>
__attribute__((always_inline)) inline void dot_signed(C&& codes, const int8_t* a, S&& start,
                                                      i32x16* sums) {
  // Groups that an int16 can sum, and whether it can sum two neighbours of them, too.
  constexpr int kFit = 32767 / (127 * Reach);
  constexpr int kRun = std::min(kFit >= 8 ? 8 : kFit >= 4 ? 4 : 2, Last - First);
  constexpr bool kPairsFit = kFit >= 2 * kRun;
  static_assert(kFit >= 2 && (Last - First) % kRun == 0);
  // Half of the rows at a time: two registers of sums for four rows of a token.
  for_range<0, 2>([&](auto half) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[t].v[2 * half] = sums[t].v[2 * half + 1] = start(t);
    for_range<0, (Last - First) / kRun>([&](auto run) __attribute__((always_inline)) {
      int16x8_t s[T][2][2];
      for_range<0, kRun>([&](auto i) __attribute__((always_inline)) {
        constexpr int g = First + run * kRun + i;
        const int8x16_t w[2] = {codes(std::integral_constant<int, g>{}, 2 * half),
                                codes(std::integral_constant<int, g>{}, 2 * half + 1)};
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          int32_t four;
          std::memcpy(&four, a + t * kBlock + g * kGroup, 4);
          const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 2
          for (int q = 0; q < 2; ++q) {
            s[t][q][0] = i == 0 ? vmull_s8(vget_low_s8(w[q]), vget_low_s8(x))
                                : vmlal_s8(s[t][q][0], vget_low_s8(w[q]), vget_low_s8(x));
            s[t][q][1] = i == 0 ? vmull_high_s8(w[q], x) : vmlal_high_s8(s[t][q][1], w[q], x);
            pin(s[t][q][0]), pin(s[t][q][1]);
          }
        }
      });
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
          int32x4_t& sum = sums[t].v[2 * half + q];
          if constexpr (kPairsFit) sum = vpadalq_s16(sum, vpaddq_s16(s[t][q][0], s[t][q][1]));
          else sum = vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(s[t][q][0]), vpaddlq_s16(s[t][q][1])));
        }
    });
  });
}

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in
// int32. Codes of 8 bits are made signed, of fewer the offset is taken from the sum.
template <int Bits, int Offset, int T, int First, int Last, class W>
__attribute__((always_inline)) inline void dot_groups(W&& weights, const int8_t* a,
                                                      const int32_t* act_sums, i32x16* sums) {
  constexpr int kFlip = Bits == 8 ? 128 : 0;
  dot_signed<Bits == 8 ? 128 : (1 << Bits) - 1, T, First, Last>(
      [&](auto g, int q) __attribute__((always_inline)) {
        const uint8x16_t w = weights(g).v[q];
        return vreinterpretq_s8_u8(kFlip ? veorq_u8(w, vdupq_n_u8(kFlip)) : w);
      },
      a, [&](int t) { return vdupq_n_s32(kSumStart - (Offset - kFlip) * act_sums[t]); }, sums);
}

// Two neighbouring groups of signed codes, as they are.
inline void store_pair(uint8_t* out, u8x64 first, u8x64 second) {
  store_u8(out, first), store_u8(out + 64, second);
}
template <int Bits, int Offset, int T, int First, int Last>
__attribute__((always_inline)) inline void dot_pairs(const uint8_t* codes, const int8_t* a,
                                                     i32x16* sums) {
  dot_signed<Offset ? std::max(Offset, (1 << Bits) - Offset) : (1 << Bits) - 1, T, First, Last>(
      [&](auto g, int q) { return vreinterpretq_s8_u8(vld1q_u8(codes + g * 64 + q * 16)); }, a,
      [&](int) { return vdupq_n_s32(kSumStart); }, sums);
}

}  // namespace dure::DURE_ISA
