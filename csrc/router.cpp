// Which experts a token goes to, and with what weight.
#include "router.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace dure {

void route(const float* logits, int64_t n, int experts, int k, bool normalize, bool sigmoid, int32_t* ids, float* weights) {
  std::vector<float> scores(static_cast<size_t>(experts));
  std::vector<int32_t> order(scores.size());
  for (int64_t i = 0; i < n; ++i, logits += experts, ids += k, weights += k) {
    if (sigmoid) {
      for (int e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    } else {
      const float peak = *std::max_element(logits, logits + experts);
      float total = 0;
      for (int e = 0; e < experts; ++e) total += scores[e] = std::exp(logits[e] - peak);
      for (float& s : scores) s /= total;
    }
    std::iota(order.begin(), order.end(), 0);
    // A NaN compares false both ways, which no sort survives: it counts as the lowest.
    auto rank = [&](int32_t e) { return std::isnan(scores[e]) ? -1.0f : scores[e]; };
    std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t a, int32_t b) {
      return rank(a) != rank(b) ? rank(a) > rank(b) : a < b;
    });
    float total = 0;
    for (int j = 0; j < k; ++j) total += scores[order[j]];
    for (int j = 0; j < k; ++j) {
      ids[j] = order[j];
      weights[j] = normalize ? scores[order[j]] / total : scores[order[j]];
    }
  }
}

}  // namespace dure
