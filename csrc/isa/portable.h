// Sixteen lanes in plain C++: the reference for the vector headers, bit for bit, and the fallback
// where they do not run.
#pragma once

#include <cmath>
#include <utility>

#include "common.h"
#include "isa/no_matrix_unit.h"

namespace dure::DURE_ISA {

// Query rows of an attention tile: query rows that share one read of the cache.
constexpr int kTileRows = 4;
constexpr int kTileHalves = 1;  // of 32 keys, scored together
constexpr int kTileSums = 4;    // sums of 16 outputs that fit in registers
// Panels whose products with many rows of floats are summed together.
constexpr int kFloatPanels = 1;
constexpr int kTile = 4;        // tokens that share one unpacked weight
constexpr int kTokensKept = 0;  // tokens of a tile whose sums stay in registers
// The widest single tile that reads packed codes without unpacking them first.
constexpr int kDirect = 0;
constexpr bool kWideCodes = false;  // codes of 8 bits stay bytes when unpacked
constexpr bool kPairCodes = false;  // … and in their order

using MatrixUnit = NoMatrixUnit;

struct f32x16 {
  float v[16];
};
struct i32x16 {
  int32_t v[16];
};
struct u8x64 {
  uint8_t v[64];
};

#define DURE_LANES(expr)               \
  do {                                 \
    for (int i = 0; i < 16; ++i) expr; \
  } while (0)

inline f32x16 set1(float x) {
  f32x16 r;
  DURE_LANES(r.v[i] = x);
  return r;
}
inline f32x16 load(const float* p) {
  f32x16 r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline void store(float* p, f32x16 a) { std::memcpy(p, a.v, 64); }
inline f32x16 load_n(const float* p, int n) {
  f32x16 r = set1(0);
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
inline void store_n(float* p, f32x16 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline f32x16 load_half(const uint16_t* p) {
  f32x16 r;
  DURE_LANES(r.v[i] = half_to_float(p[i]));
  return r;
}
inline f32x16 load_half_n(const uint16_t* p, int n) {
  f32x16 r = set1(0);
  for (int i = 0; i < n; ++i) r.v[i] = half_to_float(p[i]);
  return r;
}
inline f32x16 load_bfloat(const uint16_t* p) {
  f32x16 r;
  DURE_LANES(r.v[i] = bfloat_to_float(p[i]));
  return r;
}
inline f32x16 load_u8_float(const uint8_t* p) {
  f32x16 r;
  DURE_LANES(r.v[i] = static_cast<float>(p[i]));
  return r;
}
inline f32x16 load_i8_float(const uint8_t* p) {
  f32x16 r;
  DURE_LANES(r.v[i] = static_cast<float>(static_cast<int8_t>(p[i])));
  return r;
}
inline f32x16 load_low4_float(const uint8_t* p) {
  f32x16 r;
  DURE_LANES(r.v[i] = static_cast<float>(p[i] & 15));
  return r;
}
inline f32x16 load_high4_float(const uint8_t* p) {
  f32x16 r;
  DURE_LANES(r.v[i] = static_cast<float>(p[i] >> 4));
  return r;
}
inline f32x16 operator+(f32x16 a, f32x16 b) {
  DURE_LANES(a.v[i] += b.v[i]);
  return a;
}
inline f32x16 operator-(f32x16 a, f32x16 b) {
  DURE_LANES(a.v[i] -= b.v[i]);
  return a;
}
inline f32x16 operator*(f32x16 a, f32x16 b) {
  DURE_LANES(a.v[i] *= b.v[i]);
  return a;
}
inline f32x16 operator/(f32x16 a, f32x16 b) {
  DURE_LANES(a.v[i] /= b.v[i]);
  return a;
}
inline f32x16 max(f32x16 a, f32x16 b) {
  DURE_LANES(a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
  return a;
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  DURE_LANES(c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]));
  return c;
}
// Row i and column i of 16 x 16 change places.
inline void transpose(f32x16* rows) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) std::swap(rows[i].v[j], rows[j].v[i]);
}
inline f32x16 to_float(i32x16 a) {
  f32x16 r;
  DURE_LANES(r.v[i] = static_cast<float>(a.v[i]));
  return r;
}
inline f32x16 zero_below(f32x16 a, f32x16 x, float limit) {
  DURE_LANES(a.v[i] = x.v[i] < limit ? 0.0f : a.v[i]);
  return a;
}
// a * 2^n where n is the integer held in the low bits of `magic` (see exp16).
inline f32x16 scale_by_power(f32x16 a, f32x16 magic) {
  DURE_LANES(a.v[i] = bits_to_float(float_to_bits(a.v[i]) +
                                    ((float_to_bits(magic.v[i]) - 0x4B400000u) << 23)));
  return a;
}
inline u8x64 load_u8(const uint8_t* p) {
  u8x64 r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline void store_u8(uint8_t* p, u8x64 a) { std::memcpy(p, a.v, 64); }
template <int Offset>
u8x64 minus(u8x64 a) {
  for (auto& x : a.v) x = static_cast<uint8_t>(x - Offset);
  return a;
}
template <int Shift>
u8x64 bits_at(u8x64 a, uint8_t mask) {
  for (auto& x : a.v) x = static_cast<uint8_t>((x >> Shift) & mask);
  return a;
}
template <int Shift>
u8x64 or_shifted(u8x64 a, u8x64 b) {
  for (int i = 0; i < 64; ++i) a.v[i] |= static_cast<uint8_t>(b.v[i] << Shift);
  return a;
}
inline u8x64 look_up(u8x64 index, const uint8_t* table) {
  for (auto& x : index.v) x = table[x];
  return index;
}

// The sums that to_int8 gives, as dot_groups takes them: of two, and as a number.
inline int32_t join_sums(int32_t a, int32_t b) { return a + b; }
inline int32_t whole_sum(int32_t s) { return s; }
inline f32x16 sum_as_float(int32_t s) { return set1(static_cast<float>(s)); }

// sums[t] = sum over groups First..Last-1 of (code - Offset) * activation, for 16 rows; exact in
// int32.
template <int Bits, int Offset, int T, int First, int Last, class W>
inline void dot_groups(W&& weights, const int8_t* a, const int32_t* act_sums, i32x16* sums) {
  for (int t = 0; t < T; ++t) DURE_LANES(sums[t].v[i] = -Offset * act_sums[t]);
  for (int g = First; g < Last; ++g) {
    const u8x64 w = weights(g);
    for (int t = 0; t < T; ++t) {
      const int8_t* x = a + t * kBlock + g * kGroup;
      for (int i = 0; i < 16; ++i)
        for (int c = 0; c < kGroup; ++c) sums[t].v[i] += w.v[i * kGroup + c] * x[c];
    }
  }
}

// sums[t] = sum over 32 columns of code * activation as a float, for 16 rows of codes of 16 bits.
template <int T>
inline void dot_words(const uint8_t* codes, const int8_t* a, f32x16* sums) {
  int16_t w[kBlock / 2][16][2];
  std::memcpy(w, codes, sizeof w);
  for (int t = 0; t < T; ++t) {
    i32x16 s = {};
    for (int pair = 0; pair < kBlock / 2; ++pair)
      for (int i = 0; i < 16; ++i)
        for (int c = 0; c < 2; ++c) s.v[i] += w[pair][i][c] * a[t * kBlock + 2 * pair + c];
    sums[t] = to_float(s);
  }
}

// 32 floats to int8; the sums of the first and the last sixteen.
inline void to_int8(const float* x, float inverse, int8_t* out, int32_t sums[2]) {
  sums[0] = sums[1] = 0;
  for (int i = 0; i < 32; ++i)
    sums[i / 16] += out[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
}
inline uint32_t max_magnitude_bits(const float* x) {
  uint32_t m = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t b = float_to_bits(x[i]) & 0x7FFFFFFFu;
    m = b > m ? b : m;
  }
  return m;
}

#undef DURE_LANES
}  // namespace dure::DURE_ISA
