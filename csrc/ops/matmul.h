// One panel of 16 output rows times rows of activations: what matmul.cpp offers and experts.cpp
// builds on. The order of every float operation is fixed by the block order alone, so a result's
// bits depend neither on how many tokens share the call nor on threads or instruction set:
//   acc = fma(float(integer sum of the block) * activation scale, weight scale, acc), then the
//   addend's fma if there is one
#pragma once

#include <algorithm>

#include "ops/tiles.h"

namespace dure::DURE_ISA {

// A stretch of a panel unpacked once, for many tiles: at most kChunk blocks, 24 KB, so that it
// stays in the first cache.
constexpr int kChunk = 32;
struct Scratch {
  alignas(64) uint8_t codes[kChunk * kBlock * kPanel];  // [block][group][row][4 columns]
  alignas(64) float scale[kChunk][2][16];
  alignas(64) float add[kChunk][2][16];
};

// Where a panel's results go: out[row][16 columns of the panel].
struct Output {
  float* data;
  int64_t stride;               // floats from one token to the next
  int columns;                  // of this panel: 16, fewer in the last
  const float* bias = nullptr;  // of this panel's rows
  const float* add = nullptr;   // laid out as data

  void put(int64_t token, f32x16 value) const {
    assert(token >= 0 && columns >= 1 && columns <= kPanel);
    float* p = data + token * stride;
    const float* q = add ? add + token * stride : nullptr;
    if (columns == kPanel) {
      if (bias) value = value + load(bias);
      store(p, q ? value + load(q) : value);
    } else {
      if (bias) value = value + load_n(bias, columns);
      store_n(p, q ? value + load_n(q, columns) : value, columns);
    }
  }
};

// One panel of work: a matrix, which of its panels, and where the results go.
struct Task {
  Packed w;
  int panel;
  Output out;
};

// The item that a thread works on after this one, when `step` at a time are handed out: if
// hand-outs go round, as they mostly do.
inline int64_t item_after(int64_t item, int step, int threads) {
  return item + 1 + ((item + 1) % step ? 0 : int64_t{threads - 1} * step);
}

// Tasks worth giving to panels_times at once: they take each tile of activations in turn while it
// is in the first cache.
constexpr int kTasks = 4;

// What a thread works in, kept from call to call.
struct ThreadScratch {
  Scratch scratch;
  std::vector<float> partial;
  MatrixUnit::Strip strips[kTasks];
};
ThreadScratch& thread_scratch();

// Panels times all rows of x; picks the loop by how many rows there are. Wide tiles: at most
// kTasks. after: what is likely to be multiplied next, where that is not the panel behind the last.
void panels_times(const Task* tasks, int count, const ActTiles& x, const Task* after = nullptr);

// The output columns of one panel of a product.
inline Output panel_output(const Product& product, int panel) {
  const int64_t first = static_cast<int64_t>(panel) * kPanel, rows = product.w.rows;
  return {product.out + first, product.stride ? product.stride : rows,
          static_cast<int>(std::min<int64_t>(kPanel, rows - first)),
          product.bias ? product.bias + first : nullptr,
          product.add ? product.add + first : nullptr};
}

// The float32 path: weights of float types, or any type in exact mode, of as many columns in all
// tasks. x rows are given by pointer, so that an expert's rows need not be copied together. acc =
// fma(weight, x, acc) over the columns in order.
void panels_times_float(const Task* tasks, int count, const float* const* x, int64_t n,
                        std::vector<float>& buffer);

}  // namespace dure::DURE_ISA
