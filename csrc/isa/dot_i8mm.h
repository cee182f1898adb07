// Integer products of ARMv8.6: two rows of eight codes times two tokens' eight activations, added
// to four int32 lanes at once. Only unpacked codes are brought in that order: for the four rows at
// most that packed ones are multiplied by, that takes as long as it saves.
#pragma once

namespace dure::DURE_ISA {

// Two neighbouring groups of signed codes: eight columns of a row, of the next, and so on.
inline void store_pair(uint8_t* out, u8x64 first, u8x64 second) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const uint32x4_t x = vreinterpretq_u32_u8(first.v[q]), y = vreinterpretq_u32_u8(second.v[q]);
    vst1q_u8(out + 32 * q, vreinterpretq_u8_u32(vzip1q_u32(x, y)));
    vst1q_u8(out + 32 * q + 16, vreinterpretq_u8_u32(vzip2q_u32(x, y)));
  }
}

// sums[t] = sum over groups First..Last-1 of code * activation, for 16 rows and T tokens, two at a
// time.
template <int Bits, int Offset, int T, int First, int Last>
__attribute__((always_inline)) inline void dot_pairs(const uint8_t* codes, const int8_t* a,
                                                     i32x16* sums) {
  constexpr int kPairs = (T + 1) / 2;
  int32x4_t s[kPairs][8];  // of rows 2 p and 2 p + 1: both tokens' of one, both of the other
#pragma GCC unroll 4
  for (int t = 0; t < kPairs; ++t)
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p) s[t][p] = vdupq_n_s32(kSumStart);
  for_range<First / 4, Last / 4>([&](auto four) __attribute__((always_inline)) {
    int8x16_t x[2][kPairs];  // of two groups, and of the next two
#pragma GCC unroll 4
    for (int t = 0; t < kPairs; ++t) {
      const int8_t* p = a + 2 * t * kBlock + 16 * four;
      const int64x2_t even = vreinterpretq_s64_s8(vld1q_s8(p));
      const int64x2_t odd = 2 * t + 1 < T ? vreinterpretq_s64_s8(vld1q_s8(p + kBlock)) : even;
      x[0][t] = vreinterpretq_s8_s64(vzip1q_s64(even, odd));
      x[1][t] = vreinterpretq_s8_s64(vzip2q_s64(even, odd));
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(codes + 256 * four + 16 * i));
#pragma GCC unroll 4
      for (int t = 0; t < kPairs; ++t) {
        s[t][i % 8] = vmmlaq_s32(s[t][i % 8], w, x[i / 8][t]);
        pin(s[t][i % 8]);
      }
    }
  });
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
    sums[t] = quarters<i32x16>([&](int q) __attribute__((always_inline)) {
      const int32x4_t low = s[t / 2][2 * q], high = s[t / 2][2 * q + 1];
      return t % 2 ? vuzp2q_s32(low, high) : vuzp1q_s32(low, high);
    });
}

}  // namespace dure::DURE_ISA
