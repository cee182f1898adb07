// Operations on recurrent states: their arguments, and their own table for each instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace dure {

// The recurrent states of a forward pass. A slot holds a layer's state of one sequence; delta.cpp
// has the layout.
struct StateRun {
  int64_t first = 0, end = 0;  // its rows
  // The slot with the state before the first of them; null: it starts anew.
  const float* from = nullptr;
  int64_t first_save = 0, end_save = 0;  // of the saves
};
struct StateSave {
  int64_t row = 0;
  float* to = nullptr;  // the slot that takes the state after that row
};
struct StatesView {
  int64_t rows = 0;
  std::vector<StateRun> runs;    // one a sequence
  std::vector<StateSave> saves;  // run by run, row by row, a run's own slot the last
};
struct DeltaShape {
  int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  int64_t group() const { return value_heads / key_heads; }
  int64_t channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  int64_t strips() const { return (value_dim + 31) / 32; }
  int64_t floats() const { return value_heads * strips() * 32 * key_dim; }
};
struct DeltaInput {
  DeltaShape shape;
  // (rows, channels): all queries, all keys, all values.
  const float* qkv = nullptr;
  const float *a = nullptr, *b = nullptr;  // (rows, value_heads), before softplus and sigmoid
  // (value_heads): decay = e^(rate * softplus(a + bias)).
  const float *rate = nullptr, *bias = nullptr;
  // Whether every channel of the key has its decay: a is (rows, value_heads, key_dim), and bias
  // (value_heads, key_dim).
  bool by_channel = false;
  // Of by_channel; if it is below 0, decay = e^(bound * sigmoid(-rate * (a + bias))).
  float bound = 0;
  int64_t offset = 0;  // of the matrices in a slot, floats
};

struct StateOps {
  // x (rows, width), of which `map` (channels) names the columns if it is there; weight (kernel,
  // channels). Gives silu of the sums, or the sums.
  void (*short_conv)(const float* x, int64_t width, const int32_t* map, const float* weight,
                     int64_t kernel, int64_t channels, bool with_silu, const StatesView& states,
                     float* out, int threads);
  void (*delta_rule)(const DeltaInput& input, const StatesView& states, float* out, int threads);
  // RMSNorm of each head of x (n, heads * dim), times silu or sigmoid of the gates: columns `map`
  // of gate (n, width).
  void (*gated_norm)(const float* x, int64_t n, int64_t heads, int64_t dim, const float* weight,
                     float eps, const float* gate, int64_t width, const int32_t* map,
                     bool with_silu, float* out, int threads);
  void (*sigmoid_mul)(const float* x, int64_t n, int64_t cols, const float* gate, int64_t width,
                      const int32_t* map, float* out, int threads);
};

}  // namespace dure
