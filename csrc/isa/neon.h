// Sixteen lanes in four registers: NEON, which every 64-bit ARM has, with dot products (Cortex-A76,
// Neoverse N1, Apple M1 and later) and with matrix products (Neoverse V1, Apple M2 and later).
#pragma once

#include <arm_neon.h>

#include "common.h"
#include "isa/no_matrix_unit.h"

namespace dure::DURE_ISA {

// Query rows of an attention tile: 20 registers of sums, 4 of keys or values, 5 of queries, which
// GCC 12 loads before it multiplies: fits 32, and six rows do not.
constexpr int kTileRows = 5;
constexpr int kTileHalves = 1;  // of 32 keys, scored together
constexpr int kTileSums = 5;    // sums of 16 outputs that fit in registers
// Panels whose products with many rows of floats are summed together: 5 tokens of one.
constexpr int kFloatPanels = 1;
constexpr int kTile = 4;        // 16 integer accumulators, 4 of weights, 4 of activations: fits 32
constexpr int kTokensKept = 2;  // tokens of a tile whose sums stay in registers
// The widest single tile that reads packed codes without unpacking them first.
constexpr int kDirect = 4;
constexpr bool kWideCodes = false;  // codes of 8 bits stay bytes when unpacked
constexpr bool kPairCodes = true;   // unpacked codes are signed, in the order of store_pair

using MatrixUnit = NoMatrixUnit;

struct f32x16 {
  float32x4_t v[4];
};
// Beside each sum: the bits of 1.5 * 2^23, so that it is a float which to_float takes that from.
// Conversions have one pipe where sums have two or four.
struct i32x16 {
  int32x4_t v[4];
};
struct u8x64 {
  uint8x16_t v[4];
};

// A value of four registers, of which f(i) gives the i-th.
template <class R, class F>
__attribute__((always_inline)) inline R quarters(F&& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline f32x16 set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
inline f32x16 load(const float* p) {
  return quarters<f32x16>([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline void store(float* p, f32x16 a) {
  vst1q_f32(p, a.v[0]), vst1q_f32(p + 4, a.v[1]);
  vst1q_f32(p + 8, a.v[2]), vst1q_f32(p + 12, a.v[3]);
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
inline f32x16 load_half(const uint16_t* p) {
  return quarters<f32x16>(
      [&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline f32x16 load_half_n(const uint16_t* p, int n) {
  uint16_t t[16] = {};
  std::memcpy(t, p, 2 * n);
  return load_half(t);
}
inline f32x16 load_bfloat(const uint16_t* p) {
  const uint16x8_t zero = vdupq_n_u16(0), lo = vld1q_u16(p), hi = vld1q_u16(p + 8);
  return {{vreinterpretq_f32_u16(vzip1q_u16(zero, lo)), vreinterpretq_f32_u16(vzip2q_u16(zero, lo)),
           vreinterpretq_f32_u16(vzip1q_u16(zero, hi)),
           vreinterpretq_f32_u16(vzip2q_u16(zero, hi))}};
}
inline f32x16 unsigned_bytes(uint8x16_t x) {
  const uint16x8_t lo = vmovl_u8(vget_low_u8(x)), hi = vmovl_high_u8(x);
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_high_u16(lo)),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_high_u16(hi))}};
}
inline f32x16 load_u8_float(const uint8_t* p) { return unsigned_bytes(vld1q_u8(p)); }
inline f32x16 load_i8_float(const uint8_t* p) {
  const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(p));
  const int16x8_t lo = vmovl_s8(vget_low_s8(x)), hi = vmovl_high_s8(x);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi))}};
}
inline f32x16 load_low4_float(const uint8_t* p) {
  return unsigned_bytes(vandq_u8(vld1q_u8(p), vdupq_n_u8(15)));
}
inline f32x16 load_high4_float(const uint8_t* p) {
  return unsigned_bytes(vshrq_n_u8(vld1q_u8(p), 4));
}
inline f32x16 operator+(f32x16 a, f32x16 b) {
  return quarters<f32x16>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline f32x16 operator-(f32x16 a, f32x16 b) {
  return quarters<f32x16>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline f32x16 operator*(f32x16 a, f32x16 b) {
  return quarters<f32x16>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline f32x16 operator/(f32x16 a, f32x16 b) {
  return quarters<f32x16>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
// Not fmax, which knows of NaN and of the sign of a zero.
inline f32x16 max(f32x16 a, f32x16 b) {
  return quarters<f32x16>(
      [&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return quarters<f32x16>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline f32x16 zero_below(f32x16 a, f32x16 x, float limit) {
  const float32x4_t l = vdupq_n_f32(limit);
  return quarters<f32x16>([&](int i) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.v[i]), vcltq_f32(x.v[i], l)));
  });
}
// a * 2^n where n is the integer held in the low bits of `magic` (see exp16): the others leave.
inline f32x16 scale_by_power(f32x16 a, f32x16 magic) {
  return quarters<f32x16>([&](int i) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a.v[i]),
                                           vshlq_n_u32(vreinterpretq_u32_f32(magic.v[i]), 23)));
  });
}
// Row i and column i of 16 x 16 change places: in each square of four, then the squares.
inline void transpose(f32x16* rows) {
  f32x16 out[16];
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const float32x4_t x = rows[r].v[c], y = rows[r + 1].v[c];
      const float32x4_t z = rows[r + 2].v[c], w = rows[r + 3].v[c];
      const float64x2_t even = vreinterpretq_f64_f32(vtrn1q_f32(x, y)),
                        odd = vreinterpretq_f64_f32(vtrn2q_f32(x, y)),
                        even2 = vreinterpretq_f64_f32(vtrn1q_f32(z, w)),
                        odd2 = vreinterpretq_f64_f32(vtrn2q_f32(z, w));
      out[4 * c].v[r / 4] = vreinterpretq_f32_f64(vtrn1q_f64(even, even2));
      out[4 * c + 1].v[r / 4] = vreinterpretq_f32_f64(vtrn1q_f64(odd, odd2));
      out[4 * c + 2].v[r / 4] = vreinterpretq_f32_f64(vtrn2q_f64(even, even2));
      out[4 * c + 3].v[r / 4] = vreinterpretq_f32_f64(vtrn2q_f64(odd, odd2));
    }
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) rows[r] = out[r];
}
inline u8x64 load_u8(const uint8_t* p) {
  return quarters<u8x64>([&](int i) { return vld1q_u8(p + 16 * i); });
}
inline void store_u8(uint8_t* p, u8x64 a) {
  vst1q_u8(p, a.v[0]), vst1q_u8(p + 16, a.v[1]);
  vst1q_u8(p + 32, a.v[2]), vst1q_u8(p + 48, a.v[3]);
}
template <int Offset>
u8x64 minus(u8x64 a) {
  const uint8x16_t n = vdupq_n_u8(Offset);
  return Offset ? quarters<u8x64>([&](int i) { return vsubq_u8(a.v[i], n); }) : a;
}
template <int Shift>
u8x64 bits_at(u8x64 a, uint8_t mask) {
  const uint8x16_t m = vdupq_n_u8(mask);
  const bool all = mask == 0xFF >> Shift;  // what a shift of bytes leaves
  return quarters<u8x64>([&](int i) __attribute__((always_inline)) {
    uint8x16_t x = a.v[i];
    if constexpr (Shift > 0) x = vshrq_n_u8(x, Shift);
    return all ? x : vandq_u8(x, m);
  });
}
template <int Shift>
u8x64 or_shifted(u8x64 a, u8x64 b) {
  return quarters<u8x64>([&](int i) { return vsliq_n_u8(a.v[i], b.v[i], Shift); });
}
inline u8x64 look_up(u8x64 index, const uint8_t* table) {
  const uint8x16_t t = vld1q_u8(table);
  return quarters<u8x64>([&](int i) { return vqtbl1q_u8(t, index.v[i]); });
}

