// The operations that exist once per instruction set, and the table that picks one set at run time.
#pragma once

#include <vector>

#include "layout.h"

namespace dure {

// Rows of activations as int8, laid out for the kernels: tiles of `width` tokens; a tile is one record per 32 columns:
//   int8 codes[8 groups][width][4] | float scale[width] | int32 sum[width], sum of columns 0-15 [width], of 16-31 [width]
struct ActTiles {
  int rows = 0, width = 1, blocks = 0;
  std::vector<uint8_t> data;

  static constexpr int kRecord = 48;  // bytes a token and block
  int tiles() const { return ceil_div(rows, width); }
  size_t tile_bytes() const { return static_cast<size_t>(blocks) * kRecord * width; }
  const uint8_t* tile(int i) const { return data.data() + tile_bytes() * i; }
  uint8_t* tile(int i) { return data.data() + tile_bytes() * i; }
};

// Mixed rows of one forward pass over the paged cache; see attention.cpp for the layout.
struct CacheView {
  void* data = nullptr;  // (num_blocks, kv_heads, 2 * 32 * head_dim)
  bool half = true;
  int64_t num_blocks = 0;
  int kv_heads = 0, head_dim = 0;
};
struct RowsView {
  int64_t rows = 0;
  const int32_t* positions = nullptr;
  const int32_t* sequences = nullptr;
  const int32_t* block_tables = nullptr;  // (num_sequences, table_width)
  int64_t num_sequences = 0, table_width = 0;
};

// One page-aligned record an expert: gate, up and down, kernel-ready.
struct ExpertSet {
  int count = 0;
  int64_t hidden = 0, intermediate = 0;
  Packed gate, up, down;  // of expert 0
  size_t stride = 0;      // bytes from one expert's record to the next
};

struct Ops {
  const char* name;
  // tokens per tile for a call of n rows
  int (*tile_width)(int64_t n);
  void (*quantize_rows)(const float* x, int64_t n, int64_t cols, int8_t* values, float* scales);
  void (*make_tiles)(const float* x, int64_t n, int64_t cols, ActTiles& tiles, int threads);
  void (*matmul_int8)(const ActTiles& x, const Packed& w, const float* bias, float* out, int threads);
  void (*matmul_float)(const float* x, int64_t n, const Packed& w, const float* bias, float* out, int threads);
  void (*experts)(const float* x, int64_t n, const int32_t* ids, const float* weights, int k, const ExpertSet& e,
                  bool exact, float* out, int threads);
  void (*rms_norm)(const float* x, int64_t n, int64_t width, const float* weight, float eps, float* out, int threads);
  void (*rope)(float* x, int64_t n, int heads, int dim, const float* cos, const float* sin, int half, bool interleaved,
               int threads);
  void (*silu_mul)(const float* gate, const float* up, int64_t count, float* out, int threads);
  void (*attention)(const float* q, int heads, const CacheView& cache, const RowsView& rows, float scale, int64_t window,
                    float* out, int threads);
};

const Ops& portable_ops();
#ifdef DURE_X86
const Ops& avx2_ops();
const Ops& avx512_ops();
#endif

std::vector<const Ops*> available_ops();  // best first
const Ops& ops();                         // chosen once: DURE_ISA in the environment, else the best

void write_cache(const float* k, const float* v, const CacheView& cache, const RowsView& rows);

}  // namespace dure
