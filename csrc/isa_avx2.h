// Sixteen lanes in two registers: AVX2 with FMA and F16C (Haswell, Zen and later).
#pragma once

#include <immintrin.h>

#include "common.h"

namespace dure::DURE_ISA {

constexpr int kTileRows = 6;  // query rows of an attention tile: 12 registers of sums, 2 of keys or values, 1 broadcast: fits 16
constexpr int kTileHalves = 1;   // of 32 keys, scored together
constexpr int kTileSums = 6;    // sums of 16 outputs that fit in registers
constexpr int kTile = 4;           // 8 int16 accumulators, 2 of weights, 2 of products: fits 16
constexpr int kTokensKept = 2;  // tokens of a tile whose sums stay in registers
constexpr int kDirect = 4;      // the widest single tile that reads packed codes without unpacking them first
constexpr bool kWideCodes = true;  // codes of 8 bits are unpacked to int16

struct f32x16 { __m256 lo, hi; };
struct i32x16 { __m256i lo, hi; };
struct u8x64 { __m256i lo, hi; };

inline f32x16 set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, f32x16 a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
inline f32x16 load_n(const float* p, int n) { float t[16] = {}; std::memcpy(t, p, sizeof(float) * n); return load(t); }
inline void store_n(float* p, f32x16 a, int n) { float t[16]; store(t, a); std::memcpy(p, t, sizeof(float) * n); }
inline __m128i load_bytes16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline f32x16 load_half(const uint16_t* p) { return {_mm256_cvtph_ps(load_bytes16(p)), _mm256_cvtph_ps(load_bytes16(p + 8))}; }
inline f32x16 load_half_n(const uint16_t* p, int n) { uint16_t t[16] = {}; std::memcpy(t, p, 2 * n); return load_half(t); }
inline f32x16 load_bfloat(const uint16_t* p) {
  auto widen = [](__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); };
  return {widen(load_bytes16(p)), widen(load_bytes16(p + 8))};
}
inline f32x16 unsigned_bytes(__m128i x) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
inline f32x16 load_u8_float(const uint8_t* p) { return unsigned_bytes(load_bytes16(p)); }
inline f32x16 load_i8_float(const uint8_t* p) {
  const __m128i x = load_bytes16(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
inline f32x16 load_low4_float(const uint8_t* p) { return unsigned_bytes(_mm_and_si128(load_bytes16(p), _mm_set1_epi8(15))); }
inline f32x16 load_high4_float(const uint8_t* p) {
  return unsigned_bytes(_mm_and_si128(_mm_srli_epi16(load_bytes16(p), 4), _mm_set1_epi8(15)));
}
inline f32x16 operator+(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline f32x16 zero_below(f32x16 a, f32x16 x, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.lo, l, _CMP_LT_OQ), a.lo), _mm256_andnot_ps(_mm256_cmp_ps(x.hi, l, _CMP_LT_OQ), a.hi)};
}
// a * 2^n where n is the integer held in the low bits of `magic` (see exp16).
inline f32x16 scale_by_power(f32x16 a, f32x16 magic) {
  auto one = [](__m256 x, __m256 m) {
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(m), _mm256_set1_epi32(0x4B400000));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
  };
  return {one(a.lo, magic.lo), one(a.hi, magic.hi)};
}
inline __m256i load_bytes32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline u8x64 load_u8(const uint8_t* p) { return {load_bytes32(p), load_bytes32(p + 32)}; }
inline void store_u8(uint8_t* p, u8x64 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}
template <int Offset>
u8x64 minus(u8x64 a) {
  const __m256i n = _mm256_set1_epi8(Offset);
  return Offset ? u8x64{_mm256_sub_epi8(a.lo, n), _mm256_sub_epi8(a.hi, n)} : a;
}
template <int Shift>
u8x64 bits_at(u8x64 a, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(Shift ? _mm256_srli_epi16(a.lo, Shift) : a.lo, m),
          _mm256_and_si256(Shift ? _mm256_srli_epi16(a.hi, Shift) : a.hi, m)};
}
template <int Shift>
u8x64 or_shifted(u8x64 a, u8x64 b) {
  return {_mm256_or_si256(a.lo, _mm256_slli_epi16(b.lo, Shift)), _mm256_or_si256(a.hi, _mm256_slli_epi16(b.hi, Shift))};
}
inline u8x64 look_up(u8x64 index, const uint8_t* table) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, index.lo), _mm256_shuffle_epi8(t, index.hi)};
}

// The sums that to_int8 gives, as dot_groups takes them: of two, and as a number.
inline int32_t join_sums(int32_t a, int32_t b) {
  return _mm_cvtsi128_si32(_mm_add_epi16(_mm_cvtsi32_si128(a), _mm_cvtsi32_si128(b)));
}
inline int32_t whole_sum(int32_t s) { return static_cast<int16_t>(s) + (s >> 16); }
inline f32x16 sum_as_float(int32_t s) {
  const __m256 v = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_set1_epi32(s), _mm256_set1_epi16(1)));
  return {v, v};
}

