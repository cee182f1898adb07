// One token from a row of logits. A vocabulary has 150,000 entries and a draw needs the likeliest few: a heap is built
// once and popped only as far as the draw goes, never sorted whole.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace dure {

// Philox-4x32-10 (Salmon et al., SC'11): key = seed, counter = position. No state, so no order of draws to keep.
double uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<double>((uint64_t{c[0] >> 5} << 26) + (c[1] >> 6)) * 0x1p-53;
}

int32_t argmax(const float* logits, int64_t n) {
  int64_t best = 0;
  bool broken = false;
  for (int64_t i = 0; i < n; ++i) {
    broken |= logits[i] != logits[i];
    if (logits[i] > logits[best]) best = i;
  }
  return broken ? -1 : static_cast<int32_t>(best);
}

int32_t sample(const float* logits, int64_t n, const Filter& f, double u) {
  const int32_t likeliest = argmax(logits, n);
  if (f.temperature == 0 || likeliest < 0) return likeliest;
  const double peak = logits[likeliest];
  auto weight = [&](int32_t i) { return std::exp((static_cast<double>(logits[i]) - peak) / f.temperature); };

  std::vector<int32_t> heap(static_cast<size_t>(n));
  std::iota(heap.begin(), heap.end(), 0);
  auto after = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] < logits[b] : a > b; };
  const bool some = f.top_k > 0 && f.top_k < n;
  if (some) {  // the k likeliest only: selection first keeps the heap small
    std::nth_element(heap.begin(), heap.begin() + f.top_k, heap.end(), [&](int32_t a, int32_t b) { return after(b, a); });
    heap.resize(static_cast<size_t>(f.top_k));
  }
  double total = 0;  // of what top_k left
  std::sort(heap.begin(), some ? heap.end() : heap.begin());
  for (const int32_t i : heap) total += weight(i);
  std::make_heap(heap.begin(), heap.end(), after);

  const bool filtered = f.top_p < 1 || f.min_p > 0;
  std::vector<int32_t> ids;
  std::vector<double> cumulative;
  double mass = 0;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const int32_t i = heap.back();
    heap.pop_back();
    const double w = weight(i);
    if (filtered && !ids.empty() && w < f.min_p) break;  // weights are relative to the highest
    mass += w;
    ids.push_back(i);
    cumulative.push_back(mass);
    if (!filtered && mass > u * total) return i;
    if (f.top_p < 1 && mass >= f.top_p * total) break;
  }
  const auto drawn = std::upper_bound(cumulative.begin(), cumulative.end(), u * mass) - cumulative.begin();
  return ids[std::min<size_t>(static_cast<size_t>(drawn), ids.size() - 1)];
}

double log_sum_exp(const float* logits, int64_t n) {
  const double peak = *std::max_element(logits, logits + n);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += std::exp(static_cast<double>(logits[i]) - peak);
  return peak + std::log(total);
}

void top_logprobs(const float* logits, int64_t n, int64_t count, int32_t* ids, float* logprobs) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  const double norm = log_sum_exp(logits, n);
  for (int64_t i = 0; i < count; ++i) ids[i] = order[i], logprobs[i] = static_cast<float>(logits[order[i]] - norm);
}

}  // namespace dure
