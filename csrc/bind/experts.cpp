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
  if (e.is_watched())
    e.see(a.as_floats(threads), ids, static_cast<int64_t>(a.x.shape(0) * k),
          static_cast<int64_t>(k), nullptr, threads);
  const bool as_float = experts_use_floats(call.set, exact);
  const ActTiles* tiles = as_float ? nullptr : &a.as_tiles(threads);
  const int64_t pairs = a.rows() * static_cast<int64_t>(k);
  const int64_t columns = columns_at_once(pairs, a.cols());
  PooledBuffer<float> products(static_cast<size_t>(pairs * columns));
  ops().experts(tiles, as_float ? a.as_floats(threads) : nullptr, a.rows(), ids, weights,
                static_cast<int>(k), call.set,
                {products.data(), columns, nullptr, added, out.data()}, threads);
  return out;
}

// A mixture whose experts are multiplied by in several calls, as they come.
class ExpertsPass {
 public:
  ExpertsPass(Activations& a, In<int32_t, 2> ids, In<float, 2> weights, bool exact, int threads)
      : a_(a),
        ids_(std::move(ids)),
        weights_(std::move(weights)),
        exact_(exact),
        threads_(threads) {
    check_threads(threads);
    require(ids_.shape(0) == a.x.shape(0) && weights_.shape(0) == ids_.shape(0) &&
                weights_.shape(1) == ids_.shape(1) && ids_.shape(1) > 0,
            "ids and weights must be (n, k)");
    products_ = PooledBuffer<float>(a.x.size() * ids_.shape(1));
  }

  // Multiplies by `experts` of the set, which must be in memory.
  void run(const Experts& set, const std::vector<int>& experts) {
    require(a_.cols() == set.shape().hidden, "x does not have the experts' width");
    const std::vector<uint8_t> chosen = mask(set, experts);
    const Experts::Call call = set.call(experts.data(), experts.size());
    const GilReleased release;
    if (set.is_watched())
      set.see(a_.as_floats(threads_), ids_.data(), static_cast<int64_t>(ids_.size()),
              static_cast<int64_t>(ids_.shape(1)), chosen.data(), threads_);
    compute(call.set, {products_.data(), a_.cols(), chosen.data(), nullptr, nullptr});
  }
  // Makes the experts' products zero: of those that cannot be had.
  void leave_out(const Experts& set, const std::vector<int>& experts) {
    const std::vector<uint8_t> chosen = mask(set, experts);
    const size_t width = a_.x.shape(1);
    for (size_t pair = 0; pair < ids_.size(); ++pair)
      if (chosen[static_cast<size_t>(ids_.data()[pair])])
        std::fill_n(products_.data() + pair * width, width, 0.0f);
  }
  // The weighted sum of what was computed, which must be all of it.
  Result<float> sum(const Experts& set, const Rows& add) {
    const float* added = addend(add, a_.x.shape(0), a_.x.shape(1));
    const std::vector<uint8_t> none(static_cast<size_t>(set.shape().count), 0);
    auto out = fresh<float>({a_.x.shape(0), a_.x.shape(1)});
    const GilReleased release;
    compute(set.shape(), {products_.data(), a_.cols(), none.data(), added, out.data()});
    return out;
  }

 private:
  std::vector<uint8_t> mask(const Experts& set, const std::vector<int>& experts) const {
    const auto count = static_cast<size_t>(set.shape().count);
    for (size_t i = 0; i < ids_.size(); ++i)
      require(ids_.data()[i] >= 0 && static_cast<size_t>(ids_.data()[i]) < count,
              "expert id out of range");
    std::vector<uint8_t> chosen(count, 0);
    for (const int expert : experts) {
      require(expert >= 0 && static_cast<size_t>(expert) < count, "expert id out of range");
      chosen[static_cast<size_t>(expert)] = 1;
    }
    return chosen;
  }
  void compute(const ExpertSet& set, const ExpertsPart& part) {
    if (a_.rows() == 0) return;
    const bool as_float = experts_use_floats(set, exact_);
    const ActTiles* tiles = as_float ? nullptr : &a_.as_tiles(threads_);
    ops().experts(tiles, as_float ? a_.as_floats(threads_) : nullptr, a_.rows(), ids_.data(),
                  weights_.data(), static_cast<int>(ids_.shape(1)), set, part, threads_);
  }

  Activations& a_;
  In<int32_t, 2> ids_;
  In<float, 2> weights_;
  bool exact_;
  int threads_;
  PooledBuffer<float> products_;
};

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

Result<double> near_uses(const Floats& scores, int k, double near) {
  const auto experts = static_cast<int>(scores.shape(1));
  require(k >= 1 && k <= experts, "top_k must be between 1 and the number of experts");
  auto uses = fresh<double>({scores.shape(1)});
  std::fill_n(uses.data(), uses.size(), 0.0);
  count_near(scores.data(), static_cast<int64_t>(scores.shape(0)), experts, k, near, uses.data());
  return uses;
}

}  // namespace

void bind_experts(nb::module_& m) {
  const auto maybe = nb::arg().noconvert().none();
  m.def("route", &route_rows, strict, any, any, maybe, any, any, any, any, any, maybe);
  m.def("near_uses", &near_uses, strict, any, any);
  m.def("experts_mlp", &experts_mlp, any, strict, strict, any, maybe, any, any);
  m.def("gated_mlp", &gated_mlp, any, any, maybe, any, any);

  nb::class_<ExpertsPass>(m, "ExpertsPass")
      .def(nb::init<Activations&, In<int32_t, 2>, In<float, 2>, bool, int>(), any, strict, strict,
           any, any, nb::keep_alive<1, 2>())
      .def("run", &ExpertsPass::run)
      .def("leave_out", &ExpertsPass::leave_out)
      .def("sum", &ExpertsPass::sum, any, maybe);
}

}  // namespace dure
