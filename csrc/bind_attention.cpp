// What Python sees of attention: the paged cache, of keys and values or of latents, and what reads it. Checks, as in
// bindings.cpp.
#include <nanobind/stl/optional.h>

#include "attend.h"
#include "bind_matrix.h"
#include "heads.h"

namespace dure {

namespace {

using Cache = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Vector = std::optional<In<float, 1>>;
using Rows = std::optional<In<float, 2>>;
using Floats = In<float, 2>;
using Ints = In<int32_t, 1>;
using Tables = In<int32_t, 2>;

CacheView cache_view(const Cache& cache, int head_dim, int latent = 0) {
  CacheView view;
  const auto type = cache.dtype();
  if (type == nb::dtype<float>()) view.type = CacheType::Float;
  else if (type == nb::dtype<uint8_t>()) view.type = CacheType::Byte;
  else require(type == nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1},
               "the cache must be float16, float32 or uint8");
  view.head_dim = head_dim;
  view.latent = latent;
  require(head_dim > 0 && cache.shape(2) * view.element_bytes() == static_cast<size_t>(view.head_bytes()),
          latent ? "a latent cache's block must hold 32 entries, and their scales if they are bytes"
                 : "a cache block must hold 2 * 32 * head_dim numbers a head, and their scales if they are bytes");
  view.data = const_cast<void*>(static_cast<const void*>(cache.data()));
  view.num_blocks = static_cast<int64_t>(cache.shape(0));
  view.kv_heads = static_cast<int>(cache.shape(1));
  return view;
}

// A cache of one entry a token, of which the first `latent` columns are also the values.
CacheView latent_view(const Cache& cache, size_t width, size_t latent) {
  require(latent > 0 && latent % 16 == 0 && latent <= width && width < (1 << 24),
          "the latent must be a multiple of 16 columns, and no more than the key");
  require(cache.shape(1) == 1, "a latent cache has one head");
  return cache_view(cache, static_cast<int>(width), static_cast<int>(latent));
}

RowsView rows_view(const Ints& positions, const Ints& sequences, const Tables& tables, size_t rows, const CacheView& cache,
                   bool whole_prefix, int64_t window) {
  require(positions.shape(0) == rows && sequences.shape(0) == rows, "positions and sequences must have one entry a row");
  RowsView view{static_cast<int64_t>(rows), positions.data(),         sequences.data(),
                tables.data(),              static_cast<int64_t>(tables.shape(0)), static_cast<int64_t>(tables.shape(1))};
  for (int64_t i = 0; i < view.rows; ++i) {
    const int64_t s = view.sequences[i], last = view.positions[i];
    require(s >= 0 && s < view.num_sequences, "sequence out of range");
    require(last >= 0 && last / kCacheBlock < view.table_width, "position past the block table");
    int64_t first = last;
    if (whole_prefix) first = window > 0 ? std::max<int64_t>(0, last + 1 - window) : 0;
    // Rows of a sequence follow each other: what the row before checked need not be checked again.
    if (whole_prefix && i > 0 && view.sequences[i - 1] == s && view.positions[i - 1] <= last)
      first = std::max<int64_t>(first, view.positions[i - 1]);
    for (int64_t b = first / kCacheBlock; b <= last / kCacheBlock; ++b) {
      const int32_t block = view.block_tables[s * view.table_width + b];
      require(block >= 0 && block < cache.num_blocks, "block number out of range");
    }
  }
  return view;
}

Result<float> attend_rows(InOut<float, 2> q, InOut<float, 2> k, const Floats& v, const Cache& cache, const Ints& positions,
                     const Ints& sequences, const Tables& tables, const std::optional<Ints>& chosen, const Rows& cos,
                     const Rows& sin, bool interleaved, const Vector& q_norm, const Vector& k_norm, float eps, bool norm_last,
                     float scale, int64_t window, int threads) {
  check_threads(threads);
  const size_t n = k.shape(0), kv_heads = cache.shape(1);
  require(kv_heads > 0 && k.shape(1) > 0 && k.shape(1) % kv_heads == 0, "k must have a whole number of columns a head of the cache");
  const size_t dim = k.shape(1) / kv_heads;
  const CacheView view = cache_view(cache, static_cast<int>(dim));
  require(v.shape(0) == n && v.shape(1) == k.shape(1), "k and v must have one shape");
  require(q.shape(1) > 0 && q.shape(1) % k.shape(1) == 0, "query heads must be a multiple of the cache's heads");
  require(q.shape(0) == (chosen ? chosen->shape(0) : n), "q must have one row a row that asks");
  for (size_t i = 0; chosen && i < chosen->shape(0); ++i)
    require(chosen->data()[i] >= 0 && static_cast<size_t>(chosen->data()[i]) < n, "a row that asks is not there");
  require(!cos == !sin && (!cos || (cos->shape(0) == n && sin->shape(0) == n && cos->shape(1) == sin->shape(1))),
          "cos and sin must have one row a row of k");
  require(!cos || 2 * cos->shape(1) <= dim, "more rotary dimensions than the head has");
  require((!q_norm || q_norm->shape(0) == dim) && (!k_norm || k_norm->shape(0) == dim), "a head's norm must have one entry a column");
  require(window >= 0, "the window must not be negative");
  const RowsView rows = rows_view(positions, sequences, tables, n, view, true, window);
  auto out = fresh<float>({q.shape(0), q.shape(1)});
  nb::gil_scoped_release release;
  attend({q.data(), k.data(), v.data(), static_cast<int>(q.shape(1) / dim), chosen ? chosen->data() : nullptr,
          static_cast<int64_t>(q.shape(0))},
         {q_norm ? q_norm->data() : nullptr, k_norm ? k_norm->data() : nullptr, eps, norm_last},
         {cos ? cos->data() : nullptr, sin ? sin->data() : nullptr, cos ? static_cast<int>(cos->shape(1)) : 0, interleaved}, view,
         rows, scale, window, out.data(), threads);
  return out;
}

Result<float> head_matmul_rows(const In<float, 3>& x, const Matrix& w, int64_t first, int64_t outputs, int64_t room, bool exact,
                               int threads) {
  check_threads(threads);
  const auto heads = static_cast<int64_t>(x.shape(1));
  require(heads > 0 && w.view.rows % heads == 0, "the matrix must have as many rows for every head");
  const int64_t period = w.view.rows / heads;
  require(period % kPanel == 0 && first % kPanel == 0, "a head's rows must begin at a multiple of 16");
  require(first >= 0 && outputs > 0 && first <= period && outputs <= period - first, "a head does not have these rows");
  require(static_cast<int64_t>(x.shape(2)) >= w.view.cols, "x has fewer columns a head than the matrix");
  require(room >= outputs, "no room for a head's outputs");
  auto out = fresh<float>({x.shape(0), x.shape(1), static_cast<size_t>(room)});
  const HeadProduct product{w.view, heads, first, outputs, x.data(), static_cast<int64_t>(x.shape(2)), out.data(), room};
  nb::gil_scoped_release release;
  head_matmul(product, static_cast<int64_t>(x.shape(0)), exact, threads);
  return out;
}

}  // namespace

