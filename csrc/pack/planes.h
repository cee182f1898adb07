// Codes of 16 rows -> the bit planes of a panel's block, 16 bytes at a time.
#pragma once

#include "pack/layout.h"

namespace dure {

using u8x16 = uint8_t __attribute__((vector_size(16)));
using u16x8 = uint16_t __attribute__((vector_size(16)));
using u32x4 = uint32_t __attribute__((vector_size(16)));
using u64x2 = uint64_t __attribute__((vector_size(16)));

inline u8x16 load16(const uint8_t* p) {
  u8x16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store16(uint8_t* p, u8x16 v) { std::memcpy(p, &v, sizeof v); }

// The numbers at these places of two vectors, one behind the other. GCC has clang's name for it
// only from version 12 on.
template <int... kPlaces, class V>
inline V picked(V a, V b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, kPlaces...);
#else
  return __builtin_shuffle(a, b, V{kPlaces...});
#endif
}

// Sixteen rows' 16 bytes -> four times 64 bytes: bytes 4 g to 4 g + 3 of all rows, side by side.
template <class Row>
void interleave(uint8_t* out, Row&& row) {
  for (int first = 0; first < kPanel; first += 4) {
    const auto a = reinterpret_cast<u32x4>(row(first)), b = reinterpret_cast<u32x4>(row(first + 1));
    const auto c = reinterpret_cast<u32x4>(row(first + 2)),
               d = reinterpret_cast<u32x4>(row(first + 3));
    const auto ab = reinterpret_cast<u64x2>(picked<0, 4, 1, 5>(a, b));
    const auto ab2 = reinterpret_cast<u64x2>(picked<2, 6, 3, 7>(a, b));
    const auto cd = reinterpret_cast<u64x2>(picked<0, 4, 1, 5>(c, d));
    const auto cd2 = reinterpret_cast<u64x2>(picked<2, 6, 3, 7>(c, d));
    uint8_t* at = out + first * kGroup;
    store16(at, reinterpret_cast<u8x16>(picked<0, 2>(ab, cd)));
    store16(at + 64, reinterpret_cast<u8x16>(picked<1, 3>(ab, cd)));
    store16(at + 128, reinterpret_cast<u8x16>(picked<0, 2>(ab2, cd2)));
    store16(at + 192, reinterpret_cast<u8x16>(picked<1, 3>(ab2, cd2)));
  }
}

// Sixteen rows of 16 bytes -> 16 columns.
inline void transpose16(const uint8_t* source, size_t stride, uint8_t* out) {
  u8x16 v[16], w[16];
  for (size_t i = 0; i < 16; ++i) v[i] = load16(source + i * stride);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = picked<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(v[i], v[i + 8]);
      w[2 * i + 1] =
          picked<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(v[i], v[i + 8]);
    }
    std::memcpy(v, w, sizeof v);
  }
  std::memcpy(out, v, sizeof v);
}

// Puts 32 codes of each of 16 rows into a block's planes: of a row, low gives those of the groups 0
// to 3, high those of 4 to 7. Both may be asked for the same row more than once.
template <Planes P, class Low, class High>
void put_block(uint8_t* out, Low&& low, High&& high) {
  // The groups' bits [shift, shift + 4) in one byte, two groups each, interleaved: what is narrower
  // is cut from it.
  uint8_t planes[256];
  auto put4 = [&] { interleave(out, [&](int row) { return (low(row) & 15) | (high(row) << 4); }); };
  auto top = [&](int shift) {
    interleave(planes, [&](int row) { return (low(row) >> shift) | ((high(row) >> shift) << 4); });
  };
  auto plane = [&](int g, int i) { return load16(planes + 64 * g + i); };
  auto put2 = [&](int at) {
    for (int i = 0; i < 64; i += 16)
      for (int shift = 0; shift < 8; shift += 4) {
        auto pair = [&](int g) { return (plane(g, i) >> shift) & 3; };
        store16(out + at + 16 * shift + i,
                pair(0) | (pair(1) << 2) | (pair(2) << 4) | (pair(3) << 6));
      }
  };
  auto put1 = [&](int at) {
    for (int i = 0; i < 64; i += 16) {
      auto bits = [&](int g) { return (plane(g, i) & 17) << g; };
      store16(out + at + i, bits(0) | bits(1) | bits(2) | bits(3));
    }
  };
  if constexpr (P == Planes::P2) top(0), put2(0);
  if constexpr (P == Planes::P2_1) top(0), put2(0), top(2), put1(128);
  if constexpr (P == Planes::P4 || P == Planes::Lut) put4();
  if constexpr (P == Planes::P4_1) put4(), top(4), put1(256);
  if constexpr (P == Planes::P4_2) put4(), top(4), put2(256);
  if constexpr (P == Planes::P8) interleave(out, low), interleave(out + 256, high);
}

// The same of 32 codes of 16 bits, with rows `stride` bytes apart.
inline void put_words(uint8_t* out, const uint8_t* codes, size_t stride) {
  for (int i = 0; i < 64; i += 16)
    interleave(out + 16 * i, [&](int row) { return load16(codes + row * stride + i); });
}

}  // namespace dure
