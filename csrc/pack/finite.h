// Whether what a file holds are numbers.
#pragma once

#include <cstdint>
#include <cstring>

#include "pack/layout.h"

namespace dure {

// Whether all of `count` numbers are finite, which lie `stride` bytes apart: of `T` that has its
// exponent in the bits of kMask.
template <class T, T kMask>
bool finite(const uint8_t* at, size_t count, size_t stride) {
  bool all = true;
  for (size_t i = 0; i < count; ++i, at += stride) {
    T bits;
    std::memcpy(&bits, at, sizeof bits);
    all &= (bits & kMask) != kMask;
  }
  return all;
}

// Whether the weights of a float type, and the float16 scales of a GGUF type's blocks, are finite.
inline bool all_finite(Type type, const uint8_t* source, size_t bytes) {
  if (type == Type::F32) return finite<uint32_t, 0x7F800000>(source, bytes / 4, 4);
  if (type == Type::BF16 || type == Type::B16G64)
    return finite<uint16_t, 0x7F80>(source, bytes / 2, 2);
  if (type == Type::F16 || type == Type::H16G64)
    return finite<uint16_t, 0x7C00>(source, bytes / 2, 2);
  const size_t block = static_cast<size_t>(sizes_of(type).source_bytes), count = bytes / block;
  const auto halves = [&](size_t first, size_t second) {
    return finite<uint16_t, 0x7C00>(source + first, count, block) &&
           finite<uint16_t, 0x7C00>(source + second, count, block);
  };
  switch (type) {
    case Type::Q4_0:
    case Type::Q5_0:
    case Type::Q8_0:
    case Type::IQ4_NL:
    case Type::IQ4_XS:
      return halves(0, 0);
    case Type::Q4_1:
    case Type::Q5_1:
    case Type::Q4_K:
    case Type::Q5_K:
      return halves(0, 2);
    case Type::Q2_K:
      return halves(80, 82);
    case Type::Q3_K:
      return halves(108, 108);
    case Type::Q6_K:
      return halves(208, 208);
    default:
      return true;  // no GGUF type, or one without floats
  }
}

}  // namespace dure
