// What Python sees. Checks shapes and ranges, so that no kernel ever does; computes nothing.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "bind/rows.h"
#include "ops/ops.h"
#include "ops/router.h"
#include "ops/sample.h"
#include "pack/filepacker.h"

using namespace dure;

namespace {

std::vector<Result<float>> matmul(Activations& a, const std::vector<const Matrix*>& weights,
                                  const std::vector<Vector>& biases, const Rows& add, bool exact,
                                  int threads) {
  check_threads(threads);
  require(biases.size() == weights.size(), "one bias, or none, a matrix");
  std::vector<Result<float>> results;
  std::vector<Product> products;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Packed& w = weights[i]->view;
    check_product(*weights[i], biases[i], a.cols());
    results.push_back(fresh<float>({a.x.shape(0), static_cast<size_t>(w.rows)}));
    products.push_back({w, biases[i] ? biases[i]->data() : nullptr,
                        addend(add, a.x.shape(0), static_cast<size_t>(w.rows)),
                        results.back().data()});
  }
  nb::gil_scoped_release release;
  multiply(a, products, exact, threads);
  return results;
}

struct Experts {
  ExpertSet set;
  std::unique_ptr<Buffer> buffer;

  Experts(int count, int64_t hidden, int64_t intermediate, const std::string& gate,
          const std::string& up, const std::string& down) {
    require(count > 0 && count <= 65536, "between 1 and 65,536 experts");
    set.count = count;
    set.hidden = hidden;
    set.intermediate = intermediate;
    set.gate = describe(gate, intermediate, hidden);
    set.up = describe(up, intermediate, hidden);
    set.down = describe(down, hidden, intermediate);
    set.stride = round_up(set.gate.bytes() + set.up.bytes() + set.down.bytes(), 4096);
    require(set.stride <= (size_t{1} << 46) / static_cast<size_t>(count),
            "the experts would take more than 64 TiB");
    buffer = std::make_unique<Buffer>(set.stride * static_cast<size_t>(count));
    set.gate.data = buffer->data;
    set.up.data = set.gate.data + set.gate.bytes();
    set.down.data = set.up.data + set.up.bytes();
  }
  Packed part_of(const std::string& part, int expert) const {
    require(expert >= 0 && expert < set.count, "no expert " + std::to_string(expert));
    require(part == "gate" || part == "up" || part == "down",
            "an expert's parts are gate, up and down");
    Packed p = part == "gate" ? set.gate : part == "up" ? set.up : set.down;
    p.data += set.stride * static_cast<size_t>(expert);
    return p;
  }
  void fill(const std::string& part, int expert, int64_t first_row, const In<uint8_t, 2>& raw,
            int threads) {
    check_threads(threads);
    const Packed p = part_of(part, expert);
    check_source(p, first_row, raw);
    nb::gil_scoped_release release;
    pack_rows(p, first_row, static_cast<int64_t>(raw.shape(0)), raw.data(), threads);
  }
};

Result<float> run_experts(Activations& a, const int32_t* ids, const float* weights, int k,
                          const Experts& e, const Rows& add, bool exact, int threads) {
  check_threads(threads);
  require(a.cols() == e.set.hidden, "x does not have the experts' width");
  const float* added = addend(add, a.x.shape(0), a.x.shape(1));
  auto out = fresh<float>({a.x.shape(0), a.x.shape(1)});
  if (a.rows() == 0) return out;
  nb::gil_scoped_release release;
  const bool as_float = experts_use_floats(e.set, exact);
  const ActTiles* tiles = as_float ? nullptr : &a.as_tiles(threads);
  ops().experts(tiles, as_float ? a.as_floats(threads) : nullptr, a.rows(), ids, weights, k, e.set,
                added, out.data(), threads);
  return out;
}