void bind_attention(nb::module_& m) {
  const auto maybe = nb::arg().noconvert().none();
  m.def("write_cache", [](const In<float, 3>& k, const In<float, 3>& v, const Cache& cache, const Ints& positions,
                          const Ints& sequences, const Tables& tables) {
    const CacheView view = cache_view(cache, static_cast<int>(k.shape(2)));
    for (int i = 0; i < 3; ++i) require(k.shape(i) == v.shape(i), "k and v must have one shape");
    require(static_cast<int>(k.shape(1)) == view.kv_heads, "k does not have the cache's heads");
    const RowsView rows = rows_view(positions, sequences, tables, k.shape(0), view, false, 0);
    nb::gil_scoped_release release;
    write_cache(k.data(), v.data(), view, rows);
  }, strict, strict, strict, strict, strict, strict);

  m.def("attention", [](const In<float, 3>& q, const Cache& cache, const Ints& positions, const Ints& sequences,
                        const Tables& tables, float scale, int64_t window, int threads) {
    check_threads(threads);
    const CacheView view = cache_view(cache, static_cast<int>(q.shape(2)));
    require(view.kv_heads > 0 && q.shape(1) > 0 && q.shape(1) % static_cast<size_t>(view.kv_heads) == 0, "query heads must be a multiple of the cache's heads");
    require(window >= 0, "the window must not be negative");
    const RowsView rows = rows_view(positions, sequences, tables, q.shape(0), view, true, window);
    auto out = fresh<float>({q.shape(0), q.shape(1), q.shape(2)});
    nb::gil_scoped_release release;
    ops().attention(q.data(), static_cast<int>(q.shape(1)), view, rows, scale, window, out.data(), threads);
    return out;
  }, strict, strict, strict, strict, strict, any, any, any);

  m.def("attend", &attend_rows, strict, strict, strict, strict, strict, strict, strict, maybe, maybe, maybe, any, maybe, maybe, any, any,
        any, any, any);

  m.def("write_latent", [](const Floats& latent, const Floats& rotated, const Cache& cache, const Ints& positions,
                           const Ints& sequences, const Tables& tables) {
    require(latent.shape(0) == rotated.shape(0), "one latent and one rotated part a row");
    const CacheView view = latent_view(cache, latent.shape(1) + rotated.shape(1), latent.shape(1));
    const RowsView rows = rows_view(positions, sequences, tables, latent.shape(0), view, false, 0);
    nb::gil_scoped_release release;
    write_latent(latent.data(), rotated.data(), view, rows);
  }, strict, strict, strict, strict, strict, strict);

  m.def("latent_attention", [](const In<float, 3>& q, const Cache& cache, const Ints& positions, const Ints& sequences,
                               const Tables& tables, size_t latent, float scale, int threads) {
    check_threads(threads);
    require(q.shape(1) > 0, "no query heads");
    const CacheView view = latent_view(cache, q.shape(2), latent);
    const RowsView rows = rows_view(positions, sequences, tables, q.shape(0), view, true, 0);
    auto out = fresh<float>({q.shape(0), q.shape(1), latent});
    nb::gil_scoped_release release;
    ops().attention(q.data(), static_cast<int>(q.shape(1)), view, rows, scale, 0, out.data(), threads);
    return out;
  }, strict, strict, strict, strict, strict, any, any, any);

  m.def("head_matmul", &head_matmul_rows, strict, any, any, any, any, any, any);
}

}  // namespace dure
