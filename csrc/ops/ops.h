// The operations that exist once per instruction set, and the table that picks one set at run time.
#pragma once

#include <type_traits>
#include <vector>

#include "ops/buffer_pool.h"
#include "ops/states.h"
#include "pack/layout.h"
#include "pack/quantize.h"

namespace dure {

// Rows of activations as int8, laid out for the kernels: tiles of `width` tokens; a tile is one
// record per 32 columns.
struct ActTiles {
  int rows = 0, width = 1, blocks = 0;
  PooledBuffer<uint8_t> data;

  static constexpr int kRecord = 52;  // bytes a token and block
  int tiles() const { return ceil_div(rows, width); }
  size_t record_bytes() const { return static_cast<size_t>(kRecord) * width; }
  size_t tile_bytes() const { return blocks * record_bytes(); }
  const uint8_t* tile(int i) const {
    assert(i >= 0 && i < tiles());
    return data.data() + tile_bytes() * i;
  }
  uint8_t* tile(int i) {
    assert(i >= 0 && i < tiles());
    return data.data() + tile_bytes() * i;
  }
  // The record that holds 32 columns of a row, which is its lane `row % width`.
  const uint8_t* record(int row, int block) const {
    assert(block >= 0 && block < blocks);
    return tile(row / width) + block * record_bytes();
  }
  uint8_t* record(int row, int block) {
    assert(block >= 0 && block < blocks);
    return tile(row / width) + block * record_bytes();
  }
};

// One record, by its parts: each is `width` long but codes, which is 32 * width, a token's 32
// columns side by side.
template <class Byte>  // uint8_t, or const uint8_t
struct Record {
  Byte* data;
  int width;
  template <class T>
  auto* part(int offset) const {
    using Entry = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return reinterpret_cast<Entry*>(data + offset * width);
  }
  auto* codes() const { return part<int8_t>(0); }
  auto* scale() const { return part<float>(32); }       // float = scale * code
  auto* sum() const { return part<int32_t>(36); }       // of the codes: for formats with an offset
  auto* low_sum() const { return part<int32_t>(40); }   // of columns 0-15
  auto* high_sum() const { return part<int32_t>(44); }  // of columns 16-31
  auto* total() const { return part<float>(48); }  // float(sum) * scale: for formats with a minimum
};

// One matrix of a call, and where its product goes: out = x @ w.T (+ bias) (+ add).
struct Product {
  Packed w;
  const float* bias = nullptr;  // (w.rows)
  const float* add = nullptr;   // (n, w.rows), added last; may be out itself
  float* out = nullptr;         // (n, w.rows)
  int64_t stride = 0;           // floats from one row of out and add to the next, if not w.rows
  // (w.cols), to which the squares of x are added, and the rows behind them; null: nobody asks
  double* squares = nullptr;
};

constexpr int kCacheGroup = 32;  // columns of a cached byte row that share a scale

// Mixed rows of one forward pass over the paged cache; see paged_attention.cpp for the layout.
enum class CacheType : uint8_t { Float, Half, Byte };
struct CacheView {
  void* data = nullptr;  // (num_blocks, kv_heads, head_bytes)
  CacheType type = CacheType::Half;
  int64_t num_blocks = 0;
  int kv_heads = 0, head_dim = 0;
  // If not 0: one head and one entry a token, whose first columns are also the value.
  int latent = 0;
  int values = 0;  // the width of a value; 0: a key's

  int value_dim() const { return latent ? latent : values ? values : head_dim; }
  int scale_groups(int columns) const {
    return type == CacheType::Byte ? ceil_div(columns, kCacheGroup) : 0;
  }
  int element_bytes() const {
    return type == CacheType::Byte ? 1 : type == CacheType::Half ? 2 : 4;
  }
  // Bytes of one block of one head: K, V, then the scales of both if they are bytes; of a latent
  // cache there is one of each.
  int64_t head_bytes() const {
    return part_bytes(head_dim) + (latent ? 0 : part_bytes(value_dim()));
  }

 private:
  int64_t part_bytes(int columns) const {
    return kCacheBlock *
           (int64_t{columns} * element_bytes() + scale_groups(columns) * int64_t{sizeof(float)});
  }
};

// How a query's keys are scored, and what they gather is weighed.
struct Scoring {
  float scale = 1;
  int64_t window = 0;            // the newest keys that a row sees; 0: all
  const float* sinks = nullptr;  // (heads), scores that take a share and give no value
  float value_scale = 1;         // times the result
};
struct RowsView {
  int64_t rows = 0;
  const int32_t* positions = nullptr;
  const int32_t* sequences = nullptr;
  const int32_t* block_tables = nullptr;  // (num_sequences, table_width)
  int64_t num_sequences = 0, table_width = 0;
};

// What makes one number of a gated MLP's two, g and u.
enum class Gating {
  Silu,     // silu(g) * u
  Limited,  // min(silu(g), limit) * clip(u, ±limit): Ling-3.0-flash's
  Clamped,  // (clip(u, ±limit) + 1) * m * sigmoid(alpha * m) of m = min(g, limit): gpt-oss's
  Gelu,     // gelu(g) * u
};
struct GateActivation {
  Gating kind = Gating::Silu;
  float alpha = 1, limit = 0;
};

// The experts of one layer. Each is one record, gate, up and down behind each other, which lies
// wherever its pointer says.
struct ExpertSet {
  int count = 0;
  int64_t hidden = 0, intermediate = 0;
  Packed gate, up, down;                    // without data
  size_t up_offset = 0, down_offset = 0;    // of a record's parts
  const uint8_t* const* records = nullptr;  // (count); null of an expert that is not in memory
  // (count, intermediate) twice, and (count, hidden); all null without biases
  const float *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  GateActivation activation;
  double* inner_squares = nullptr;  // (count, intermediate), of what down takes; null: nobody asks

