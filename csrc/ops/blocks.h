// How keys and values come out of the blocks of the paged cache, as they are stored or made float;
// see paged_attention.cpp.
#pragma once

#include <algorithm>

#include "isa/simd.h"
#include "ops/ops.h"

namespace dure::DURE_ISA {

// Lanes of one block whose keys are `keys` wide and whose values are `values` wide, as it is
// stored, or as `unpack` has made it. A block of a latent cache, one row a token, is taken as
// values alone.
struct Floats {
  using Element = float;
  const float *k, *v;
  int dim;
  Floats(const uint8_t* block, int keys, int values)
      : k(reinterpret_cast<const float*>(block)), v(k + kCacheBlock * keys), dim(values) {}
  Floats(const float* keys, const float* values, int width) : k(keys), v(values), dim(width) {}
  f32x16 keys(int d, int half) const { return load(k + d * kCacheBlock + 16 * half); }
  f32x16 values(int t, int d) const { return load(v + t * dim + d); }
  f32x16 values_n(int t, int d, int n) const { return load_n(v + t * dim + d, n); }
};
struct Halves {
  using Element = uint16_t;
  const uint16_t *k, *v;
  int dim;
  Halves(const uint8_t* block, int keys, int values)
      : k(reinterpret_cast<const uint16_t*>(block)), v(k + kCacheBlock * keys), dim(values) {}
  f32x16 keys(int d, int half) const { return load_half(k + d * kCacheBlock + 16 * half); }
  f32x16 values(int t, int d) const { return load_half(v + t * dim + d); }
  f32x16 values_n(int t, int d, int n) const { return load_half_n(v + t * dim + d, n); }
};
struct Bytes {
  using Element = uint8_t;
  const uint8_t *k, *v;
  const float *k_scales, *v_scales;
  int dim;
  Bytes(const uint8_t* block, int keys, int values)
      : k(block),
        v(k + kCacheBlock * keys),
        k_scales(reinterpret_cast<const float*>(v + kCacheBlock * values)),
        v_scales(k_scales + ceil_div(keys, kCacheGroup) * kCacheBlock),
        dim(values) {}
  f32x16 keys(int d, int half) const {
    return load_i8_float(k + d * kCacheBlock + 16 * half) *
           load(k_scales + d / kCacheGroup * kCacheBlock + 16 * half);
  }
  f32x16 values(int t, int d) const {
    return load_i8_float(v + t * dim + d) * set1(v_scales[d / kCacheGroup * kCacheBlock + t]);
  }
  f32x16 values_n(int t, int d, int n) const {
    uint8_t codes[16] = {};
    std::copy_n(v + t * dim + d, n, codes);
    return load_i8_float(codes) * set1(v_scales[d / kCacheGroup * kCacheBlock + t]);
  }
};

// A sequence's blocks of one key-value head, where they lie in the cache. `ahead`: worth fetching
// early.
template <class S>
struct Stored {
  using Source = S;
  static constexpr bool ahead = true;
  const uint8_t* data;
  const int32_t* table;
  int64_t block_bytes;  // with all heads
  int64_t offset;       // of this head
  int keys, values;     // their widths; of a latent cache 0 and an entry's
  Source block(int64_t b) const { return Source(at(b), keys, values); }
  const uint8_t* at(int64_t b) const { return data + table[b] * block_bytes + offset; }
};
// One span, made float: its blocks' keys, and the values of all its keys side by side.
struct Unpacked {
  using Source = Floats;
  static constexpr bool ahead = false;
  float *k, *v;
  int64_t first;     // block of the span
  int keys, values;  // their widths
  float* keys_of(int64_t b) const { return k + (b - first) * kCacheBlock * keys; }
  float* values_of(int64_t b) const { return v + (b - first) * kCacheBlock * values; }
  Source block(int64_t b) const { return {keys_of(b), values_of(b), values}; }
};

template <class S>
void unpack(const S& block, int keys, int values, int padded, float* keys_out, float* values_out) {
  for (int d = 0; d < keys; ++d)
    for (int half = 0; half < 2; ++half)
      store(keys_out + d * kCacheBlock + 16 * half, block.keys(d, half));
  for (int t = 0; t < kCacheBlock; ++t, values_out += padded) {
    int d = 0;
    for (; d + 16 <= values; d += 16) store(values_out + d, block.values(t, d));
    if (d < values) store(values_out + d, block.values_n(t, d, values - d));
  }
}

// Of a latent cache: the entries, `dim` wide, transposed as keys, then their first `latent` columns
// as values.
template <class S>
void unpack_latent(const S& entries, int dim, int latent, float* keys, float* values) {
  for (int t = 0; t < kCacheBlock; t += 16)
    for (int d = 0; d < dim; d += 16) {
      const int columns = std::min(16, dim - d);
      f32x16 square[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        square[i] = columns == 16 ? entries.values(t + i, d) : entries.values_n(t + i, d, columns);
        if (d < latent) store(values + (t + i) * latent + d, square[i]);
      }
      transpose(square);
      for (int i = 0; i < columns; ++i) store(keys + (d + i) * kCacheBlock + t, square[i]);
    }
}

}  // namespace dure::DURE_ISA
