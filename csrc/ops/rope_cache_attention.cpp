// One layer's attention after its projections, from the operations that each do a part of it.
#include "ops/rope_cache_attention.h"

#include <vector>

namespace dure {

namespace {

// The rows that ask, where not all do: their positions, sequences and angles.
struct Chosen {
  std::vector<int32_t> positions, sequences;
  std::vector<float> cos, sin;

  Chosen(const Projected& x, const RotationView& rotation, const RowsView& rows) {
    if (!x.chosen) return;
    for (int64_t i = 0; i < x.queries; ++i) {
      const int64_t row = x.chosen[i];
      positions.push_back(rows.positions[row]);
      sequences.push_back(rows.sequences[row]);
      const int64_t from = row * rotation.half;
      cos.insert(cos.end(), rotation.cos + from, rotation.cos + from + rotation.half);
      sin.insert(sin.end(), rotation.sin + from, rotation.sin + from + rotation.half);
    }
  }
};

void norm_and_turn(float* x, int64_t n, int heads, int dim, const float* weight,
                   const HeadNorms& norms, const RotationView& rotation, int threads) {
  auto norm = [&] {
    if (weight) ops().rms_norm(x, n * heads, dim, weight, norms.eps, x, threads);
  };
  if (!norms.last) norm();
  if (rotation.half)
    ops().rope(x, n, heads, dim, rotation.cos, rotation.sin, rotation.half, rotation.interleaved,
               threads);
  if (norms.last) norm();
}

}  // namespace

void rope_cache_attention(const Projected& x, const HeadNorms& norms, const RotationView& rotation,
                          const CacheView& cache, const RowsView& rows, const Scoring& scoring,
                          float* out, int threads) {
  norm_and_turn(x.k, rows.rows, cache.kv_heads, cache.head_dim, norms.k, norms, rotation, threads);
  write_cache(x.k, x.v, cache, rows);
  RowsView asking = rows;
  RotationView turning = rotation;
  const Chosen chosen(x, rotation, rows);
  if (x.chosen) {
    asking.rows = x.queries;
    asking.positions = chosen.positions.data(), asking.sequences = chosen.sequences.data();
    turning.cos = chosen.cos.data(), turning.sin = chosen.sin.data();
  }
  norm_and_turn(x.q, asking.rows, x.heads, cache.head_dim, norms.q, norms, turning, threads);
  ops().paged_attention(x.q, x.heads, cache, asking, scoring, out, threads);
}

}  // namespace dure
