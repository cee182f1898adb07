// Groups of weights that share a scale: what each weight's error counts, and how codes are chosen
// and stored.
#pragma once

#include <cmath>
#include <cstring>

#include "pack/lanes.h"
#include "pack/quantize.h"

namespace dure::DURE_ISA {
namespace {

// What a block of 4 bits holds: beyond it, sums of squares might overflow.
constexpr float kLargest = 524288;

// A run of whole blocks in a matrix of rows of `cols` weights.
struct Run {
  const float* x;
  const float* importance;  // (cols): what an error in a column counts; null: all the same
  int64_t cols;
  int64_t first;  // which weight of the matrix x[0] is

  Run from(int64_t i) const { return {x + i, importance, cols, first + i}; }
};

template <int N>  // weights in a group
struct Groups {
  floats x[N];       // x[i][lane]: weight i of that lane's group
  floats weight[N];  // of its squared error: what is large matters more, what is small still counts
  bool fits = true;

  // count groups, one behind the other; the other lanes are zero
  Groups(const Run& run, int count) {
    float columns[N][kLanes] = {}, counts[N][kLanes] = {};
    for (int g = 0; g < count; ++g) {
      const float* important = nullptr;  // a group lies in one row
      if (run.importance) important = run.importance + (run.first + g * N) % run.cols;
      for (int i = 0; i < N; ++i) {
        columns[i][g] = run.x[g * N + i];
        counts[i][g] = important ? important[i] : 1.0f;
      }
    }
    floats squares, outside;
    for (int i = 0; i < N; ++i) {
      std::memcpy(&x[i], columns[i], sizeof(floats));
      squares += x[i] * x[i];
      outside = choose(floats(kLargest) > magnitude(x[i]), outside, 1);  // NaN is outside, too
    }
    floats rms;
    for (int lane = 0; lane < kLanes; ++lane) {
      fits &= outside[lane] == 0;
      rms.set(lane, std::sqrt(squares[lane] / N));
    }
    for (int i = 0; i < N; ++i) {
      std::memcpy(&weight[i], counts[i], sizeof(floats));
      weight[i] = (rms + magnitude(x[i])) * weight[i];
    }
  }
};

float half(float x) { return half_to_float(float_to_half(x)); }
void put_half(uint8_t* out, float x) {
  const uint16_t bits = float_to_half(x);
  std::memcpy(out, &bits, 2);
}

// The low halves of 32 codes, the first sixteen below the others.
void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int i = 0; i < 16; ++i)
    out[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] << 4));
}

// The codes, group by group, of weights under these scales: (x + minimum) / scale, or 0 where the
// scale is 0.
template <int N>
void assign(const Groups<N>& g, const floats& scale, const floats& minimum, float low, float high,
            floats* codes) {
  for (int i = 0; i < N; ++i) {
    const floats q = nearest((g.x[i] + minimum) / scale, low, high);
    codes[i] = choose(scale != 0, q, 0);
  }
}
template <int N>
void store_codes(const floats* codes, int offset, uint8_t (*out)[N]) {
  for (int i = 0; i < N; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      out[lane][i] = static_cast<uint8_t>(static_cast<int>(codes[i][lane]) + offset);
}

// Calls f(first block, blocks) for steps of up to `step` blocks, on all threads; whether every call
// said yes.
template <class F>
bool each_step(int64_t blocks, int step, int threads, F&& f) {
  bool fits = true;
  const int64_t steps = (blocks + step - 1) / step;
#pragma omp parallel for num_threads(threads) reduction(&& : fits) if (threads > 1)
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t left = blocks - i * step;
    fits = f(i * step, static_cast<int>(left < step ? left : step)) && fits;
  }
  return fits;
}

}  // namespace
}  // namespace dure::DURE_ISA
