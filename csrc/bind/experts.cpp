// What Python sees of mixtures of experts: the router and the experts. Checks, as in
// bind/module.cpp.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/experts.h"
#include "bind/rows.h"
#include "ops/router.h"

namespace dure {

namespace {

Result<float> run_experts(Activations& a, const int32_t* ids, const float* weights, size_t k,
                          const Experts& e, const Rows& add, bool exact, int threads) {
  check_threads(threads);
  require(a.cols() == e.shape().hidden, "x does not have the experts' width");
  const Experts::Call call = e.call(ids, a.x.shape(0) * k);
  const float* added = addend(add, a.x.shape(0), a.x.shape(1));
  auto out = fresh<float>({a.x.shape(0), a.x.shape(1)});
  if (a.rows() == 0) return out;
  const GilReleased release;
  const bool as_float = experts_use_floats(call.set, exact);
  const ActTiles* tiles = as_float ? nullptr : &a.as_tiles(threads);
  ops().experts(tiles, as_float ? a.as_floats(threads) : nullptr, a.rows(), ids, weights,
                static_cast<int>(k), call.set, added, out.data(), threads);
  return out;
}

Result<float> experts_mlp(Activations& a, const In<int32_t, 2>& ids, const In<float, 2>& weights,
                          const Experts& e, const Rows& add, bool exact, int threads) {
  const size_t n = a.x.shape(0), k = ids.shape(1);
  require(ids.shape(0) == n && weights.shape(0) == n && weights.shape(1) == k && k > 0,
          "ids and weights must be (n, k)");
  return run_experts(a, ids.data(), weights.data(), k, e, add, exact, threads);
}

Result<float> gated_mlp(Activations& a, const Experts& e, const Rows& add, bool exact,
                        int threads) {
  const std::vector<int32_t> ids(a.x.shape(0), 0);
  const std::vector<float> weights(a.x.shape(0), 1.0f);
  return run_experts(a, ids.data(), weights.data(), 1, e, add, exact, threads);
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

void bind_experts(nb::module_& m) {
  const auto maybe = nb::arg().noconvert().none();
  m.def("route", &route_rows, strict, any, any, maybe, any, any, any, any, any, maybe);
  m.def("experts_mlp", &experts_mlp, any, strict, strict, any, maybe, any, any);
  m.def("gated_mlp", &gated_mlp, any, any, maybe, any, any);
}

}  // namespace dure
