// Integer dot products of AVX2, by vpmaddubsw: unsigned codes times signed activations, two
// products to an int16.
#pragma once

namespace dure::DURE_ISA {

constexpr bool kWideCodes = true;  // codes of 8 bits are unpacked to int16

// Of each sixteen int8, in the lowest 32 bits of its half of the register: the sum of those that
// meet the even int16 lanes of vpmaddubsw, and of those that meet the odd ones above it. An offset
// of 32 times 8 * 127 is still an int16.
inline __m256i sums_of_halves(__m256i q) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  const __m256i twice = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4E));
  return _mm256_add_epi16(twice, _mm256_shuffle_epi32(twice, 0xB1));
}
// Two of them added, and one as a number.
inline int32_t join_sums(int32_t a, int32_t b) {
  return _mm_cvtsi128_si32(_mm_add_epi16(_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b)));
}
inline int32_t whole_sum(int32_t s) { return static_cast<int16_t>(s) + (s >> 16); }
inline f32x16 sum_as_float(int32_t s) {
  const __m256 v =
      _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_set1_epi32(s), _mm256_set1_epi16(1)));
  return {v, v};
}

// A value that the compiler must have here, in a register: GCC 12 otherwise adds up all products of
// a tile in an order of its own, and spills them.
__attribute__((always_inline)) inline void pin(__m256i& value) { asm volatile("" : "+x"(value)); }

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in
// int32.
//
// vpmaddubsw gives two products per int16 lane, at most 2 * (2^Bits - 1) * 127, and never saturates
// up to 7 bits. They are added in int16 for as many groups as the sum of (code - Offset) *
// activation cannot overflow, and then widened. What happens in between may wrap around: Offset
// times a lane's activations is subtracted at once. So 8 groups do for codes of 4 bits (16 * 15 *
// 127 = 30,480) and of 5 with offset 16 (16 * 16 * 127 = 32,512), and 4 for 5 bits without an
// offset (31,496) and 6 bits with offset 32 (32,512). Codes of 8 bits would saturate at once: their
// sign goes to the activation instead (2 * 128 * 127 = 32,512).
template <int Bits, int Offset, int T, int First, int Last, class W>
__attribute__((always_inline)) inline void dot_groups(W&& weights, const int8_t* a,
                                                      const int32_t* act_sums, i32x16* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (Bits == 8) {
    for (int t = 0; t < T; ++t) sums[t] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for_range<First, Last>([&](auto g) __attribute__((always_inline)) {
      const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
      const u8x64 w = weights(g);
      const __m256i lo = _mm256_xor_si256(w.lo, flip), hi = _mm256_xor_si256(w.hi, flip);
      const __m256i abs_lo = _mm256_abs_epi8(lo), abs_hi = _mm256_abs_epi8(hi);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i x = broadcast4(a + t * kBlock + g * kGroup);
        const __m256i p_lo = _mm256_maddubs_epi16(abs_lo, _mm256_sign_epi8(x, lo));
        const __m256i p_hi = _mm256_maddubs_epi16(abs_hi, _mm256_sign_epi8(x, hi));
        sums[t].lo = _mm256_add_epi32(sums[t].lo, _mm256_madd_epi16(p_lo, ones));
        sums[t].hi = _mm256_add_epi32(sums[t].hi, _mm256_madd_epi16(p_hi, ones));
      }
    });
  } else {
    constexpr int kReach = Offset > (1 << Bits) - Offset ? Offset
                           : Offset                      ? (1 << Bits) - Offset
                                                         : (1 << Bits) - 1;
    constexpr int kFit = 32767 / (2 * 127 * kReach);  // groups in a run
    constexpr int kRun = kFit < Last - First ? kFit : Last - First;
    static_assert(kRun == Last - First || Offset == 0, "the start holds for one run");
    for_range<0, (Last - First) / kRun>([&](auto run) __attribute__((always_inline)) {
      constexpr int kFrom = First + run * kRun;
      __m256i lo[T], hi[T];
#pragma GCC unroll 8
      for (int t = 0; t < T && Offset; ++t)
        lo[t] = hi[t] = _mm256_mullo_epi16(broadcast4(act_sums + t), _mm256_set1_epi16(Offset));
      for_range<kFrom, kFrom + kRun>([&](auto g) __attribute__((always_inline)) {
        const u8x64 w = weights(g);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256i x = broadcast4(a + t * kBlock + g * kGroup);
          const __m256i p_lo = _mm256_maddubs_epi16(w.lo, x), p_hi = _mm256_maddubs_epi16(w.hi, x);
          if constexpr (g > kFrom) {
            lo[t] = _mm256_add_epi16(lo[t], p_lo), hi[t] = _mm256_add_epi16(hi[t], p_hi);
          } else if constexpr (Offset) {
            lo[t] = _mm256_sub_epi16(p_lo, lo[t]), hi[t] = _mm256_sub_epi16(p_hi, hi[t]);
          } else {
            lo[t] = p_lo, hi[t] = p_hi;
          }
          pin(lo[t]), pin(hi[t]);
        }
      });
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i s_lo = _mm256_madd_epi16(lo[t], ones), s_hi = _mm256_madd_epi16(hi[t], ones);
        sums[t].lo = run ? _mm256_add_epi32(sums[t].lo, s_lo) : s_lo;
        sums[t].hi = run ? _mm256_add_epi32(sums[t].hi, s_hi) : s_hi;
      }
    });
  }
}

