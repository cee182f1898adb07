// One token from a row of logits. A vocabulary has 150,000 entries and a draw needs the likeliest few: those are picked in
// one pass, and the whole is sorted only when a draw reaches past them.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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

namespace {

// e^(scale * (x - peak)) for x <= peak, to 1e-7: short enough that the compiler makes vectors of it, which its
// library call is not, and a vocabulary is 150,000 of them. Cephes' polynomial; 0 below e^-87.
void exp_below(const float* x, int64_t n, float peak, float scale, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float v = std::max((x[i] - peak) * scale, -87.0f);
    const float shifted = v * 1.44269504f + 12582912.0f;
    const float k = shifted - 12582912.0f;
    const float r = (v - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits, power;
    std::memcpy(&bits, &p, 4);
    std::memcpy(&power, &shifted, 4);
    bits += static_cast<int32_t>(static_cast<uint32_t>(power - 0x4B400000) << 23);
    std::memcpy(&p, &bits, 4);
    out[i] = v > -87.0f ? p : 0.0f;
  }
}

// The k likeliest ids, falling, ties to the lower id: one pass against the k-th so far.
std::vector<int32_t> likeliest_ids(const float* logits, int64_t n, int64_t k) {
  auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::vector<int32_t> heap;  // its front is the least likely that is kept
  heap.reserve(static_cast<size_t>(k));
  for (int64_t i = 0; i < n; ++i) {
    if (static_cast<int64_t>(heap.size()) == k) {
      if (k == 0 || !(logits[i] > logits[heap.front()])) continue;
      std::pop_heap(heap.begin(), heap.end(), before);
      heap.pop_back();
    }
    heap.push_back(static_cast<int32_t>(i));
    std::push_heap(heap.begin(), heap.end(), before);
  }
  std::sort_heap(heap.begin(), heap.end(), before);
  return heap;
}

// Ids by falling logit, as many as are asked for: those within `reach` of the peak first, then all.
class Falling {
 public:
  Falling(const float* logits, int64_t n, float peak, float reach) : logits_(logits), n_(n) {
    for (int64_t i = 0; i < n; ++i)
      if (logits[i] >= peak - reach) ids_.push_back(static_cast<int32_t>(i));
    sort();
  }
  explicit Falling(std::vector<int32_t> ids) : ids_(std::move(ids)) {}

  int64_t next() {  // -1 after the last
    if (at_ == ids_.size() && logits_ && static_cast<int64_t>(ids_.size()) < n_) {
      ids_.resize(static_cast<size_t>(n_));
      std::iota(ids_.begin(), ids_.end(), 0);
      sort();  // the first `at_` come out as they were
    }
    return at_ < ids_.size() ? ids_[at_++] : -1;
  }

 private:
  void sort() {
    std::sort(ids_.begin(), ids_.end(),
              [&](int32_t a, int32_t b) { return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b; });
  }
  const float* logits_ = nullptr;
  int64_t n_ = 0;
  std::vector<int32_t> ids_;
  size_t at_ = 0;
};

}  // namespace

int32_t sample(const float* logits, int64_t n, const Filter& f, double u) {
  const int32_t likeliest = argmax(logits, n);
  if (f.temperature == 0 || likeliest < 0) return likeliest;
  const float peak = logits[likeliest], sharpness = static_cast<float>(1.0 / f.temperature);
  if (!(sharpness < 1e30f) || !std::isfinite(peak)) return likeliest;
  auto weight_of = [&](int64_t id) {
    float w;
    exp_below(logits + id, 1, peak, sharpness, &w);
    return w;
  };

  const bool some = f.top_k > 0 && f.top_k < n;
  double total = 0;  // of what top_k left
  std::vector<int32_t> first;
  if (some) {
    first = likeliest_ids(logits, n, f.top_k);
    for (const int32_t id : first) total += weight_of(id);
  } else {
    std::vector<float> weights(static_cast<size_t>(n));
    exp_below(logits, n, peak, sharpness, weights.data());
    for (const float w : weights) total += w;
  }
  // Within 12 temperatures of the peak lies all but e^-12 of the mass a token, as good as always enough.
  Falling falling = some ? Falling(std::move(first)) : Falling(logits, n, peak, 12.0f / sharpness);

  const bool filtered = f.top_p < 1 || f.min_p > 0;
  std::vector<int32_t> ids;
  std::vector<double> cumulative;
  double mass = 0;
  for (int64_t id; (id = falling.next()) >= 0;) {
    const double w = weight_of(id);
    if (filtered && !ids.empty() && w < f.min_p) break;  // weights are relative to the highest
    mass += w;
    ids.push_back(static_cast<int32_t>(id));
    cumulative.push_back(mass);
    if (!filtered && mass > u * total) return static_cast<int32_t>(id);
    if (f.top_p < 1 && mass >= f.top_p * total) break;
  }
  const auto drawn = std::upper_bound(cumulative.begin(), cumulative.end(), u * mass) - cumulative.begin();
  return ids[std::min<size_t>(static_cast<size_t>(drawn), ids.size() - 1)];
}

double log_sum_exp(const float* logits, int64_t n) {
  const float peak = *std::max_element(logits, logits + n);
  std::vector<float> weights(static_cast<size_t>(n));
  exp_below(logits, n, peak, 1.0f, weights.data());
  double total = 0;
  for (const float w : weights) total += w;
  return peak + std::log(total);
}

void top_logprobs(const float* logits, int64_t n, int64_t count, int32_t* ids, float* logprobs) {
  const auto order = likeliest_ids(logits, n, count);
  const double norm = log_sum_exp(logits, n);
  for (int64_t i = 0; i < count; ++i) ids[i] = order[i], logprobs[i] = static_cast<float>(logits[order[i]] - norm);
}

}  // namespace dure
