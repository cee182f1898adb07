// What Python sees. Checks shapes and ranges, so that no kernel ever does; computes nothing.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "bind/rows.h"
#include "ops/ops.h"

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
                        results.back().data(), 0, weights[i]->sums()});
  }
  const GilReleased release;
  multiply(a, products, exact, threads);
  return results;
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Kernels. Use dure.kernels, which documents and types them.";
  m.def("isa", [] { return ops().name; });
#ifdef NDEBUG
  m.attr("asserts") = false;
#else
  m.attr("asserts") = true;  // of a build for sanitizers
#endif
  // Threads that still wait for a lock when the interpreter ends keep their models: nothing to
  // report to users. Tests turn the report on.
  nb::set_leak_warnings(false);
  m.def("set_leak_warnings", [](bool on) { nb::set_leak_warnings(on); });
  nb::module_::import_("atexit").attr("register")(nb::cpp_function([] { exit_gate().close(); }));
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
  bind_weights(m);
  bind_experts(m);
  bind_states(m);
  bind_attention(m);
  bind_sampling(m);
  bind_suffix_automaton(m);
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
      "rms_norm",
      [](const In<float, 2>& x, const In<float, 1>& weight, float eps, int threads) {
        check_threads(threads);
        require(weight.shape(0) == x.shape(1), "the weight must have one entry a column");
        auto out = fresh<float>({x.shape(0), x.shape(1)});
        const GilReleased release;
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
        const GilReleased release;
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
        const GilReleased release;
        ops().silu_mul(gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data(),
                       threads);
        return out;
      },
      strict, strict, any);
}