// Codes of 8 bits, unpacked as int16 and without their offset: of each row's four columns two to
// out[0..63], two behind.
template <int Offset>
inline void store_wide(uint8_t* out, u8x64 codes) {
  static_assert(Offset == 128, "a flip of the sign");
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  auto half = [&](__m256i x, int at) {
    x = _mm256_xor_si256(x, flip);
    const __m256i first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
    const __m256i last = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
    auto put = [&](int byte, __m256i order) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + byte),
                          _mm256_srai_epi16(_mm256_shuffle_epi8(x, order), 8));
    };
    put(at, first), put(64 + at, last);
  };
  half(codes.lo, 0), half(codes.hi, 32);
}

// sums[t] = sum over 32 columns of code * activation, for 16 rows of codes by store_wide.
template <int T>
__attribute__((always_inline)) inline void dot_wide(const uint8_t* codes, const int8_t* a,
                                                    i32x16* sums) {
  alignas(32) int16_t x[T][kBlock];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
    for (int i = 0; i < kBlock; i += 16)
      _mm256_store_si256(reinterpret_cast<__m256i*>(x[t] + i),
                         _mm256_cvtepi8_epi16(load_bytes16(a + t * kBlock + i)));
  // Read from memory: a broadcast from there costs no shuffle.
  asm volatile("" : : "r"(x) : "memory");
  for_range<0, kBlock / 2>([&](auto pair) __attribute__((always_inline)) {
    const u8x64 w = load_u8(codes + 64 * pair);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i two = broadcast4(x[t] + 2 * pair);
      const __m256i lo = _mm256_madd_epi16(w.lo, two), hi = _mm256_madd_epi16(w.hi, two);
      sums[t].lo = pair ? _mm256_add_epi32(sums[t].lo, lo) : lo;
      sums[t].hi = pair ? _mm256_add_epi32(sums[t].hi, hi) : hi;
      pin(sums[t].lo), pin(sums[t].hi);
    }
  });
}

// The same of packed codes of 16 bits, as floats.
template <int T>
__attribute__((always_inline)) inline void dot_words(const uint8_t* codes, const int8_t* a,
                                                     f32x16* sums) {
  i32x16 whole[T];
  dot_wide<T>(codes, a, whole);
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sums[t] = to_float(whole[t]);
}

}  // namespace dure::DURE_ISA
