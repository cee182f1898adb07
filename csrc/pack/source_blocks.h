// What one block of a source format holds: its codes, sixteen at a time, and its scales.
#pragma once

#include "pack/planes.h"

namespace dure {

// Of our own types, whose blocks are codes and then scales: whether two codes share a byte.
template <class L>
constexpr bool has_pairs() {
  return (L::planes == Planes::P4 || L::planes == Planes::Lut) && L::scales != Scales::FloatMin16;
}
template <class L>
constexpr int own_code_bytes() {
  return L::unit_blocks * kBlock / (has_pairs<L>() ? 2 : 1);
}

// The low nibbles of 16 bytes, or the high ones.
template <bool kHigh>
u8x16 nibbles(const uint8_t* q) {
  return kHigh ? load16(q) >> 4 : load16(q) & 15;
}

// Codes 16 I to 16 I + 15 of 256 two-bit ones: of each 32 bytes all lowest pairs, then all second
// ones, and so on.
template <int I>
u8x16 pairs(const uint8_t* q) {
  return (load16(q + 32 * (I / 8) + 16 * (I % 2)) >> (I % 8 / 2 * 2)) & 3;
}

// The same of one-bit ones: bit j of byte i is that of code 32 j + i.
template <int I>
u8x16 bits(const uint8_t* q) {
  return (load16(q + 16 * (I % 2)) >> (I / 2)) & 1;
}

// Sixteen bits, the lowest first: 16 where one is set.
inline u8x16 sixteens(const uint8_t* q) {
  const u64x2 copies = {q[0] * 0x0101010101010101u, q[1] * 0x0101010101010101u};
  const u8x16 each = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return ((reinterpret_cast<u8x16>(copies) & each) == each) & 16;
}

// Eight bytes' nibbles, the low one of each byte first.
inline u8x16 paired_nibbles(const uint8_t* q) {
  u8x16 v = {};
  std::memcpy(&v, q, 8);
  return picked<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(v & 15, v >> 4);
}

// Codes 16 I to 16 I + 15 of the block at s, from 0 to 2^bits - 1 (of Lut types the 4-bit index).
template <Type T, int I>
u8x16 codes(const uint8_t* s) {
  using L = Layout<T>;
  // Of Q4_K, Q5_K: of each 32 bytes all low nibbles, then all high ones. Q6_K: of 64.
  constexpr int kAt32 = 32 * (I / 4) + 16 * (I % 2), kAt64 = 64 * (I / 8) + 16 * (I % 4);
  constexpr bool kHigh32 = I % 4 >= 2, kHigh64 = I % 8 >= 4;
  if constexpr (T == Type::Q4_0 || T == Type::IQ4_NL) return nibbles<I == 1>(s + 2);
  else if constexpr (T == Type::Q4_1) return nibbles<I == 1>(s + 4);
  else if constexpr (T == Type::Q5_0) return nibbles<I == 1>(s + 6) | sixteens(s + 2 + 2 * I);
  else if constexpr (T == Type::Q5_1) return nibbles<I == 1>(s + 8) | sixteens(s + 4 + 2 * I);
  else if constexpr (T == Type::Q8_0) return load16(s + 2 + 16 * I) ^ 128;
  else if constexpr (T == Type::MXFP4) return nibbles<I == 1>(s + 1);
  // 16 bytes of (scale | min << 4), 64 bytes of codes, d, dmin.
  else if constexpr (T == Type::Q2_K) return pairs<I>(s + 16);
  // 32 bytes of high bits, 64 of low pairs, 12 of 6-bit scales, d.
  else if constexpr (T == Type::Q3_K) return pairs<I>(s + 32) | (bits<I>(s) << 2);
  // d, dmin, 12 bytes of 6-bit scales and minima, of Q5_K 32 of high bits, 128 of nibbles.
  else if constexpr (T == Type::Q4_K) return nibbles<kHigh32>(s + 16 + kAt32);
  else if constexpr (T == Type::Q5_K)
    return nibbles<kHigh32>(s + 48 + kAt32) | (bits<I>(s + 16) << 4);
  // 128 bytes of low nibbles, 64 of high pairs, 16 int8 scales, d.
  else if constexpr (T == Type::Q6_K) return nibbles<kHigh64>(s + kAt64) | (pairs<I>(s + 128) << 4);
  // d, two high bits of eight scales, four low ones, 128 bytes of nibbles.
  else if constexpr (T == Type::IQ4_XS) return nibbles<I % 2 == 1>(s + 8 + 16 * (I / 2));
  else if constexpr (has_pairs<L>()) return paired_nibbles(s + 8 * I);
  else return load16(s + 16 * I) ^ (L::scales == Scales::Float ? 128 : 0);
}

// The scales of a block of 256 columns: two f16, and of each part its scale, or its scale and its
// minimum, in the order in which a panel has them.
struct SuperScales {
  uint16_t d = 0, m = 0;
  u8x16 levels;
};

inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

template <Type T>
SuperScales super_scales(const uint8_t* s) {
  // Four bytes of each number: every format has some of its scales' bits side by side.
  constexpr uint32_t kLow6 = 0x3F3F3F3F, kLow4 = 0x0F0F0F0F, kTwo = 0x03030303, kTop2 = 0x30303030;
  if constexpr (T == Type::Q2_K) {
    return {load_u16(s + 80), load_u16(s + 82), load16(s)};
  } else if constexpr (T == Type::Q3_K) {
    const uint32_t a = load_u32(s + 96), b = load_u32(s + 100), top = load_u32(s + 104);
    const u32x4 low = {a & kLow4, b & kLow4, (a >> 4) & kLow4, (b >> 4) & kLow4};
    const u32x4 high = {top & kTwo, (top >> 2) & kTwo, (top >> 4) & kTwo, (top >> 6) & kTwo};
    return {load_u16(s + 108), 0, reinterpret_cast<u8x16>(low | (high << 4)) - 32};
  } else if constexpr (T == Type::Q4_K || T == Type::Q5_K) {
    // Eight 6-bit scales and minima in 12 bytes: the last four borrow their top bits from the
    // first four.
    const uint32_t a = load_u32(s + 4), b = load_u32(s + 8), c = load_u32(s + 12);
    const u32x4 scales = {a & kLow6, (c & kLow4) | ((a >> 2) & kTop2)};
    const u32x4 minima = {b & kLow6, ((c >> 4) & kLow4) | ((b >> 2) & kTop2)};
    return {load_u16(s), load_u16(s + 2),
            picked<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(
                reinterpret_cast<u8x16>(scales), reinterpret_cast<u8x16>(minima))};
  } else if constexpr (T == Type::Q6_K) {
    return {load_u16(s + 208), 0, load16(s + 192)};
  } else {
    static_assert(T == Type::IQ4_XS);
    const uint32_t high = load_u16(s + 2);
    SuperScales u{load_u16(s), 0, {}};
    for (int j = 0; j < 8; ++j) {
      const uint32_t low = (s[4 + j / 2] >> (4 * (j % 2))) & 15;
      u.levels[j] = static_cast<uint8_t>((low | (((high >> (2 * j)) & 3) << 4)) - 32);
    }
    return u;
  }
}

// The scale of an MXFP4 block with this exponent, 2^(e - 128), as bf16: half of it, because the
// table of values is doubled.
inline uint16_t power_of(uint8_t e) {
  return static_cast<uint16_t>(e == 0 ? 0x20 : e == 1 ? 0x40 : (e - 1) << 7);
}

}  // namespace dure
