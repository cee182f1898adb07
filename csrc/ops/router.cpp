// Which experts a token goes to, and with what weight.
#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace dure {

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr float kTiny = 1e-20f;  // keeps chosen scores that are all 0 from becoming not-a-number

void score(const float* logits, const Router& router, std::vector<float>& scores) {
  if (router.sigmoid) {
    for (int e = 0; e < router.experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float peak = *std::max_element(logits, logits + router.experts);
  float total = 0;
  for (int e = 0; e < router.experts; ++e) total += scores[e] = std::exp(logits[e] - peak);
  for (float& s : scores) s /= total;
}

// [first, first + count) become the ids in [first, last) of the highest ranks, falling, ties to the
// lower id.
void best(const std::vector<float>& ranks, int32_t* first, int32_t* last, int count) {
  std::partial_sort(first, first + count, last, [&](int32_t a, int32_t b) {
    return ranks[a] != ranks[b] ? ranks[a] > ranks[b] : a < b;
  });
}

float worth(const float* ranks, int size, GroupRule rule) {
  float most = kLowest, second = kLowest;
  for (int e = 0; e < size; ++e) {
    if (ranks[e] > most) second = std::exchange(most, ranks[e]);
    else second = std::max(second, ranks[e]);
  }
  const float sum = rule == GroupRule::top2 && size > 1 ? most + second : most;
  return std::isnan(sum) ? kLowest : sum;
}

// The experts that may be chosen: all, those of the best groups, or the best few of each group.
int candidates(const Router& router, const std::vector<float>& ranks, std::vector<int32_t>& ids) {
  std::iota(ids.begin(), ids.end(), 0);
  if (router.rule == GroupRule::none) return router.experts;
  const int size = router.experts / router.groups;
  if (router.rule == GroupRule::each) {
    const int each = router.k / router.groups;
    for (int g = 0; g < router.groups; ++g) {
      best(ranks, ids.data() + g * size, ids.data() + (g + 1) * size, each);
      std::copy_n(ids.begin() + g * size, each, ids.begin() + g * each);
    }
    return router.k;
  }
  std::vector<float> worths(static_cast<size_t>(router.groups));
  std::vector<int32_t> order(worths.size());
  for (int g = 0; g < router.groups; ++g)
    worths[g] = worth(ranks.data() + g * size, size, router.rule);
  std::iota(order.begin(), order.end(), 0);
  best(worths, order.data(), order.data() + router.groups, router.kept);
  for (int i = 0; i < router.kept; ++i)
    std::iota(ids.begin() + i * size, ids.begin() + (i + 1) * size, order[i] * size);
  return router.kept * size;
}

}  // namespace

void route(const float* logits, int64_t n, const Router& router, int32_t* ids, float* weights) {
  std::vector<float> scores(static_cast<size_t>(router.experts)), ranks(scores.size());
  std::vector<int32_t> order(scores.size());
  const int k = router.k;
  for (int64_t i = 0; i < n; ++i, logits += router.experts, ids += k, weights += k) {
    score(logits, router, scores);
    for (int e = 0; e < router.experts; ++e) {
      const float rank = router.bias ? scores[e] + router.bias[e] : scores[e];
      // A NaN compares false both ways, which no sort survives: it counts as the lowest.
      ranks[e] = std::isnan(rank) ? kLowest : rank;
    }
    best(ranks, order.data(), order.data() + candidates(router, ranks, order), k);
    float total = kTiny;
    for (int j = 0; j < k; ++j) total += scores[order[j]];
    for (int j = 0; j < k; ++j) {
      ids[j] = order[j];
      const float share = router.normalize ? scores[order[j]] / total : scores[order[j]];
      weights[j] = share * router.scale * (router.scales ? router.scales[order[j]] : 1.0f);
    }
  }
}

void count_near(const float* scores, int64_t n, int experts, int k, double near, double* uses) {
  std::vector<float> order(static_cast<size_t>(experts));
  for (int64_t i = 0; i < n; ++i, scores += experts) {
    double sum = 0, squares = 0;
    for (int e = 0; e < experts; ++e) sum += scores[e];
    const double mean = sum / experts;
    for (int e = 0; e < experts; ++e) squares += (scores[e] - mean) * (scores[e] - mean);
    if (!std::isfinite(squares)) continue;
    std::copy_n(scores, experts, order.begin());
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
    const double last = order[static_cast<size_t>(k - 1)];
    const double spread = near * std::sqrt(squares / experts) + 1e-9;
    for (int e = 0; e < experts; ++e)
      uses[e] += scores[e] >= last ? 1.0 : std::exp((scores[e] - last) / spread);
  }
}

}  // namespace dure