Result<float> experts_mlp(Activations& a, const In<int32_t, 2>& ids, const In<float, 2>& weights,
                          const Experts& e, const Rows& add, bool exact, int threads) {
  const size_t n = a.x.shape(0), k = ids.shape(1);
  require(ids.shape(0) == n && weights.shape(0) == n && weights.shape(1) == k && k > 0,
          "ids and weights must be (n, k)");
  for (size_t i = 0; i < n * k; ++i)
    require(ids.data()[i] >= 0 && ids.data()[i] < e.set.count, "expert id out of range");
  return run_experts(a, ids.data(), weights.data(), static_cast<int>(k), e, add, exact, threads);
}

Result<float> gated_mlp(Activations& a, const Experts& e, const Rows& add, bool exact,
                        int threads) {
  const std::vector<int32_t> ids(a.x.shape(0), 0);
  const std::vector<float> weights(a.x.shape(0), 1.0f);
  return run_experts(a, ids.data(), weights.data(), 1, e, add, exact, threads);
}

// Returns FilePacker::run's code; what `report` raises goes on to the caller.
int run_packer(FilePacker& packer, int descriptor, int threads, double seconds,
               const nb::object& report) {
  check_threads(threads);
  std::exception_ptr raised;
  const auto tell = [&](uint64_t done) {
    const nb::gil_scoped_acquire acquire;
    try {
      report(done);
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    } catch (...) { raised = std::current_exception(); }
    return raised == nullptr;
  };
  int result = 0;
  {
    const nb::gil_scoped_release release;
    result = packer.run(descriptor, threads, seconds, tell);
  }
  if (raised) std::rethrow_exception(raised);
  return result;
}

GroupRule group_rule(const std::string& name) {
  for (const auto& [text, rule] : {std::pair{"none", GroupRule::none},
                                   {"max", GroupRule::max},
                                   {"top2", GroupRule::top2},
                                   {"each", GroupRule::each}})
    if (name == text) return rule;
  throw std::invalid_argument("no group rule " + name);
}

