// What every operation shares: the block types, scalar half-precision conversions, and size checks.
#pragma once

#include <cassert>  // bounds of panels, tiles and blocks, which NDEBUG leaves out
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace dure {

// Output rows interleaved in one panel: one AVX-512 register of float32.
constexpr int kPanel = 16;
constexpr int kBlock = 32;  // weights in one block, and activations under one int8 scale
// Consecutive weights of a row that sit together: one lane of an int8 dot.
constexpr int kGroup = 4;
constexpr int kGroups = kBlock / kGroup;
constexpr int kCacheBlock = 32;  // tokens in one block of the paged cache
constexpr int kPeakChunk = 256;  // logits whose highest sampling looks at first

enum class Type : int {
  F32,
  F16,
  BF16,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  IQ4_NL,
  IQ4_XS,
  MXFP4,
  // Ours (formats/blocks.py): what quantised Hugging Face folders come down to.
  I4G32,  // 4-bit codes, scale and zero point
  I4G64,
  I4G128,
  F8G32,  // FP8
  F8G128,
  I8G32,  // signed 8-bit codes and a scale
  I8G128,
  U8G32,  // 8-bit codes, scale and zero point
  U8G128,
  A4G32,  // 4-bit codes, scale and minimum
  A4G64,
  A8G32,  // 8-bit codes, scale and minimum
  A8G64,
  NV4G32,  // NVFP4
  NV4G128,
  A2G64,  // 2- and 6-bit codes, scale and minimum
  A6G32,
  A6G64,
  A4G16,  // 4- and 8-bit codes, scale and minimum for 16 columns
  A8G16,
  // Floats as integers: the source blocks of a type above, in memory as whole numbers under a
  // scale.
  E8G32,  // F8G32, of 8 bits
  E8G128,
  B16G64,  // BF16, of 16 bits
  H16G64,  // F16
};

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

// IEEE 754 binary16 -> binary32, exact, subnormals and NaN payloads included.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31, mantissa = h & 0x3FF;
  if (exponent == 31) return bits_to_float(sign | 0x7F800000u | (mantissa << 13));
  if (exponent) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float tiny = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // mantissa * 2^-24
  return bits_to_float(sign | float_to_bits(tiny));
}

// binary32 -> binary16, round to nearest even, as vcvtps2ph does.
inline uint16_t float_to_half(float f) {
  const uint32_t u = float_to_bits(f);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((a >> 13) & 0x1FFu));
  if (a >= 0x477FF000u) return sign | 0x7C00u;  // rounds to 65536 or more
  if (a < 0x38800000u) {                        // below 2^-14: subnormal half
    // 0.5 has an ulp of 2^-24: the adder rounds for us.
    const float scaled = bits_to_float(a) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(scaled) - 0x3F000000u));
  }
  const uint32_t rounded = a + 0xFFFu + ((a >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float bfloat_to_float(uint16_t b) { return bits_to_float(static_cast<uint32_t>(b) << 16); }

// An 8-bit float of 4 exponent and 3 fraction bits, divided by 256: a binary16 has the same fields
// in wider places, so that subnormals come out right, too. What the format calls a NaN is 480 here:
// files that hold one are refused.
inline uint16_t fp8_as_half(uint8_t v) {
  return static_cast<uint16_t>(((v & 0x80) << 8) | ((v & 0x7F) << 7));
}

// The scale of 16 columns of NVFP4, halved because the table of its values is doubled: an e4m3
// times a global scale, or divided by one, which is then stored as a negative number.
inline float fp8_scale(uint8_t v, float global) {
  const float scale = half_to_float(fp8_as_half(v));
  return global < 0 ? scale * -128.0f / global : scale * 128.0f * global;
}

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
inline size_t round_up(size_t a, size_t b) { return (a + b - 1) / b * b; }

}  // namespace dure
