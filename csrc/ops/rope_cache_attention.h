// What lies between a layer's projections and its output: per-head norms, rotation, cache,
// attention.
#pragma once

#include "ops/ops.h"

namespace dure {

// RMSNorm of each query and key head by itself; null weights for none.
struct HeadNorms {
  const float* q = nullptr;  // (head_dim)
  const float* k = nullptr;
  float eps = 0;
  bool last = false;  // after the rotation, not before
};

// Angles of every row; half = 0 for no rotation.
struct RotationView {
  const float* cos = nullptr;  // (rows, half)
  const float* sin = nullptr;
  int half = 0;
  bool interleaved = false;
};

// q (queries, heads, head_dim), k and v (rows, kv_heads, a key's or a value's width), of which q
// and k are changed in place. `chosen` (queries) names the rows that ask; null: all do.
struct Projected {
  float* q;
  float* k;
  const float* v;
  int heads;
  const int32_t* chosen;
  int64_t queries;
};

void rope_cache_attention(const Projected& x, const HeadNorms& norms, const RotationView& rotation,
                          const CacheView& cache, const RowsView& rows, const Scoring& scoring,
                          float* out, int threads);

}  // namespace dure
