// Sixteen lanes in two registers: AVX2 with FMA and F16C (Haswell, Zen and later), and with
// AVX-VNNI (Alder Lake and later).
#pragma once

#include <immintrin.h>

#include "common.h"
#include "isa/no_matrix_unit.h"

namespace dure::DURE_ISA {

// Query rows of an attention tile: 12 registers of sums, 2 of keys or values, 1 broadcast: fits 16.
constexpr int kTileRows = 6;
constexpr int kTileHalves = 1;  // of 32 keys, scored together
constexpr int kTileSums = 6;    // sums of 16 outputs that fit in registers
// Panels whose products with many rows of floats are summed together: 6 tokens of one.
constexpr int kFloatPanels = 1;
constexpr int kTile = 4;        // 8 integer accumulators, 2 of weights, 2 of products: fits 16
constexpr int kTokensKept = 2;  // tokens of a tile whose sums stay in registers
// Rows for which packed codes are read without unpacking them first: two tiles, the second from the
// first cache.
constexpr int kDirect = 8;
constexpr bool kPairCodes = false;  // unpacked codes stay in their order

using MatrixUnit = NoMatrixUnit;

struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};
struct u8x64 {
  __m256i lo, hi;
};

inline f32x16 set1(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline f32x16 load_n(const float* p, int n) {
  float t[16] = {};
  std::memcpy(t, p, sizeof(float) * n);
  return load(t);
}
inline void store_n(float* p, f32x16 a, int n) {
  float t[16];
  store(t, a);
  std::memcpy(p, t, sizeof(float) * n);
}
inline __m128i load_bytes16(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
inline f32x16 load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_bytes16(p)), _mm256_cvtph_ps(load_bytes16(p + 8))};
}
inline f32x16 load_half_n(const uint16_t* p, int n) {
  uint16_t t[16] = {};
  std::memcpy(t, p, 2 * n);
  return load_half(t);
}
inline f32x16 load_bfloat(const uint16_t* p) {
  auto widen = [](__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  };
  return {widen(load_bytes16(p)), widen(load_bytes16(p + 8))};
}
inline f32x16 unsigned_bytes(__m128i x) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
inline f32x16 load_u8_float(const uint8_t* p) { return unsigned_bytes(load_bytes16(p)); }
inline f32x16 load_i8_float(const uint8_t* p) {
  const __m128i x = load_bytes16(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
inline f32x16 load_low4_float(const uint8_t* p) {
  return unsigned_bytes(_mm_and_si128(load_bytes16(p), _mm_set1_epi8(15)));
}
inline f32x16 load_high4_float(const uint8_t* p) {
  return unsigned_bytes(_mm_and_si128(_mm_srli_epi16(load_bytes16(p), 4), _mm_set1_epi8(15)));
}
inline f32x16 operator+(f32x16 a, f32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline f32x16 operator-(f32x16 a, f32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline f32x16 operator*(f32x16 a, f32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline f32x16 operator/(f32x16 a, f32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline f32x16 max(f32x16 a, f32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline f32x16 zero_below(f32x16 a, f32x16 x, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.lo, l, _CMP_LT_OQ), a.lo),
          _mm256_andnot_ps(_mm256_cmp_ps(x.hi, l, _CMP_LT_OQ), a.hi)};
}
// a * 2^n where n is the integer held in the low bits of `magic` (see exp16).
inline f32x16 scale_by_power(f32x16 a, f32x16 magic) {
  auto one = [](__m256 x, __m256 m) {
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(m), _mm256_set1_epi32(0x4B400000));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
  };
  return {one(a.lo, magic.lo), one(a.hi, magic.hi)};
}
inline void transpose8(__m256* rows) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m256d x = _mm256_castps_pd(a[i + j]), y = _mm256_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
      b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
    }
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}
// Row i and column i of 16 x 16 change places.
inline void transpose(f32x16* rows) {
  __m256 part[4][8];
  for (int i = 0; i < 8; ++i) {
    part[0][i] = rows[i].lo, part[1][i] = rows[8 + i].lo;
    part[2][i] = rows[i].hi, part[3][i] = rows[8 + i].hi;
  }
  for (auto& square : part) transpose8(square);
  for (int i = 0; i < 8; ++i)
    rows[i] = {part[0][i], part[1][i]}, rows[8 + i] = {part[2][i], part[3][i]};
}
inline __m256i load_bytes32(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
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
  return {_mm256_or_si256(a.lo, _mm256_slli_epi16(b.lo, Shift)),
          _mm256_or_si256(a.hi, _mm256_slli_epi16(b.hi, Shift))};
}
inline u8x64 look_up(u8x64 index, const uint8_t* table) {
  const __m256i t =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, index.lo), _mm256_shuffle_epi8(t, index.hi)};
}

inline __m256i broadcast4(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

}  // namespace dure::DURE_ISA

#ifdef __AVXVNNI__
#include "isa/dot_avxvnni.h"
#else
#include "isa/dot_avx2.h"
#endif

namespace dure::DURE_ISA {

// 32 floats to int8. sums: of the first and the last sixteen, in the form that dot_groups takes.
inline void to_int8(const float* x, float inverse, int8_t* out, int32_t sums[2]) {
  const __m256 k = _mm256_set1_ps(inverse);
  auto eight = [&](int i) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), k)); };
  const __m256i ab = _mm256_packs_epi32(eight(0), eight(8)),
                cd = _mm256_packs_epi32(eight(16), eight(24));
  // Packs work within 128-bit halves.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
  const __m256i s = sums_of_halves(q);
  sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
  sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}
inline uint32_t max_magnitude_bits(const float* x) {
  const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i m = _mm256_setzero_si256();
  for (int i = 0; i < 32; i += 8)
    m = _mm256_max_epi32(
        m, _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)), mask));
  __m128i n = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0x4E));
  n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0xB1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(n));
}

}  // namespace dure::DURE_ISA