nb::tuple route_rows(const Floats& logits, int k, bool sigmoid, const Vector& bias,
                     const std::string& rule, int groups, int kept, bool normalize, float scale,
                     const Vector& scales) {
  const int experts = static_cast<int>(logits.shape(1));
  Router router{
      experts, k,         sigmoid, bias ? bias->data() : nullptr,    group_rule(rule), groups,
      kept,    normalize, scale,   scales ? scales->data() : nullptr};
  require(k >= 1 && k <= experts, "top_k must be between 1 and the number of experts");
  require((!bias || bias->shape(0) == logits.shape(1)) &&
              (!scales || scales->shape(0) == logits.shape(1)),
          "bias and scales must have one entry an expert");
  if (router.rule != GroupRule::none) {
    require(groups >= 1 && experts % groups == 0, "the groups must divide the experts");
    require(kept >= 1 && kept <= groups, "the groups kept must be between 1 and all");
    if (router.rule == GroupRule::each)
      require(k % groups == 0, "top_k must be a multiple of the groups");
    else require(k <= kept * (experts / groups), "the groups kept must have top_k experts");
  }
  auto ids = fresh<int32_t>({logits.shape(0), static_cast<size_t>(k)});
  auto weights = fresh<float>({logits.shape(0), static_cast<size_t>(k)});
  route(logits.data(), static_cast<int64_t>(logits.shape(0)), router, ids.data(), weights.data());
  return nb::make_tuple(ids, weights);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Kernels. Use dure.kernels, which documents and types them.";
  m.def("isa", [] { return ops().name; });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Ops* o : available_ops()) names.emplace_back(o->name);
    return names;
  });
  m.def("release_free_memory", [] {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
  });
  m.def("packed_bytes", [](const std::string& dtype, int64_t rows, int64_t cols) {
    return describe(dtype, rows, cols).bytes();
  });

  bind_states(m);
  bind_attention(m);
  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const std::string&, int64_t, int64_t>())
      .def("fill", &Matrix::fill, any, strict, any)
      .def("row_values", &Matrix::row_values, strict, any)
      .def_prop_ro("dtype", [](const Matrix& w) { return sizes_of(w.view.type).name; })
      .def_prop_ro("rows", [](const Matrix& w) { return w.view.rows; })
      .def_prop_ro("cols", [](const Matrix& w) { return w.view.cols; })
      .def_prop_ro("nbytes", [](const Matrix& w) { return w.view.bytes(); });

  nb::class_<Activations>(m, "Activations")
      .def(nb::init<In<float, 2>>(), strict)
      .def(nb::init<In<float, 2>, In<float, 1>, float>(), strict, strict, any)
      .def("floats",
           [](Activations& a, int threads) {
             check_threads(threads);
             auto out = fresh<float>({a.x.shape(0), a.x.shape(1)});
             std::memcpy(out.data(), a.as_floats(threads), a.x.size() * sizeof(float));
             return out;
           })
      .def("take", &Activations::take, strict)
      .def_prop_ro("shape",
                   [](const Activations& a) { return nb::make_tuple(a.x.shape(0), a.x.shape(1)); });

  const auto maybe = nb::arg().noconvert().none();
  m.def("matmul", &matmul, any, any, strict, maybe, any, any);

  m.def(
      "quantize_rows",
      [](const In<float, 2>& x) {
        require(x.shape(1) % kBlock == 0, "columns must be a multiple of 32");
        auto values = fresh<int8_t>({x.shape(0), x.shape(1)});
        auto scales = fresh<float>({x.shape(0), x.shape(1) / kBlock});
        ops().quantize_rows(x.data(), static_cast<int64_t>(x.shape(0)),
                            static_cast<int64_t>(x.shape(1)), values.data(), scales.data());
        return nb::make_tuple(values, scales);
      },
      strict);

  m.def(
      "quantize_blocks",
      [](const std::string& dtype, const In<float, 2>& x, int threads) {
        check_threads(threads);
        const Type type = type_from_name(dtype);
        require(type == Type::Q4_0 || type == Type::Q5_0 || type == Type::Q8_0 ||
                    type == Type::Q4_K || type == Type::Q6_K,
                "floats are quantised to Q4_0, Q5_0, Q8_0, Q4_K and Q6_K, not to " + dtype);
        require(x.shape(1) % sizes_of(type).source_columns == 0,
                dtype + " needs columns in multiples of " +
                    std::to_string(sizes_of(type).source_columns));
        auto out =
            fresh<uint8_t>({x.shape(0), source_row_bytes(type, static_cast<int64_t>(x.shape(1)))});
        bool fits;
        {
          nb::gil_scoped_release release;
          fits = ops().quantize_blocks(type, x.data(), static_cast<int64_t>(x.size()), out.data(),
                                       threads);
        }
        require(fits, "a weight is not finite, or beyond what " + dtype + " can hold");
        return out;
      },
      any, strict, any);

  m.def(
      "rms_norm",
      [](const In<float, 2>& x, const In<float, 1>& weight, float eps, int threads) {
        check_threads(threads);
        require(weight.shape(0) == x.shape(1), "the weight must have one entry a column");
        auto out = fresh<float>({x.shape(0), x.shape(1)});
        nb::gil_scoped_release release;
        ops().rms_norm(x.data(), static_cast<int64_t>(x.shape(0)), static_cast<int64_t>(x.shape(1)),
                       weight.data(), eps, out.data(), threads);
        return out;
      },
      strict, strict, any, any);

  m.def(
      "rope",
      [](InOut<float, 3> x, const In<float, 2>& cos, const In<float, 2>& sin, bool interleaved,
         int threads) {
        check_threads(threads);
        require(cos.shape(0) == x.shape(0) && sin.shape(0) == x.shape(0) &&
                    cos.shape(1) == sin.shape(1),
                "cos and sin must have one row a row of x");
        require(2 * cos.shape(1) <= x.shape(2), "more rotary dimensions than the head has");
        nb::gil_scoped_release release;
        ops().rope(x.data(), static_cast<int64_t>(x.shape(0)), static_cast<int>(x.shape(1)),
                   static_cast<int>(x.shape(2)), cos.data(), sin.data(),
                   static_cast<int>(cos.shape(1)), interleaved, threads);
      },
      strict, strict, strict, any, any);

  m.def(
      "silu_mul",
      [](const In<float, 2>& gate, const In<float, 2>& up, int threads) {
        check_threads(threads);
        require(gate.shape(0) == up.shape(0) && gate.shape(1) == up.shape(1),
                "gate and up must have one shape");
        auto out = fresh<float>({gate.shape(0), gate.shape(1)});
        nb::gil_scoped_release release;
        ops().silu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data(),
                       threads);
        return out;
      },
      strict, strict, any);

  m.def("route", &route_rows, strict, any, any, maybe, any, any, any, any, any, maybe);

  nb::class_<Experts>(m, "Experts")
      .def(nb::init<int, int64_t, int64_t, const std::string&, const std::string&,
                    const std::string&>())
      .def("fill", &Experts::fill, any, any, any, strict, any)
      .def_prop_ro("count", [](const Experts& e) { return e.set.count; })
      .def_prop_ro("nbytes", [](const Experts& e) {
        return e.set.stride * static_cast<size_t>(e.set.count);
      });
  nb::class_<FilePacker>(m, "FilePacker")
      .def(nb::init<>())
      .def(
          "add_matrix",
          [](FilePacker& f, const Matrix& w, uint64_t offset) { f.add(w.view, offset); },
          nb::keep_alive<1, 2>())
      .def(
          "add_part",
          [](FilePacker& f, const Experts& e, const std::string& part, int expert,
             uint64_t offset) { f.add(e.part_of(part, expert), offset); },
          nb::keep_alive<1, 2>())
      .def("run", &run_packer);
  m.def("experts_mlp", &experts_mlp, any, strict, strict, any, maybe, any, any);
  m.def("gated_mlp", &gated_mlp, any, any, maybe, any, any);

  m.def("uniform", [](uint64_t seed, uint64_t position) { return uniform(seed, position); });
  m.def(
      "sample_rows",
      [](const Floats& logits, const std::vector<double>& temperatures,
         const std::vector<int64_t>& top_ks, const std::vector<double>& top_ps,
         const std::vector<double>& min_ps, const std::vector<double>& uniforms, int threads) {
        check_threads(threads);
        const size_t n = logits.shape(0);
        require(logits.shape(1) > 0, "no logits");
        require(temperatures.size() == n && top_ks.size() == n && top_ps.size() == n &&
                    min_ps.size() == n && uniforms.size() == n,
                "every row needs its sampling parameters");
        std::vector<Filter> filters;
        for (size_t i = 0; i < n; ++i) {
          filters.push_back({temperatures[i], top_ks[i], top_ps[i], min_ps[i]});
          const Filter& f = filters.back();
          require(f.temperature >= 0 && f.top_k >= 0 && f.top_p > 0 && f.top_p <= 1 &&
                      f.min_p >= 0 && f.min_p <= 1 && uniforms[i] >= 0 && uniforms[i] < 1,
                  "a sampling parameter is out of range");
        }
        std::vector<int32_t> ids(n);
        {
          nb::gil_scoped_release release;
          sample_rows(logits.data(), static_cast<int64_t>(n), static_cast<int64_t>(logits.shape(1)),
                      filters.data(), uniforms.data(), ids.data(), threads);
        }
        return ids;
      },
      strict, any, any, any, any, any, any);
  m.def(
      "log_sum_exp",
      [](const In<float, 1>& logits) {
        require(logits.shape(0) > 0, "no logits");
        return log_sum_exp(logits.data(), static_cast<int64_t>(logits.shape(0)));
      },
      strict);
  m.def(
      "top_logprobs",
      [](const In<float, 1>& logits, int64_t count) {
        require(count >= 0 && static_cast<size_t>(count) <= logits.shape(0) && logits.shape(0) > 0,
                "count must be between 0 and the vocabulary");
        auto ids = fresh<int32_t>({static_cast<size_t>(count)});
        auto logprobs = fresh<float>({static_cast<size_t>(count)});
        top_logprobs(logits.data(), static_cast<int64_t>(logits.shape(0)), count, ids.data(),
                     logprobs.data());
        return nb::make_tuple(ids, logprobs);
      },
      strict, any);
}
