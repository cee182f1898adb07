// Grouped-query attention over the paged cache, for prefill and decode rows alike.
//
// One (block, key-value head) of the cache is K transposed, (head_dim, 32), then V, (32, head_dim): scores are 32 lanes of
// keys, outputs are lanes of head_dim, and neither needs a horizontal sum. A query walks its blocks in order with the
// online softmax (Milakov & Gimelshein 2018), so its bits depend on its own keys only. Rows of a tile that look at
// the same stretch of a block read it once together; each row's arithmetic is the same as if it were alone.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops.h"
#include "simd.h"

namespace dure::DURE_ISA {

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

inline f32x16 load_cache(const float* p) { return load(p); }
inline f32x16 load_cache(const uint16_t* p) { return load_half(p); }
inline f32x16 load_cache_n(const float* p, int n) { return load_n(p, n); }
inline f32x16 load_cache_n(const uint16_t* p, int n) { return load_half_n(p, n); }

// One query head of one row, on its way through the keys.
struct Query {
  const float* q;     // (head_dim), scaled
  float* out;         // (head_dim)
  float* acc;         // (head_dim): sum of p * v so far
  int64_t first, end; // keys [first, end) are visible
  float peak, total;  // running maximum of the scores, sum of p
};

// scores[r][32] = q_r . k for R queries.
template <int R, class C>
void block_scores(const C* k, int dim, Query* const* queries, float (*scores)[kCacheBlock]) {
  f32x16 lo[R], hi[R];
  for (int r = 0; r < R; ++r) lo[r] = hi[r] = set1(0);
  for (int d = 0; d < dim; ++d) {
    const f32x16 a = load_cache(k + d * kCacheBlock), b = load_cache(k + d * kCacheBlock + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const f32x16 x = set1(queries[r]->q[d]);
      lo[r] = fma(x, a, lo[r]);
      hi[r] = fma(x, b, hi[r]);
    }
  }
  for (int r = 0; r < R; ++r) store(scores[r], lo[r]), store(scores[r] + 16, hi[r]);
}

// Scores -> probabilities relative to the running peak; rescales what was summed before.
inline void softmax_step(Query& query, float* scores, int lo, int hi, int dim) {
  for (int t = 0; t < lo; ++t) scores[t] = kLowest;
  for (int t = hi; t < kCacheBlock; ++t) scores[t] = kLowest;
  const f32x16 a = load(scores), b = load(scores + 16);
  const float peak = std::max(query.peak, max_lanes(max(a, b)));
  // All keys so far at -inf (only a NaN or an infinite query can do that): keep the arithmetic defined.
  const f32x16 shift = set1(peak == kLowest ? 0.0f : peak);
  const f32x16 pa = exp16(a - shift), pb = exp16(b - shift);
  store(scores, pa);
  store(scores + 16, pb);
  float correction[16];
  store(correction, exp16(set1(query.peak) - shift));
  query.total = query.total * correction[0] + sum_lanes(pa + pb);
  query.peak = peak;
  const f32x16 c = set1(correction[0]);
  int d = 0;
  for (; d + 16 <= dim; d += 16) store(query.acc + d, load(query.acc + d) * c);
  for (; d < dim; ++d) query.acc[d] *= correction[0];
}

// acc_r += sum over keys [lo, hi) of p * v for R queries.
template <int R, class C>
void block_values(const C* v, int dim, int lo, int hi, Query* const* queries, const float (*p)[kCacheBlock]) {
  for (int d = 0; d < dim; d += 16) {
    const int n = std::min(16, dim - d);
    f32x16 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = load_n(queries[r]->acc + d, n);
    for (int t = lo; t < hi; ++t) {
      const f32x16 x = n == 16 ? load_cache(v + t * dim + d) : load_cache_n(v + t * dim + d, n);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = fma(set1(p[r][t]), x, acc[r]);
    }
    for (int r = 0; r < R; ++r) store_n(queries[r]->acc + d, acc[r], n);
  }
}

template <int R, class C>
void one_block(const C* block, int dim, int lo, int hi, Query* const* queries) {
  float scores[R][kCacheBlock];
  block_scores<R>(block, dim, queries, scores);
  for (int r = 0; r < R; ++r) softmax_step(*queries[r], scores[r], lo, hi, dim);
  block_values<R>(block + static_cast<size_t>(kCacheBlock) * dim, dim, lo, hi, queries, scores);
}

// Up to kAttentionRows queries of one sequence and key-value head through all their blocks.
template <class C>
void walk(const C* cache, const CacheView& view, int kv_head, const int32_t* table, Query* queries, int count) {
  const int dim = view.head_dim;
  int64_t first = queries[0].first, end = queries[0].end;
  for (int r = 1; r < count; ++r) first = std::min(first, queries[r].first), end = std::max(end, queries[r].end);
  for (int64_t b = first / kCacheBlock; b * kCacheBlock < end; ++b) {
    const int64_t start = b * kCacheBlock;
    const C* block = cache + (static_cast<int64_t>(table[b]) * view.kv_heads + kv_head) * 2 * kCacheBlock * dim;
    auto lo_of = [&](const Query& q) { return static_cast<int>(std::clamp<int64_t>(q.first - start, 0, kCacheBlock)); };
    auto hi_of = [&](const Query& q) { return static_cast<int>(std::clamp<int64_t>(q.end - start, 0, kCacheBlock)); };
    Query* all[kAttentionRows];
    bool same = count == kAttentionRows;
    for (int r = 0; r < count; ++r) {
      all[r] = &queries[r];
      same = same && lo_of(queries[r]) == lo_of(queries[0]) && hi_of(queries[r]) == hi_of(queries[0]);
    }
    if (same) {
      one_block<kAttentionRows>(block, dim, lo_of(queries[0]), hi_of(queries[0]), all);
      continue;
    }
    for (int r = 0; r < count; ++r) {
      const int lo = lo_of(queries[r]), hi = hi_of(queries[r]);
      if (lo < hi) one_block<1>(block, dim, lo, hi, all + r);
    }
  }
}

// A stretch of rows of one sequence, [first, end).
struct Run {
  int64_t first, end;
};

template <class C>
void attend(const float* q, int heads, const CacheView& view, const RowsView& rows, float scale, int64_t window,
            float* out, int threads) {
  const int dim = view.head_dim, group = heads / view.kv_heads;
  // Tokens of a sequence whose queries fill a tile together; more for a long prefill, so that hand-outs stay few.
  const int64_t tokens = std::max(1, 4 * kAttentionRows / group);
  std::vector<Run> runs;
  for (int64_t i = 0; i < rows.rows;) {
    int64_t end = i + 1;
    while (end < rows.rows && rows.sequences[end] == rows.sequences[i] && end - i < tokens) ++end;
    runs.push_back({i, end});
    i = end;
  }
  const auto* cache = static_cast<const C*>(view.data);
  const int64_t items = static_cast<int64_t>(runs.size()) * view.kv_heads;
  // A short context is walked sooner than a second thread is woken.
  int64_t keys = 0;
  for (const Run run : runs) keys += (run.end - run.first) * (rows.positions[run.end - 1] + 1);
  if (keys * heads * dim < (1 << 17)) threads = 1;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scaled(static_cast<size_t>(kAttentionRows) * dim), acc(scaled.size());
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < items; ++item) {
      const Run run = runs[static_cast<size_t>(item / view.kv_heads)];
      const int kv_head = static_cast<int>(item % view.kv_heads);
      const int32_t* table = rows.block_tables + rows.sequences[run.first] * rows.table_width;
      const int64_t total = (run.end - run.first) * group;
      for (int64_t start = 0; start < total; start += kAttentionRows) {
        Query queries[kAttentionRows];
        const int count = static_cast<int>(std::min<int64_t>(kAttentionRows, total - start));
        for (int r = 0; r < count; ++r) {
          const int64_t row = run.first + (start + r) / group;
          const int64_t at = (row * heads + kv_head * group + (start + r) % group) * dim;
          float* mine = scaled.data() + static_cast<size_t>(r) * dim;
          for (int d = 0; d < dim; ++d) mine[d] = q[at + d] * scale;
          float* sum = acc.data() + static_cast<size_t>(r) * dim;
          std::fill(sum, sum + dim, 0.0f);
          const int64_t end = static_cast<int64_t>(rows.positions[row]) + 1;
          queries[r] = {mine, out + at, sum, window > 0 ? std::max<int64_t>(0, end - window) : 0, end, kLowest, 0.0f};
        }
        walk<C>(cache, view, kv_head, table, queries, count);
        for (int r = 0; r < count; ++r)
          for (int d = 0; d < dim; ++d) queries[r].out[d] = queries[r].acc[d] / queries[r].total;
      }
    }
  }
}

}  // namespace

void attention(const float* q, int heads, const CacheView& cache, const RowsView& rows, float scale, int64_t window,
               float* out, int threads) {
  if (cache.half) {
    attend<uint16_t>(q, heads, cache, rows, scale, window, out, threads);
  } else {
    attend<float>(q, heads, cache, rows, scale, window, out, threads);
  }
}

}  // namespace dure::DURE_ISA
