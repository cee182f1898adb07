// What Python sees of attention: the paged cache, of keys and values or of latents, and what reads
// it. Checks, as in bind/module.cpp.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bind/rows.h"
#include "ops/heads.h"
#include "ops/rope_cache_attention.h"

namespace dure {

namespace {

using Cache = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Ints = In<int32_t, 1>;
using Tables = In<int32_t, 2>;

CacheView cache_view(const Cache& cache, int head_dim, int latent = 0, int values = 0) {
  CacheView view;
  const auto type = cache.dtype();
  if (type == nb::dtype<float>()) view.type = CacheType::Float;
  else if (type == nb::dtype<uint8_t>()) view.type = CacheType::Byte;
  else
    require(type == nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1},
            "the cache must be float16, float32 or uint8");
  view.head_dim = head_dim;
  view.latent = latent;
  view.values = values;
  require(head_dim > 0 && values >= 0 &&
              cache.shape(2) * view.element_bytes() == static_cast<size_t>(view.head_bytes()),
          latent ? "a latent cache's block must hold 32 entries, and their scales if they are bytes"
                 : "a cache block must hold 32 keys and 32 values a head, and their scales if they "
                   "are bytes");
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

RowsView rows_view(const Ints& positions, const Ints& sequences, const Tables& tables, size_t rows,
                   const CacheView& cache, bool whole_prefix, int64_t window) {
  require(positions.shape(0) == rows && sequences.shape(0) == rows,
          "positions and sequences must have one entry a row");
  RowsView view{static_cast<int64_t>(rows),
                positions.data(),
                sequences.data(),
                tables.data(),
                static_cast<int64_t>(tables.shape(0)),
                static_cast<int64_t>(tables.shape(1))};
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

// Where the rows of a batch lie, which of them ask if not all do, and their angles.
struct Places {
  const Cache& cache;
  const Ints &positions, &sequences;
  const Tables& tables;
  const std::optional<Ints>& chosen;
  const Rows &cos, &sin;
};

// What rope_cache_attention() takes of them, checked, for n rows of `columns` columns of keys.
struct Attended {
  CacheView cache;
  RowsView rows;
  RotationView rotation;

  // columns and values: of all heads' keys and values.
  Attended(const Places& p, size_t n, size_t columns, size_t values, bool interleaved,
           int64_t window) {
    const size_t kv_heads = p.cache.shape(1);
    require(kv_heads > 0 && columns > 0 && columns % kv_heads == 0 && values > 0 &&
                values % kv_heads == 0,
            "k and v must have a whole number of columns a head of the cache");
    const size_t dim = columns / kv_heads;
    cache = cache_view(p.cache, static_cast<int>(dim), 0, static_cast<int>(values / kv_heads));
    for (size_t i = 0; p.chosen && i < p.chosen->shape(0); ++i)
      require(p.chosen->data()[i] >= 0 && static_cast<size_t>(p.chosen->data()[i]) < n,
              "a row that asks is not there");
    require(!p.cos == !p.sin && (!p.cos || (p.cos->shape(0) == n && p.sin->shape(0) == n &&
                                            p.cos->shape(1) == p.sin->shape(1))),
            "cos and sin must have one row a row of k");
    require(!p.cos || 2 * p.cos->shape(1) <= dim, "more rotary dimensions than the head has");
    require(window >= 0, "the window must not be negative");
    if (p.cos)
      rotation = {p.cos->data(), p.sin->data(), static_cast<int>(p.cos->shape(1)), interleaved};
    rows = rows_view(p.positions, p.sequences, p.tables, n, cache, true, window);
  }
};

HeadNorms head_norms(const Vector& q, const Vector& k, size_t dim, float eps, bool last) {
  require((!q || q->shape(0) == dim) && (!k || k->shape(0) == dim),
          "a head's norm must have one entry a column");
  return {q ? q->data() : nullptr, k ? k->data() : nullptr, eps, last};
}

Scoring scoring_of(float scale, int64_t window, const Vector& sinks, float value_scale,
                   size_t heads) {
  require(window >= 0, "the window must not be negative");
  require(!sinks || sinks->shape(0) == heads, "sinks must have one entry a query head");
  return {scale, window, sinks ? sinks->data() : nullptr, value_scale};
}

Result<float> rope_cache_attention_rows(InOut<float, 2> q, InOut<float, 2> k, const Floats& v,
                                        const Cache& cache, const Ints& positions,
                                        const Ints& sequences, const Tables& tables,
                                        const std::optional<Ints>& chosen, const Rows& cos,
                                        const Rows& sin, bool interleaved, const Vector& q_norm,
                                        const Vector& k_norm, float eps, bool norm_last,
                                        float scale, int64_t window, const Vector& sinks,
                                        float value_scale, int threads) {
  check_threads(threads);
  const size_t n = k.shape(0);
  const Attended to({cache, positions, sequences, tables, chosen, cos, sin}, n, k.shape(1),
                    v.shape(1), interleaved, window);
  const auto dim = static_cast<size_t>(to.cache.head_dim);
  require(v.shape(0) == n, "k and v must have the same rows");
  require(q.shape(1) > 0 && q.shape(1) % k.shape(1) == 0,
          "query heads must be a multiple of the cache's heads");
  require(q.shape(0) == (chosen ? chosen->shape(0) : n), "q must have one row a row that asks");
  const HeadNorms norms = head_norms(q_norm, k_norm, dim, eps, norm_last);
  const size_t heads = q.shape(1) / dim;
  const Scoring scoring = scoring_of(scale, window, sinks, value_scale, heads);
  auto out = fresh<float>({q.shape(0), heads * static_cast<size_t>(to.cache.value_dim())});
  const GilReleased release;
  rope_cache_attention({q.data(), k.data(), v.data(), static_cast<int>(heads),
                        chosen ? chosen->data() : nullptr, static_cast<int64_t>(q.shape(0))},
                       norms, to.rotation, to.cache, to.rows, scoring, out.data(), threads);
  return out;
}

// A layer of grouped-query attention, all of it in one call: of a small model's step, calls were a
// fifth.
struct AttentionLayerKernel {
  nb::object owners;                   // of the matrices
  std::vector<const Matrix*> weights;  // q, k, v, o
  std::vector<Vector> biases;
  Vector q_norm, k_norm, sinks;
  size_t dim;
  HeadNorms norms;
  bool interleaved, exact;
  Scoring scoring;
  int threads;

  AttentionLayerKernel(nb::list projections, std::vector<Vector> their_biases, size_t head_dim,
                       Vector norm_q, Vector norm_k, float eps, bool norm_last, bool neighbours,
                       float scale, int64_t window, Vector head_sinks, float value_scale,
                       bool in_floats, int team)
      : owners(projections),
        weights(nb::cast<std::vector<const Matrix*>>(projections)),
        biases(std::move(their_biases)),
        q_norm(std::move(norm_q)),
        k_norm(std::move(norm_k)),
        sinks(std::move(head_sinks)),
        dim(head_dim),
        norms(head_norms(q_norm, k_norm, head_dim, eps, norm_last)),
        interleaved(neighbours),
        exact(in_floats),
        threads(team) {
    check_threads(threads);
    require(weights.size() == 4 && biases.size() == 4,
            "attention has four projections: q, k, v and o");
    for (size_t i = 0; i < 3; ++i) check_product(*weights[i], biases[i], hidden());
    require(dim > 0 && keys() > 0 && keys() % static_cast<int64_t>(dim) == 0 &&
                values() % (keys() / static_cast<int64_t>(dim)) == 0,
            "k and v must have whole heads, as many of one as of the other");
    require(wide() % keys() == 0, "query heads must be a multiple of the cache's heads");
    check_product(*weights[3], biases[3], gathered());
    require(weights[3]->view.rows == hidden(), "o must give what q takes");
    scoring = scoring_of(scale, window, sinks, value_scale, static_cast<size_t>(wide()) / dim);
  }
  int64_t hidden() const { return weights[0]->view.cols; }
  int64_t wide() const { return weights[0]->view.rows; }
  int64_t keys() const { return weights[1]->view.rows; }
  int64_t values() const { return weights[2]->view.rows; }
  int64_t gathered() const { return wide() / keys() * values(); }  // what o takes
  Product part(size_t i, float* out, const float* add = nullptr) const {
    return {weights[i]->view,  biases[i] ? biases[i]->data() : nullptr, add, out, 0,
            weights[i]->sums()};
  }

  Result<float> run(Activations& x, const Cache& cache, const Ints& positions,
                    const Ints& sequences, const Tables& tables, const std::optional<Ints>& chosen,
                    const Rows& cos, const Rows& sin, const Rows& add) const {
    require(x.cols() == hidden(), "x does not have the layer's width");
    const size_t n = x.x.shape(0), asking = chosen ? chosen->shape(0) : n;
    const Attended to({cache, positions, sequences, tables, chosen, cos, sin}, n,
                      static_cast<size_t>(keys()), static_cast<size_t>(values()), interleaved,
                      scoring.window);
    require(static_cast<size_t>(to.cache.head_dim) == dim, "the cache has heads of another size");
    auto out = fresh<float>({asking, static_cast<size_t>(hidden())});
    auto result = fresh<float, In<float, 2>>({asking, static_cast<size_t>(gathered())});
    const float* added = addend(add, asking, static_cast<size_t>(hidden()));
    std::optional<Activations> some;
    if (chosen) some.emplace(x.take(*chosen));
    Activations attended(result);
    const GilReleased release;
    PooledBuffer<float> q(asking * static_cast<size_t>(wide())), k(n * static_cast<size_t>(keys())),
        v(n * static_cast<size_t>(values()));
    if (some) {
      multiply(*some, {part(0, q.data())}, exact, threads);
      multiply(x, {part(1, k.data()), part(2, v.data())}, exact, threads);
    } else {
      multiply(x, {part(0, q.data()), part(1, k.data()), part(2, v.data())}, exact, threads);
    }
    rope_cache_attention(
        {q.data(), k.data(), v.data(), static_cast<int>(wide()) / to.cache.head_dim,
         chosen ? chosen->data() : nullptr, static_cast<int64_t>(asking)},
        norms, to.rotation, to.cache, to.rows, scoring, const_cast<float*>(result.data()), threads);
    multiply(attended, {part(3, out.data(), added)}, exact, threads);
    return out;
  }
};

Result<float> head_matmul_rows(const In<float, 3>& x, const Matrix& w, int64_t first,
                               int64_t outputs, int64_t room, bool exact, int threads) {
  check_threads(threads);
  const auto heads = static_cast<int64_t>(x.shape(1));
  require(heads > 0 && w.view.rows % heads == 0,
          "the matrix must have as many rows for every head");
  const int64_t period = w.view.rows / heads;
  require(period % kPanel == 0 && first % kPanel == 0,
          "a head's rows must begin at a multiple of 16");
  require(first >= 0 && outputs > 0 && first <= period && outputs <= period - first,
          "a head does not have these rows");
  require(static_cast<int64_t>(x.shape(2)) >= w.view.cols,
          "x has fewer columns a head than the matrix");
  require(room >= outputs, "no room for a head's outputs");
  auto out = fresh<float>({x.shape(0), x.shape(1), static_cast<size_t>(room)});
  const HeadProduct product{
      w.view, heads, first, outputs, x.data(), static_cast<int64_t>(x.shape(2)), out.data(), room};
  const GilReleased release;
  head_matmul(product, static_cast<int64_t>(x.shape(0)), exact, threads);
  return out;
}

}  // namespace

void bind_attention(nb::module_& m) {
  const auto maybe = nb::arg().noconvert().none();
  m.def(
      "write_cache",
      [](const In<float, 3>& k, const In<float, 3>& v, const Cache& cache, const Ints& positions,
         const Ints& sequences, const Tables& tables) {
        require(v.shape(2) > 0, "v must have columns");
        const CacheView view =
            cache_view(cache, static_cast<int>(k.shape(2)), 0, static_cast<int>(v.shape(2)));
        for (int i = 0; i < 2; ++i)
          require(k.shape(i) == v.shape(i), "k and v must have the same rows and heads");
        require(static_cast<int>(k.shape(1)) == view.kv_heads, "k does not have the cache's heads");
        const RowsView rows = rows_view(positions, sequences, tables, k.shape(0), view, false, 0);
        const GilReleased release;
        write_cache(k.data(), v.data(), view, rows);
      },
      strict, strict, strict, strict, strict, strict);

  m.def(
      "paged_attention",
      [](const In<float, 3>& q, const Cache& cache, const Ints& positions, const Ints& sequences,
         const Tables& tables, float scale, int64_t window, const Vector& sinks, size_t values,
         float value_scale, int threads) {
        check_threads(threads);
        require(values < (1 << 24), "a value is too wide");
        const CacheView view =
            cache_view(cache, static_cast<int>(q.shape(2)), 0, static_cast<int>(values));
        require(view.kv_heads > 0 && q.shape(1) > 0 &&
                    q.shape(1) % static_cast<size_t>(view.kv_heads) == 0,
                "query heads must be a multiple of the cache's heads");
        const Scoring scoring = scoring_of(scale, window, sinks, value_scale, q.shape(1));
        const RowsView rows =
            rows_view(positions, sequences, tables, q.shape(0), view, true, window);
        auto out = fresh<float>({q.shape(0), q.shape(1), static_cast<size_t>(view.value_dim())});
        const GilReleased release;
        ops().paged_attention(q.data(), static_cast<int>(q.shape(1)), view, rows, scoring,
                              out.data(), threads);
        return out;
      },
      strict, strict, strict, strict, strict, any, any, maybe, any, any, any);

  m.def("rope_cache_attention", &rope_cache_attention_rows, strict, strict, strict, strict, strict,
        strict, strict, maybe, maybe, maybe, any, maybe, maybe, any, any, any, any, maybe, any,
        any);

  nb::class_<AttentionLayerKernel>(m, "AttentionLayerKernel")
      .def(nb::init<nb::list, std::vector<Vector>, size_t, Vector, Vector, float, bool, bool, float,
                    int64_t, Vector, float, bool, int>(),
           nb::arg("weights"), nb::arg("biases"), nb::arg("head_dim"), nb::arg("q_norm").none(),
           nb::arg("k_norm").none(), nb::arg("eps"), nb::arg("norm_last"), nb::arg("interleaved"),
           nb::arg("scale"), nb::arg("window"), nb::arg("sinks").none(), nb::arg("value_scale"),
           nb::arg("exact"), nb::arg("threads"))
      .def("__call__", &AttentionLayerKernel::run, any, strict, strict, strict, strict, maybe,
           maybe, maybe, maybe);

  m.def(
      "write_latent",
      [](const Floats& latent, const Floats& rotated, const Cache& cache, const Ints& positions,
         const Ints& sequences, const Tables& tables) {
        require(latent.shape(0) == rotated.shape(0), "one latent and one rotated part a row");
        const CacheView view =
            latent_view(cache, latent.shape(1) + rotated.shape(1), latent.shape(1));
        const RowsView rows =
            rows_view(positions, sequences, tables, latent.shape(0), view, false, 0);
        const GilReleased release;
        write_latent(latent.data(), rotated.data(), view, rows);
      },
      strict, strict, strict, strict, strict, strict);

  m.def(
      "latent_attention",
      [](const In<float, 3>& q, const Cache& cache, const Ints& positions, const Ints& sequences,
         const Tables& tables, size_t latent, float scale, int threads) {
        check_threads(threads);
        require(q.shape(1) > 0, "no query heads");
        const CacheView view = latent_view(cache, q.shape(2), latent);
        const RowsView rows = rows_view(positions, sequences, tables, q.shape(0), view, true, 0);
        auto out = fresh<float>({q.shape(0), q.shape(1), latent});
        const GilReleased release;
        ops().paged_attention(q.data(), static_cast<int>(q.shape(1)), view, rows, {.scale = scale},
                              out.data(), threads);
        return out;
      },
      strict, strict, strict, strict, strict, any, any, any);

  m.def("head_matmul", &head_matmul_rows, strict, any, any, any, any, any, any);
}

}  // namespace dure