// A value that the compiler must have here, in a register: GCC 12 otherwise adds up all products of a tile in an order of its
// own, and spills them.
__attribute__((always_inline)) inline void pin(__m256i& value) { asm volatile("" : "+x"(value)); }

inline __m256i broadcast4(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in int32.
//
// vpmaddubsw gives two products per int16 lane, at most 2 * (2^Bits - 1) * 127, and never saturates up to 7 bits. They are
// added in int16 for as many groups as the sum of (code - Offset) * activation cannot overflow, and then widened. What
// happens in between may wrap around: a lane starts from -Offset times its activations' sum. So 8 groups do for codes of
// 4 bits (16 * 15 * 127 = 30,480) and of 5 with offset 16 (16 * 16 * 127 = 32,512), and 4 for 5 bits without an offset
// (31,496) and 6 bits with offset 32 (32,512).
// Codes of 8 bits would saturate at once: their sign goes to the activation instead (2 * 128 * 127 = 32,512).
template <int Bits, int Offset, int T, int First, int Last, class W>
__attribute__((always_inline)) inline void dot_groups(W&& weights, const int8_t* a, const int32_t* act_sums, i32x16* sums) {
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
    constexpr int kReach = Offset > (1 << Bits) - Offset ? Offset : Offset ? (1 << Bits) - Offset : (1 << Bits) - 1;
    constexpr int kFit = 32767 / (2 * 127 * kReach);  // groups in a run
    constexpr int kRun = kFit < Last - First ? kFit : Last - First;
    static_assert(kRun == Last - First || Offset == 0, "the start holds for one run");
    for_range<0, (Last - First) / kRun>([&](auto run) __attribute__((always_inline)) {
      constexpr int kFrom = First + run * kRun;
      __m256i lo[T], hi[T];
#pragma GCC unroll 8
      for (int t = 0; t < T && Offset; ++t)
        lo[t] = hi[t] = _mm256_mullo_epi16(broadcast4(act_sums + t), _mm256_set1_epi16(-Offset));
      for_range<kFrom, kFrom + kRun>([&](auto g) __attribute__((always_inline)) {
        const u8x64 w = weights(g);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256i x = broadcast4(a + t * kBlock + g * kGroup);
          const __m256i p_lo = _mm256_maddubs_epi16(w.lo, x), p_hi = _mm256_maddubs_epi16(w.hi, x);
          lo[t] = g == kFrom && !Offset ? p_lo : _mm256_add_epi16(lo[t], p_lo);
          hi[t] = g == kFrom && !Offset ? p_hi : _mm256_add_epi16(hi[t], p_hi);
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

// Codes of 8 bits, unpacked as int16 and without their offset: of each row's four columns two to out[0..63], two behind.
template <int Offset>
inline void store_wide(uint8_t* out, u8x64 codes) {
  static_assert(Offset == 128, "a flip of the sign");
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  auto half = [&](__m256i x, int at) {
    x = _mm256_xor_si256(x, flip);
    const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
    const __m256i last = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
    auto put = [&](int byte, __m256i order) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + byte), _mm256_srai_epi16(_mm256_shuffle_epi8(x, order), 8));
    };
    put(at, first), put(64 + at, last);
  };
  half(codes.lo, 0), half(codes.hi, 32);
}

// sums[t] = sum over 32 columns of code * activation, for 16 rows of codes by store_wide.
template <int T>
__attribute__((always_inline)) inline void dot_wide(const uint8_t* codes, const int8_t* a, i32x16* sums) {
  alignas(32) int16_t x[T][kBlock];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
    for (int i = 0; i < kBlock; i += 16)
      _mm256_store_si256(reinterpret_cast<__m256i*>(x[t] + i), _mm256_cvtepi8_epi16(load_bytes16(a + t * kBlock + i)));
  asm volatile("" : : "r"(x) : "memory");  // read from memory: a broadcast from there costs no shuffle
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

// 32 floats to int8. sums: for the first and the last sixteen what an offset needs of them, the sum of those that meet the
// even int16 lanes of vpmaddubsw in the low half, of those that meet the odd ones in the high half.
inline void to_int8(const float* x, float inverse, int8_t* out, int32_t sums[2]) {
  const __m256 k = _mm256_set1_ps(inverse);
  auto eight = [&](int i) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), k)); };
  const __m256i ab = _mm256_packs_epi32(eight(0), eight(8)), cd = _mm256_packs_epi32(eight(16), eight(24));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work within 128-bit halves
  const __m256i q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  const __m256i twice = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4E));
  const __m256i all = _mm256_add_epi16(twice, _mm256_shuffle_epi32(twice, 0xB1));
  sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(all));
  sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(all, 1));
}
inline uint32_t max_magnitude_bits(const float* x) {
  const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i m = _mm256_setzero_si256();
  for (int i = 0; i < 32; i += 8)
    m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)), mask));
  __m128i n = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0x4E));
  n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0xB1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(n));
}

}  // namespace dure::DURE_ISA
