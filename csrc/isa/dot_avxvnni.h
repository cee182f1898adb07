// Integer dot products of AVX-VNNI: four products of a code and an activation added to an int32
// lane at once.
#pragma once

namespace dure::DURE_ISA {

constexpr bool kWideCodes = false;  // codes of 8 bits stay bytes when unpacked

// The sum of each sixteen int8, in the lowest lane of its half of the register.
inline __m256i sums_of_halves(__m256i q) {
  const __m256i fours = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
  const __m256i twice = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4E));
  return _mm256_add_epi32(twice, _mm256_shuffle_epi32(twice, 0xB1));
}
inline int32_t join_sums(int32_t a, int32_t b) { return a + b; }
inline int32_t whole_sum(int32_t s) { return s; }
inline f32x16 sum_as_float(int32_t s) { return set1(static_cast<float>(s)); }

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in
// int32.
template <int Bits, int Offset, int T, int First, int Last, class W>
__attribute__((always_inline)) inline void dot_groups(W&& weights, const int8_t* a,
                                                      const int32_t* act_sums, i32x16* sums) {
  __m256i lo[T], hi[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
    lo[t] = hi[t] = Offset ? _mm256_set1_epi32(-Offset * act_sums[t]) : _mm256_setzero_si256();
  for_range<First, Last>([&](auto g) __attribute__((always_inline)) {
    const u8x64 w = weights(g);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i x = broadcast4(a + t * kBlock + g * kGroup);
      lo[t] = _mm256_dpbusd_avx_epi32(lo[t], w.lo, x);
      hi[t] = _mm256_dpbusd_avx_epi32(hi[t], w.hi, x);
    }
  });
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sums[t] = {lo[t], hi[t]};
}

// sums[t] = sum over 32 columns of code * activation as a float, for 16 rows of codes of 16 bits.
template <int T>
__attribute__((always_inline)) inline void dot_words(const uint8_t* codes, const int8_t* a,
                                                     f32x16* sums) {
  alignas(32) int16_t x[T][kBlock];
  __m256i lo[T], hi[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    lo[t] = hi[t] = _mm256_setzero_si256();
    for (int i = 0; i < kBlock; i += 16)
      _mm256_store_si256(reinterpret_cast<__m256i*>(x[t] + i),
                         _mm256_cvtepi8_epi16(load_bytes16(a + t * kBlock + i)));
  }
  // Read from memory: a broadcast from there costs no shuffle.
  asm volatile("" : : "r"(x) : "memory");
  for_range<0, kBlock / 2>([&](auto pair) __attribute__((always_inline)) {
    const u8x64 w = load_u8(codes + 64 * pair);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i two = broadcast4(x[t] + 2 * pair);
      lo[t] = _mm256_dpwssd_avx_epi32(lo[t], w.lo, two);
      hi[t] = _mm256_dpwssd_avx_epi32(hi[t], w.hi, two);
    }
  });
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sums[t] = to_float({lo[t], hi[t]});
}

}  // namespace dure::DURE_ISA
