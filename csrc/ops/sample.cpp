// One token from a row of logits. A vocabulary has 150,000 entries and a draw needs the likeliest
// few: those are picked by the peaks of its chunks, and only a stretch of it that a draw ends in is
// sorted.
#include "ops/sample.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/ops.h"

namespace dure {

// Philox-4x32-10 (Salmon et al., SC'11): key = seed, counter = position. No state, so no order of
// draws to keep.
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

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Above it, the rounding of sums would decide what is drawn.
constexpr double kHighestUniform = 1 - 0x1p-30;

// A row of logits and the highest of each of its chunks.
struct Row {
  const float* logits;
  int64_t n;
  std::vector<float> peaks;
  float peak = -kInfinity;
  bool broken;  // a NaN, or infinitely high

  Row(const float* row, int64_t count)
      : logits(row), n(count), peaks(static_cast<size_t>(ceil_div(count, kPeakChunk))) {
    broken = ops().chunk_peaks(logits, n, peaks.data());
    for (const float p : peaks) peak = std::max(peak, p);
  }

  // The likelier first, of two alike the lower id.
  bool before(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }

  // Calls f(first, end) for the chunks that hold a logit at or above a bound, which f may raise.
  template <class F>
  void chunks_from(const float& bound, F&& f) const {
    for (size_t c = 0; c < peaks.size(); ++c) {
      const int64_t first = static_cast<int64_t>(c) * kPeakChunk;
      if (peaks[c] >= bound) f(first, std::min(first + kPeakChunk, n));
    }
  }

  int32_t likeliest() const {
    const auto chunk = std::find(peaks.begin(), peaks.end(), peak) - peaks.begin();
    const float* at = std::find(logits + chunk * kPeakChunk, logits + n, peak);
    return static_cast<int32_t>(at - logits);
  }

  // The k likeliest ids in order: one pass against the k-th so far.
  std::vector<int32_t> likeliest(int64_t k) const {
    auto order = [this](int32_t a, int32_t b) { return before(a, b); };
    std::vector<int32_t> heap;  // its front is the least likely that is kept
    heap.reserve(static_cast<size_t>(k));
    float bound = -kInfinity;
    chunks_from(bound, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        if (static_cast<int64_t>(heap.size()) == k) {
          if (k == 0 || !(logits[i] > bound)) continue;
          std::pop_heap(heap.begin(), heap.end(), order);
          heap.pop_back();
        }
        heap.push_back(static_cast<int32_t>(i));
        std::push_heap(heap.begin(), heap.end(), order);
        if (static_cast<int64_t>(heap.size()) == k) bound = logits[heap.front()];
      }
    });
    std::sort_heap(heap.begin(), heap.end(), order);
    return heap;
  }
};

// Down the ids by falling weight, until their weights reach a target or fall below a minimum.
class Descent {
 public:
  Descent(const Row& row, float sharpness, float least)
      : row_(row), sharpness_(sharpness), least_(least) {}

  struct End {
    int32_t id = -1;
    double mass = 0;  // of all ids down to this one
  };

  // Through these ids, which are in order.
  End among(const std::vector<int32_t>& ids, double target) const {
    End end;
    walk(ids, target, end);
    return end;
  }

  // Through all ids: a stretch of the logits at a time, sorted only if the end lies in it.
  End among_all(double target) const {
    End end;
    float high = kInfinity;
    for (float reach = 1; high > -kInfinity; reach *= 2) {
      const float low = reach > 64 ? -kInfinity : row_.peak - reach / sharpness_;
      std::vector<int32_t> ids = between(low, high);
      high = low;
      if (ids.empty()) continue;
      double mass = end.mass;
      bool enough = true;
      for (const float w : weights_of(ids)) mass += w, enough = enough && w >= least_;
      auto order = [this](int32_t a, int32_t b) { return row_.before(a, b); };
      if (mass >= target || !enough) {
        std::sort(ids.begin(), ids.end(), order);
        // Or a sum in another order fell short by a rounding.
        if (walk(ids, target, end) || mass >= target) return end;
      }
      end = {*std::max_element(ids.begin(), ids.end(), order), mass};
    }
    return end;
  }

  std::vector<float> weights_of(const std::vector<int32_t>& ids) const {
    std::vector<float> weights(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) weights[i] = row_.logits[ids[i]];
    ops().exp_below(weights.data(), static_cast<int64_t>(ids.size()), row_.peak, sharpness_,
                    weights.data());
    return weights;
  }

 private:
  // Whether the end is among these ids.
  bool walk(const std::vector<int32_t>& ids, double target, End& end) const {
    const std::vector<float> weights = weights_of(ids);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (end.id >= 0 && weights[i] < least_) return true;
      end = {ids[i], end.mass + weights[i]};
      if (end.mass >= target) return true;
    }
    return false;
  }

  std::vector<int32_t> between(float low, float high) const {
    std::vector<int32_t> ids;
    row_.chunks_from(low, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i)
        if (row_.logits[i] >= low && row_.logits[i] < high) ids.push_back(static_cast<int32_t>(i));
    });
    return ids;
  }

  const Row& row_;
  float sharpness_, least_;
};

}  // namespace

int32_t sample(const float* logits, int64_t n, const Filter& f, double u) {
  const Row row(logits, n);
  if (row.broken || row.peak == -kInfinity) return -1;
  const float sharpness = static_cast<float>(1.0 / f.temperature);
  if (f.temperature == 0 || !(sharpness < 1e30f)) return row.likeliest();

  // Weights are relative to the highest, so min_p is one of them.
  const Descent descent(row, sharpness, static_cast<float>(f.min_p));
  std::vector<int32_t> some;
  double total = 0;
  if (f.top_k > 0 && f.top_k < n) {
    some = row.likeliest(f.top_k);
    for (const float w : descent.weights_of(some)) total += w;
  } else {
    total = ops().exp_sum(logits, n, row.peak, sharpness);
  }
  auto down_to = [&](double target) {
    return some.empty() ? descent.among_all(target) : descent.among(some, target);
  };
  constexpr double kEnd = std::numeric_limits<double>::infinity();
  double kept = total;
  if (f.top_p < 1 || f.min_p > 0) kept = down_to(f.top_p < 1 ? f.top_p * total : kEnd).mass;
  // The first id whose mass exceeds u * kept.
  return down_to(std::nextafter(std::min(u, kHighestUniform) * kept, kEnd)).id;
}

void sample_rows(const float* logits, int64_t rows, int64_t n, const Filter* filters,
                 const double* uniforms, int32_t* ids, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (rows > 1)
  for (int64_t i = 0; i < rows; ++i) ids[i] = sample(logits + i * n, n, filters[i], uniforms[i]);
}

double log_sum_exp(const float* logits, int64_t n) {
  const float peak = *std::max_element(logits, logits + n);
  return peak + std::log(ops().exp_sum(logits, n, peak, 1.0f));
}

void top_logprobs(const float* logits, int64_t n, int64_t count, int32_t* ids, float* logprobs) {
  const auto order = Row(logits, n).likeliest(count);
  const double norm = log_sum_exp(logits, n);
  for (int64_t i = 0; i < count; ++i)
    ids[i] = order[i], logprobs[i] = static_cast<float>(logits[order[i]] - norm);
}

}  // namespace dure
