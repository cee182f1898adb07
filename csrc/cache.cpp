// New keys and values into their places in the paged cache; see attention.cpp for the layout.
#include <algorithm>

#include "ops.h"

namespace dure {

namespace {

template <class C, class Convert>
void write(const float* k, const float* v, const CacheView& cache, const RowsView& rows, Convert convert) {
  const int dim = cache.head_dim;
  auto* data = static_cast<C*>(cache.data);
  for (int64_t i = 0; i < rows.rows; ++i) {
    const int64_t position = rows.positions[i], slot = position % kCacheBlock;
    const int64_t block = rows.block_tables[rows.sequences[i] * rows.table_width + position / kCacheBlock];
    for (int h = 0; h < cache.kv_heads; ++h) {
      C* keys = data + (block * cache.kv_heads + h) * 2 * kCacheBlock * dim;
      C* values = keys + static_cast<int64_t>(kCacheBlock) * dim + slot * dim;
      const float* from = k + (i * cache.kv_heads + h) * dim;
      for (int d = 0; d < dim; ++d) keys[d * kCacheBlock + slot] = convert(from[d]);
      from = v + (i * cache.kv_heads + h) * dim;
      for (int d = 0; d < dim; ++d) values[d] = convert(from[d]);
    }
  }
}

}  // namespace

void write_cache(const float* k, const float* v, const CacheView& cache, const RowsView& rows) {
  if (cache.half) {
    write<uint16_t>(k, v, cache, rows, float_to_half);
  } else {
    write<float>(k, v, cache, rows, [](float x) { return x; });
  }
}

}  // namespace dure
