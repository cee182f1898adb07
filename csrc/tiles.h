// Activations to int8 and into tiles. Per instruction set; included by the operations that multiply.
#pragma once

#include <limits>

#include "ops.h"
#include "simd.h"

namespace dure::DURE_ISA {

inline int tile_width(int64_t n) {
  int width = 1;
  while (width < kTile && width < n) width *= 2;
  return width;
}

// 32 floats -> int8 with one scale, amax / 127. A block that holds a NaN or an infinity gets a NaN scale, so that
// what is wrong shows in the result and not as a plausible number.
inline float quantize_block(const float* x, int8_t* out) {
  const uint32_t magnitude = max_magnitude_bits(x);
  if (magnitude == 0 || magnitude >= 0x7F800000u) {
    std::memset(out, 0, kBlock);
    return magnitude ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  const float amax = bits_to_float(magnitude), inverse = 127.0f / amax;
  if (inverse > std::numeric_limits<float>::max()) {  // amax is subnormal: as good as zero
    std::memset(out, 0, kBlock);
    return 0.0f;
  }
  to_int8(x, inverse, out);
  return amax / 127.0f;
}

// Puts 32 floats of one token into lane `t` of a tile's record.
inline void quantize_into(const float* x, uint8_t* record, int width, int t) {
  int8_t q[kBlock];
  const float scale = quantize_block(x, q);
  int32_t sums[2] = {0, 0};
  for (int i = 0; i < 16; ++i) sums[0] += q[i], sums[1] += q[16 + i];
  for (int g = 0; g < kGroups; ++g) std::memcpy(record + (g * width + t) * kGroup, q + g * kGroup, kGroup);
  uint8_t* tail = record + kBlock * width + 4 * t;
  const int32_t sum = sums[0] + sums[1];
  std::memcpy(tail, &scale, 4);
  std::memcpy(tail + 4 * width, &sum, 4);
  std::memcpy(tail + 8 * width, &sums[0], 4);
  std::memcpy(tail + 12 * width, &sums[1], 4);
}

inline void shape_tiles(ActTiles& tiles, int64_t rows, int64_t cols) {
  tiles.rows = static_cast<int>(rows);
  tiles.width = tile_width(rows);
  tiles.blocks = static_cast<int>(cols / kBlock);
  // Lanes past the last row stay zero: they are multiplied along and thrown away.
  tiles.data.assign(tiles.tile_bytes() * tiles.tiles(), 0);
}

inline void quantize_row_into(const float* x, ActTiles& tiles, int row) {
  uint8_t* tile = tiles.tile(row / tiles.width);
  for (int b = 0; b < tiles.blocks; ++b)
    quantize_into(x + b * kBlock, tile + static_cast<size_t>(b) * ActTiles::kRecord * tiles.width, tiles.width,
                  row % tiles.width);
}

}  // namespace dure::DURE_ISA
