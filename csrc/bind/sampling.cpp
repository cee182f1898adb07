// What Python sees of sampling: checks, as in bind/module.cpp.
#include <nanobind/stl/vector.h>

#include "bind/rows.h"
#include "ops/sample.h"

namespace dure {

void bind_sampling(nb::module_& m) {
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
          const GilReleased release;
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

}  // namespace dure
