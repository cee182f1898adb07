// Activations to int8 and into tiles. Per instruction set; included by the operations that
// multiply.
#pragma once

#include <limits>

#include "isa/simd.h"
#include "ops/ops.h"

namespace dure::DURE_ISA {

inline int tile_width(int64_t n) {
  if (MatrixUnit::in_use() && n > kTile) return MatrixUnit::kTokens;
  int width = 1;
  while (width < kTile && width < n) width *= 2;
  return width;
}

// 32 floats -> int8 with one scale, amax / 127. A block that holds a NaN or an infinity gets a NaN
// scale, so that what is wrong shows in the result and not as a plausible number. sums: of the
// first and the last sixteen int8 values, as the instruction set wants them.
inline float quantize_block(const float* x, int8_t* out, int32_t sums[2]) {
  const uint32_t magnitude = max_magnitude_bits(x);
  sums[0] = sums[1] = 0;
  if (magnitude == 0 || magnitude >= 0x7F800000u) {
    std::memset(out, 0, kBlock);
    return magnitude ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  const float amax = bits_to_float(magnitude), inverse = 127.0f / amax;
  if (inverse > std::numeric_limits<float>::max()) {  // amax is subnormal: as good as zero
    std::memset(out, 0, kBlock);
    return 0.0f;
  }
  to_int8(x, inverse, out, sums);
  return amax / 127.0f;
}

// Puts 32 floats of one token into lane `t` of a record.
inline void quantize_into(const float* x, Record<uint8_t> record, int t) {
  assert(t >= 0 && t < record.width);
  int8_t* q = record.codes() + t * kBlock;
  int32_t sums[2];
  const float scale = quantize_block(x, q, sums);
  record.scale()[t] = scale;
  record.sum()[t] = join_sums(sums[0], sums[1]);
  record.low_sum()[t] = sums[0];
  record.high_sum()[t] = sums[1];
  record.total()[t] = static_cast<float>(whole_sum(record.sum()[t])) * scale;
}

// Whether the matrix unit multiplies these tiles.
inline bool is_wide(const ActTiles& x) {
  return MatrixUnit::exists && x.width == MatrixUnit::kTokens;
}

inline void shape_tiles(ActTiles& tiles, int64_t rows, int64_t cols) {
  tiles.rows = static_cast<int>(rows);
  tiles.width = tile_width(rows);
  tiles.blocks = static_cast<int>(cols / kBlock);
  tiles.data = PooledBuffer<uint8_t>(tiles.tile_bytes() * tiles.tiles());
  // Lanes past the last row are multiplied along and thrown away; zero keeps them from being slow
  // subnormals.
  if (rows % tiles.width) std::memset(tiles.tile(tiles.tiles() - 1), 0, tiles.tile_bytes());
}

inline Record<uint8_t> record_of(ActTiles& tiles, int row, int block) {
  return {tiles.record(row, block), tiles.width};
}

inline void quantize_row_into(const float* x, ActTiles& tiles, int row) {
  for (int b = 0; b < tiles.blocks; ++b)
    quantize_into(x + b * kBlock, record_of(tiles, row, b), row % tiles.width);
}

// Row `from` of one set of tiles becomes row `to` of another of as many columns.
inline void copy_row(const ActTiles& source, int from, ActTiles& target, int to) {
  assert(from < source.rows && to < target.rows && source.blocks == target.blocks);
  const int s = from % source.width, t = to % target.width;
  for (int b = 0; b < source.blocks; ++b) {
    const Record<const uint8_t> in{source.record(from, b), source.width};
    const Record<uint8_t> out = record_of(target, to, b);
    std::memcpy(out.codes() + t * kBlock, in.codes() + s * kBlock, kBlock);
    out.scale()[t] = in.scale()[s];
    out.sum()[t] = in.sum()[s];
    out.low_sum()[t] = in.low_sum()[s];
    out.high_sum()[t] = in.high_sum()[s];
    out.total()[t] = in.total()[s];
  }
}

}  // namespace dure::DURE_ISA