  Packed gate_of(int expert) const { return part(gate, expert, 0); }
  Packed up_of(int expert) const { return part(up, expert, up_offset); }
  Packed down_of(int expert) const { return part(down, expert, down_offset); }

 private:
  Packed part(Packed shape, int expert, size_t offset) const {
    assert(expert >= 0 && expert < count && records[expert]);
    shape.data = records[expert] + offset;
    return shape;
  }
};

// What one call of a mixture computes: all of it, or the products of some experts, or the sum.
struct ExpertsPart {
  float* products = nullptr;        // (n, k, columns): what each expert gave for its rows
  int64_t columns = 0;              // of the products: hidden, or fewer where all is computed
  const uint8_t* chosen = nullptr;  // (count): the experts to multiply by; null: all
  const float* add = nullptr;       // (n, hidden), added last; may be out itself
  float* out = nullptr;             // (n, hidden): the weighted sum; null: not yet
};

// How many columns a mixture of `pairs` rows of experts computes before it adds them up. All of
// them for few rows. For many, products of 8 MB: 512 rows of 8 experts have 34 MB of them, which
// would go to memory and come back, and be new pages in each layer.
inline int64_t columns_at_once(int64_t pairs, int64_t hidden) {
  constexpr int64_t kBytes = int64_t{8} << 20, kStep = 64;
  const int64_t fit = kBytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(pairs, 1);
  return std::min(hidden, std::max(fit / kStep * kStep, kStep));
}

// Whether the experts' arithmetic is float32 throughout, for all three matrices.
inline bool experts_use_floats(const ExpertSet& e, bool exact) {
  return exact || is_float(e.gate.type) || is_float(e.up.type) || is_float(e.down.type);
}

struct Ops {
  const char* name;
  // tokens per tile for a call of n rows
  int (*tile_width)(int64_t n);
  void (*quantize_rows)(const float* x, int64_t n, int64_t cols, int8_t* values, float* scales);
  // Rows of x are `stride` floats apart, here and in matmul_float.
  void (*make_tiles)(const float* x, int64_t n, int64_t cols, int64_t stride, ActTiles& tiles,
                     int threads);
  // Several matrices that take the same rows: one hand-out of work for all of them.
  void (*matmul_int8)(const ActTiles& x, const Product* products, int count, int threads);
  void (*matmul_float)(const float* x, int64_t n, int64_t stride, const Product& product,
                       int threads);
  // x comes as tiles for the int8 path, as floats (n, hidden) for the other; see
  // experts_use_floats.
  void (*experts)(const ActTiles* tiles, const float* x, int64_t n, const int32_t* ids,
                  const float* weights, int k, const ExpertSet& e, const ExpertsPart& part,
                  int threads);
  void (*rms_norm)(const float* x, int64_t n, int64_t width, const float* weight, float eps,
                   float* out, int threads);
  // The normed rows straight to int8 tiles.
  void (*norm_tiles)(const float* x, int64_t n, int64_t width, const float* weight, float eps,
                     ActTiles& tiles, int threads);
  void (*rope)(float* x, int64_t n, int heads, int dim, const float* cos, const float* sin,
               int half, bool interleaved, int threads);
  void (*silu_mul)(const float* gate, const float* up, int64_t count, float* out, int threads);
  void (*paged_attention)(const float* q, int heads, const CacheView& cache, const RowsView& rows,
                          const Scoring& scoring, float* out, int threads);
  // Sampling; see vocabulary.cpp.
  bool (*chunk_peaks)(const float* x, int64_t n, float* peaks);
  void (*exp_below)(const float* x, int64_t n, float peak, float scale, float* out);
  double (*exp_sum)(const float* x, int64_t n, float peak, float scale);
  QuantizeBlocks* quantize_blocks;
  const StateOps* states;
};

std::vector<const Ops*> available_ops();  // best first
const Ops& ops();                         // chosen once: DURE_ISA in the environment, else the best

void write_cache(const float* k, const float* v, const CacheView& cache, const RowsView& rows);
// The same for a latent cache, of a token's latent and what is rotated of its key.
void write_latent(const float* latent, const float* rotated, const CacheView& cache,
                  const RowsView& rows);

}  // namespace dure
