// Sixteen lanes in one register: AVX-512 with VNNI (Ice Lake, Zen 4 and later).
#pragma once

#include <immintrin.h>

#include "isa/amx.h"

namespace dure::DURE_ISA {

// Query rows of an attention tile: 24 sums, 2 of keys or values, 1 broadcast: fits 32.
constexpr int kTileRows = 12;
constexpr int kTileHalves = 2;  // of 32 keys, scored together
constexpr int kTileSums = 24;   // sums of 16 outputs that fit in registers
// Panels whose products with floats are summed together: 6 tokens of 4, 24 sums.
constexpr int kFloatPanels = 4;
// 8 int32 and 8 float32 accumulators; 8 chains hide the 5-cycle dot.
constexpr int kTile = 8;
constexpr int kTokensKept = 8;  // tokens of a tile whose sums stay in registers
// The widest single tile that reads packed codes without unpacking them first.
constexpr int kDirect = 8;
constexpr bool kWideCodes = false;  // codes of 8 bits stay bytes when unpacked
constexpr bool kPairCodes = false;  // … and in their order

using MatrixUnit = Amx;

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};
struct u8x64 {
  __m512i v;
};

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
inline f32x16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void store_n(float* p, f32x16 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline f32x16 load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline f32x16 load_half_n(const uint16_t* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
inline f32x16 load_bfloat(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
inline __m128i load_bytes16(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline f32x16 load_u8_float(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_bytes16(p)))};
}
inline f32x16 load_i8_float(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes16(p)))};
}
inline f32x16 load_low4_float(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(
      _mm512_and_si512(_mm512_cvtepu8_epi32(load_bytes16(p)), _mm512_set1_epi32(15)))};
}
inline f32x16 load_high4_float(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_bytes16(p)), 4))};
}
inline f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline f32x16 zero_below(f32x16 a, f32x16 x, float limit) {
  return {_mm512_mask_mov_ps(a.v, _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ),
                             _mm512_setzero_ps())};
}
// a * 2^n where n is the integer held in the low bits of `magic` (see exp16).
inline f32x16 scale_by_power(f32x16 a, f32x16 magic) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(magic.v), _mm512_set1_epi32(0x4B400000));
  return {
      _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(n, 23)))};
}
// Row i and column i of 16 x 16 change places.
inline void transpose(f32x16* rows) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d x = _mm512_castps_pd(a[i + j]), y = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  // Lane group g of b[4 q + c] is column 4 g + c of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88);
    const __m512 high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xDD);
    const __m512 odder = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xDD);
    rows[c].v = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[8 + c].v = _mm512_shuffle_f32x4(low, high, 0xDD);
    rows[4 + c].v = _mm512_shuffle_f32x4(odd, odder, 0x88);
    rows[12 + c].v = _mm512_shuffle_f32x4(odd, odder, 0xDD);
  }
}
inline u8x64 load_u8(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_u8(uint8_t* p, u8x64 a) { _mm512_storeu_si512(p, a.v); }
inline void store_i8(int8_t* p, u8x64 a) { _mm512_storeu_si512(p, a.v); }
template <int Offset>
u8x64 minus(u8x64 a) {
  return Offset ? u8x64{_mm512_sub_epi8(a.v, _mm512_set1_epi8(static_cast<char>(Offset)))} : a;
}
template <int Shift>
u8x64 bits_at(u8x64 a, uint8_t mask) {
  return {_mm512_and_si512(Shift ? _mm512_srli_epi16(a.v, Shift) : a.v,
                           _mm512_set1_epi8(static_cast<char>(mask)))};
}
template <int Shift>
u8x64 or_shifted(u8x64 a, u8x64 b) {
  return {_mm512_or_si512(a.v, _mm512_slli_epi16(b.v, Shift))};
}
inline u8x64 look_up(u8x64 index, const uint8_t* table) {
  return {_mm512_shuffle_epi8(
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), index.v)};
}

// The sums that to_int8 gives, as dot_groups takes them: of two, and as a number.
inline int32_t join_sums(int32_t a, int32_t b) { return a + b; }
inline int32_t whole_sum(int32_t s) { return s; }
inline f32x16 sum_as_float(int32_t s) { return set1(static_cast<float>(s)); }

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in
// int32.
template <int Bits, int Offset, int T, int First, int Last, class W>
inline void dot_groups(W&& weights, const int8_t* a, const int32_t* act_sums, i32x16* sums) {
  __m512i s[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t)
    s[t] = Offset ? _mm512_set1_epi32(-Offset * act_sums[t]) : _mm512_setzero_si512();
  auto one = [&](auto g) __attribute__((always_inline)) {
    const u8x64 w = weights(g);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      int32_t x;
      std::memcpy(&x, a + t * kBlock + g * kGroup, 4);
      s[t] = _mm512_dpbusd_epi32(s[t], w.v, _mm512_set1_epi32(x));
    }
  };
  for_range<First, Last>(one);
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sums[t].v = s[t];
}

// sums[t] = sum over 32 columns of code * activation as a float, for 16 rows of codes of 16 bits.
template <int T>
inline void dot_words(const uint8_t* codes, const int8_t* a, f32x16* sums) {
  alignas(64) int16_t x[T][kBlock];
  __m512i s[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    s[t] = _mm512_setzero_si512();
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + t * kBlock));
    _mm512_store_si512(x[t], _mm512_cvtepi8_epi16(bytes));
  }
  // Read from memory: a broadcast from there costs no shuffle.
  asm volatile("" : : "r"(x) : "memory");
  for_range<0, kBlock / 2>([&](auto pair) __attribute__((always_inline)) {
    const __m512i w = _mm512_loadu_si512(codes + 64 * pair);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      int32_t two;
      std::memcpy(&two, x[t] + 2 * pair, 4);
      s[t] = _mm512_dpwssd_epi32(s[t], w, _mm512_set1_epi32(two));
    }
  });
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sums[t].v = _mm512_cvtepi32_ps(s[t]);
}

// 32 floats to int8; the sums of the first and the last sixteen.
inline void to_int8(const float* x, float inverse, int8_t* out, int32_t sums[2]) {
  const __m512 k = _mm512_set1_ps(inverse);
  for (int i = 0; i < 2; ++i) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), k));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * i), _mm512_cvtepi32_epi8(q));
    sums[i] = _mm512_reduce_add_epi32(q);
  }
}
inline uint32_t max_magnitude_bits(const float* x) {
  const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
  return static_cast<uint32_t>(_mm512_reduce_max_epi32(
      _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), mask),
                       _mm512_and_si512(_mm512_loadu_si512(x + 16), mask))));
}

}  // namespace dure::DURE_ISA
