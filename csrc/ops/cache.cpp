// New keys and values into their places in the paged cache; see paged_attention.cpp for the layout.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/hadamard.h"
#include "ops/ops.h"

namespace dure {

namespace {

// The block of the cache that holds the token of row i.
int64_t block_of([[maybe_unused]] const CacheView& cache, const RowsView& rows, int64_t i) {
  const int64_t entry = rows.positions[i] / kCacheBlock;
  assert(rows.sequences[i] < rows.num_sequences && entry < rows.table_width);
  const int64_t block = rows.block_tables[rows.sequences[i] * rows.table_width + entry];
  assert(block >= 0 && block < cache.num_blocks);
  return block;
}

template <class C, class Convert>
void write(const float* k, const float* v, const CacheView& cache, const RowsView& rows,
           Convert convert) {
  const int dim = cache.head_dim, width = cache.value_dim();
  auto* data = static_cast<C*>(cache.data);
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t position = rows.positions[i], slot = position % kCacheBlock;
    const int64_t block = block_of(cache, rows, i);
    for (int h = 0; h < cache.kv_heads; ++h) {
      C* keys = data + (block * cache.kv_heads + h) * kCacheBlock * (dim + width);
      C* values = keys + static_cast<int64_t>(kCacheBlock) * dim + slot * width;
      const float* from = k + (i * cache.kv_heads + h) * dim;
      for (int d = 0; d < dim; ++d) keys[d * kCacheBlock + slot] = convert(from[d]);
      from = v + (i * cache.kv_heads + h) * width;
      for (int d = 0; d < width; ++d) values[d] = convert(from[d]);
    }
  }
}

template <class C, class Convert>
void write_entries(const float* latent, const float* rotated, const CacheView& cache,
                   const RowsView& rows, Convert convert) {
  const int rest = cache.head_dim - cache.latent;
  for (int64_t i = 0; i < rows.rows; ++i, latent += cache.latent, rotated += rest) {
    const int64_t position = rows.positions[i];
    const int64_t block = block_of(cache, rows, i);
    C* to = static_cast<C*>(cache.data) +
            (block * kCacheBlock + position % kCacheBlock) * cache.head_dim;
    std::transform(latent, latent + cache.latent, to, convert);
    std::transform(rotated, rotated + rest, to + cache.latent, convert);
  }
}

// Up to 32 floats as int8: value = round(x * 127 / largest), and the scale, largest / 127. Zeros,
// or so small that 127 / largest is infinite, have the scale 0; a NaN or an infinity makes the
// scale NaN, so that what is wrong shows.
float to_bytes(const float* x, int count, int8_t* out) {
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < count; ++i)
    largest = std::max(largest, std::fabs(x[i])), finite = finite && std::isfinite(x[i]);
  const float inverse = 127.0f / largest;
  if (!finite || !std::isfinite(inverse)) {
    std::fill_n(out, count, int8_t{0});
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest, ties to even
  for (int i = 0; i < count; ++i)
    out[i] = static_cast<int8_t>(static_cast<int>((x[i] * inverse + magic) - magic));
  return largest / 127.0f;
}

void write_bytes(const float* k, const float* v, const CacheView& cache, const RowsView& rows) {
  const int dim = cache.head_dim, width = cache.value_dim();
  std::vector<float> turned(static_cast<size_t>(dim));
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t position = rows.positions[i], slot = position % kCacheBlock;
    const int64_t block = block_of(cache, rows, i);
    for (int h = 0; h < cache.kv_heads; ++h) {
      uint8_t* at =
          static_cast<uint8_t*>(cache.data) + (block * cache.kv_heads + h) * cache.head_bytes();
      auto* keys = reinterpret_cast<int8_t*>(at);
      int8_t* values = keys + static_cast<int64_t>(kCacheBlock) * dim;
      auto* key_scales =
          reinterpret_cast<float*>(values + static_cast<int64_t>(kCacheBlock) * width);
      float* value_scales = key_scales + cache.scale_groups(dim) * kCacheBlock;
      std::copy_n(k + (i * cache.kv_heads + h) * dim, dim, turned.begin());
      turn(turned.data(), dim);
      for (int d = 0; d < dim; d += kCacheGroup) {
        const int count = std::min(kCacheGroup, dim - d);
        int8_t codes[kCacheGroup];
        key_scales[d / kCacheGroup * kCacheBlock + slot] =
            to_bytes(turned.data() + d, count, codes);
        for (int j = 0; j < count; ++j) keys[(d + j) * kCacheBlock + slot] = codes[j];
      }
      const float* from = v + (i * cache.kv_heads + h) * width;
      for (int d = 0; d < width; d += kCacheGroup)
        value_scales[d / kCacheGroup * kCacheBlock + slot] =
            to_bytes(from + d, std::min(kCacheGroup, width - d), values + slot * width + d);
    }
  }
}

void write_entry_bytes(const float* latent, const float* rotated, const CacheView& cache,
                       const RowsView& rows) {
  const int dim = cache.head_dim, rest = dim - cache.latent;
  std::vector<float> entry(static_cast<size_t>(dim));
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t position = rows.positions[i], slot = position % kCacheBlock;
    const int64_t block = block_of(cache, rows, i);
    uint8_t* at = static_cast<uint8_t*>(cache.data) + block * cache.head_bytes();
    auto* codes = reinterpret_cast<int8_t*>(at) + slot * dim;
    auto* scales = reinterpret_cast<float*>(at + int64_t{kCacheBlock} * dim);
    std::copy_n(latent + i * cache.latent, cache.latent, entry.begin());
    std::copy_n(rotated + i * rest, rest, entry.begin() + cache.latent);
    for (int d = 0; d < dim; d += kCacheGroup)
      scales[d / kCacheGroup * kCacheBlock + slot] =
          to_bytes(entry.data() + d, std::min(kCacheGroup, dim - d), codes + d);
  }
}

}  // namespace

void write_latent(const float* latent, const float* rotated, const CacheView& cache,
                  const RowsView& rows) {
  if (cache.type == CacheType::Byte) {
    write_entry_bytes(latent, rotated, cache, rows);
  } else if (cache.type == CacheType::Half) {
    write_entries<uint16_t>(latent, rotated, cache, rows, float_to_half);
  } else {
    write_entries<float>(latent, rotated, cache, rows, [](float x) { return x; });
  }
}

void write_cache(const float* k, const float* v, const CacheView& cache, const RowsView& rows) {
  if (cache.type == CacheType::Byte) {
    write_bytes(k, v, cache, rows);
  } else if (cache.type == CacheType::Half) {
    write<uint16_t>(k, v, cache, rows, float_to_half);
  } else {
    write<float>(k, v, cache, rows, [](float x) { return x; });
  }
}

}  // namespace dure