// The sums that to_int8 gives, as dot_groups takes them: of two, and as a number.
inline int32_t join_sums(int32_t a, int32_t b) { return a + b; }
inline int32_t whole_sum(int32_t s) { return s; }
inline f32x16 sum_as_float(int32_t s) { return set1(static_cast<float>(s)); }

constexpr int32_t kSumStart = 0x4B400000;  // of an i32x16: 1.5 * 2^23
inline f32x16 to_float(i32x16 a) {
  return quarters<f32x16>(
      [&](int i) { return vsubq_f32(vreinterpretq_f32_s32(a.v[i]), vdupq_n_f32(12582912.0f)); });
}

// 32 floats to int8; the sums of the first and the last sixteen.
inline void to_int8(const float* x, float inverse, int8_t* out, int32_t sums[2]) {
  auto four = [&](const float* p) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(p), inverse)); };
  auto eight = [&](const float* p) { return vmovn_high_s32(vmovn_s32(four(p)), four(p + 4)); };
  for (int i = 0; i < 2; ++i) {
    const int8x16_t q = vmovn_high_s16(vmovn_s16(eight(x + 16 * i)), eight(x + 16 * i + 8));
    vst1q_s8(out + 16 * i, q);
    sums[i] = vaddlvq_s8(q);
  }
}
inline uint32_t max_magnitude_bits(const float* x) {
  uint32x4_t m = vdupq_n_u32(0);
  for (int i = 0; i < 32; i += 4)
    m = vmaxq_u32(m, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
  return vmaxvq_u32(m);
}

// A value that the compiler must have here, in a register: GCC 12 otherwise multiplies one token
// after the other, and spills the weights in between.
template <class V>
__attribute__((always_inline)) inline void pin(V& value) {
  asm volatile("" : "+w"(value));
}

// sums[t] = sum over 32 columns of code * activation as a float, for 16 rows of codes of 16 bits.
template <int T>
__attribute__((always_inline)) inline void dot_words(const uint8_t* codes, const int8_t* a,
                                                     f32x16* sums) {
  // Half of the rows at a time: two registers of sums of a token.
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    int32x4_t s[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) s[t][0] = s[t][1] = vdupq_n_s32(0);
    for (int eight = 0; eight < kBlock; eight += 8) {
      int16x8_t x[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) x[t] = vmovl_s8(vld1_s8(a + t * kBlock + eight));
      const auto* p = reinterpret_cast<const int16_t*>(codes + eight * 2 * 16 + half * 32);
      for_range<0, 4>([&](auto pair) __attribute__((always_inline)) {
        const int16x8x2_t w = vld2q_s16(p + pair * 32);  // two columns of eight rows
        for_range<0, 2>([&](auto column) __attribute__((always_inline)) {
          constexpr int kLane = 2 * pair + column;
          const int16x4_t low = vget_low_s16(w.val[column]);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) {
            s[t][0] = vmlal_laneq_s16(s[t][0], low, x[t], kLane);
            s[t][1] = vmlal_high_laneq_s16(s[t][1], w.val[column], x[t], kLane);
            pin(s[t][0]), pin(s[t][1]);
          }
        });
      });
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
      for (int q = 0; q < 2; ++q) sums[t].v[2 * half + q] = vcvtq_f32_s32(s[t][q]);
  }
}

}  // namespace dure::DURE_ISA

#ifdef __ARM_FEATURE_DOTPROD
#include "isa/dot_dotprod.h"
#else
#include "isa/dot_neon.h"
#endif
