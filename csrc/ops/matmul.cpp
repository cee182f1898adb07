// x @ w.T for packed w: int8 activations and integer dots, or float32 throughout.
#include "ops/matmul.h"

#include <omp.h>

#include <memory>

#include "ops/panel.h"

namespace dure::DURE_ISA {

void quantize_rows(const float* x, int64_t n, int64_t cols, int8_t* values, float* scales) {
  int32_t sums[2];
  for (int64_t i = 0; i < n * cols / kBlock; ++i)
    scales[i] = quantize_block(x + i * kBlock, values + i * kBlock, sums);
}

void make_tiles(const float* x, int64_t n, int64_t cols, int64_t stride, ActTiles& tiles,
                int threads) {
  shape_tiles(tiles, n, cols);
#pragma omp parallel for num_threads(threads) schedule(static) if (n > 4)
  for (int64_t i = 0; i < n; ++i) quantize_row_into(x + i * stride, tiles, static_cast<int>(i));
}

namespace {

// Panels handed out at a time: enough to stream, few enough that a slow core does not hold up the
// rest.
constexpr int kMostAtOnce = 2 * kTasks;
int panels_at_once(int panels, int threads, int most = kMostAtOnce) {
  return std::clamp(panels / (threads * 8), 1, most);
}

// Meeting a thread that still spins costs 3 microseconds, and waking one that sleeps up to 50: a
// product below 131,072 multiplications, some 5 microseconds of one thread, is done alone.
bool is_small(int64_t multiplications) { return multiplications < (1 << 17); }

// Few rows, straight from the packed panel; next: the task after this one, if there is one.
void panel_times_few(const Task& task, const Task* next, const ActTiles& x) {
  assert(task.w.blocks() == x.blocks && x.rows >= 1 && x.rows <= kDirect);
  with_quantised_type(task.w.type, [&](auto type) {
    constexpr Type kType = type();
    for_range<0, 4>([&](auto log) {
      constexpr int T = 1 << log;
      if constexpr (T <= kDirect && T <= kTile) {
        if (x.width != T || x.rows > T) return;
        constexpr int kMost = T < 4 ? T : T / 4 * 3;  // 3 of 4 rows, and 5 or 6 of 8
        if (x.rows <= kMost) return panel_few_tiles<kType, kMost, T>(task, next, x);
        return panel_few_tiles<kType, T>(task, next, x);
      }
    });
    if constexpr (kDirect > kTile) {
      if (x.rows <= kTile) return;
      if (x.rows <= kTile + kTile / 2)
        return panel_few_tiles<kType, kTile, kTile, kTile / 2>(task, next, x);
      panel_few_tiles<kType, kTile, kTile, kTile>(task, next, x);
    }
  });
}

// Rows of activations that all panels of a call are multiplied by before the next ones: kChunk
// blocks of them stay in the second cache meanwhile, and unpacking the panels anew for each costs
// hundredths of it.
constexpr int kRowsAtOnce = 128;
static_assert(kRowsAtOnce % 16 == 0, "whole tiles, of vectors and of a matrix unit");

// Blocks [first, first + count) of a panel times `rows` rows from a row on.
void panel_times(const Packed& w, const uint8_t* panel, const ActTiles& x, int from, int rows,
                 int first, int count, float* partial, const Coming& coming) {
  assert(w.blocks() == x.blocks && from % x.width == 0 && from + rows <= x.rows);
  with_quantised_type(w.type, [&](auto type) {
    constexpr Type kType = type();
    if constexpr (MatrixUnit::exists) {
      if (is_wide(x))
        return panel_many_tiles<kType, kTile, MatrixUnit::kTokens>(w, panel, x, from, rows, first,
                                                                   count, partial, coming);
    }
    for_range<0, 4>([&](auto log) {
      constexpr int T = 1 << log;
      if constexpr (T == kTile || (T < kTile && T > kDirect))
        if (x.width == T)
          panel_many_tiles<kType, T>(w, panel, x, from, rows, first, count, partial, coming);
    });
  });
}

// Where 64 bytes begin: a load or store that crosses them is two. It needs 16 floats of room.
float* aligned(float* p) {
  return reinterpret_cast<float*>(round_up(reinterpret_cast<size_t>(p), 64));
}

// Panels on the matrix unit: compiled only where there is one, hence a template. The order of the
// loops keeps the unpacked panels in the second cache and a tile of activations in the first: both
// read anew for every product would be more than the caches can give.
template <class Unit>
void panels_times_wide(const Task* tasks, int count, const ActTiles& x) {
  ThreadScratch& s = thread_scratch();
  const int tiles = x.tiles(), sums_of_tile = x.width * kPanel;
  const size_t sums_of_task = static_cast<size_t>(tiles) * sums_of_tile;
  if (s.partial.size() < count * sums_of_task + 16) s.partial.resize(count * sums_of_task + 16);
  float* partial = aligned(s.partial.data());
  Unit::configure();
  for (int first = 0; first < x.blocks; first += Unit::kChunk) {
    const int blocks = std::min(Unit::kChunk, x.blocks - first);
    const bool last = first + blocks == x.blocks;
    for (int i = 0; i < count; ++i)
      with_quantised_type(tasks[i].w.type, [&](auto type) {
        if constexpr (Layout<type()>::halves == 1 && Layout<type()>::bits <= 8)
          unpack_strip<type()>({tasks[i].w, tasks[i].w.panel(tasks[i].panel)}, first, blocks,
                               s.strips[i]);
      });
    for (int tile = 0; tile < tiles; ++tile) {
      const uint8_t* records = x.tile(tile) + first * x.record_bytes();
      for (int i = 0; i < count; ++i) {
        float* sums = partial + i * sums_of_task + static_cast<size_t>(tile) * sums_of_tile;
        Unit::accumulate(s.strips[i], blocks, scale_shape(tasks[i].w.type).has_min, records,
                         first ? sums : nullptr, sums);
        if (!last) continue;
        const int rows = std::min(x.width, x.rows - tile * x.width);
        for (int t = 0; t < rows; ++t)
          tasks[i].out.put(static_cast<int64_t>(tile) * x.width + t, load(sums + t * kPanel));
      }
    }
  }
  Unit::release();
}

}  // namespace

ThreadScratch& thread_scratch() {
  static thread_local auto own = std::make_unique<ThreadScratch>();
  return *own;
}

void panels_times(const Task* tasks, int count, const ActTiles& x, const Task* after) {
  if constexpr (MatrixUnit::exists) {
    const bool wide = is_wide(x) && std::all_of(tasks, tasks + count, [](const Task& t) {
                        const ScaleShape shape = scale_shape(t.w.type);
                        return shape.halves == 1 && shape.bytes;
                      });
    if (wide) return panels_times_wide<MatrixUnit>(tasks, count, x);
  }
  if (x.rows <= kDirect && !is_wide(x)) {
    for (int i = 0; i < count; ++i)
      panel_times_few(tasks[i], i + 1 < count ? tasks + i + 1 : after, x);
    return;
  }
  std::vector<float>& room = thread_scratch().partial;
  for (int from = 0; from < x.rows; from += kRowsAtOnce) {
    const int rows = std::min(kRowsAtOnce, x.rows - from);
    const size_t size = round_up(rows, 16) * kPanel;
    room.assign(count * size + 16, 0.0f);
    float* partial = aligned(room.data());
    auto coming_of = [](const Task& task, int first) {
      return Coming(task.w, task.panel, first, std::min(kChunk, task.w.blocks() - first));
    };
    for (int first = 0; first < x.blocks; first += kChunk)
      for (int i = 0; i < count; ++i) {
        Coming coming;
        if (i + 1 < count) coming = coming_of(tasks[i + 1], first);
        else if (first + kChunk < x.blocks) coming = coming_of(tasks[0], first + kChunk);
        else if (from + rows == x.rows && after) coming = coming_of(*after, 0);
        panel_times(tasks[i].w, tasks[i].w.panel(tasks[i].panel), x, from, rows, first,
                    std::min(kChunk, x.blocks - first), partial + i * size, coming);
      }
    for (int i = 0; i < count; ++i)
      for (int t = 0; t < rows; ++t)
        tasks[i].out.put(from + t, load(partial + i * size + t * kPanel));
  }
}

namespace {

// The panel with this number, counted through all products.
Task panel_of_products(const Product* product, int panel) {
  while (panel >= product->w.panels()) panel -= product++->w.panels();
  return {product->w, panel, panel_output(*product, panel)};
}

}  // namespace

void matmul_int8(const ActTiles& x, const Product* products, int count, int threads) {
  int panels = 0;
  for (int i = 0; i < count; ++i) panels += products[i].w.panels();
  if (is_small(static_cast<int64_t>(panels) * kPanel * x.blocks * kBlock * x.rows)) threads = 1;
  const int step = panels_at_once(panels, threads, is_wide(x) ? kTasks : kMostAtOnce);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int first = 0; first < panels; first += step) {
    Task tasks[kMostAtOnce], after;
    const int end = std::min(first + step, panels);
    for (int item = first; item < end; ++item)
      tasks[item - first] = panel_of_products(products, item);
    const int64_t next = item_after(end - 1, step, threads);
    if (next < panels) after = panel_of_products(products, static_cast<int>(next));
    panels_times(tasks, end - first, x, next < panels ? &after : nullptr);
  }
}

namespace {

// FP8 weights of columns [first, first + count) of a panel as floats, [column][16 rows]; both are
// multiples of 32.
void fp8_columns(const Packed& w, const uint8_t* panel, int64_t first, int count, float* buffer) {
  const int width = sizes_of(w.type).source_columns;
  const uint8_t* codes = panel + first * kPanel;
  const float* scales =
      reinterpret_cast<const float*>(panel + w.panel_codes_bytes()) + first / width * kPanel;
  for (int c = 0; c < count; c += kBlock) {
    uint16_t halves[kBlock * kPanel];
    for (int i = 0; i < kBlock * kPanel; ++i) halves[i] = fp8_as_half(codes[c * kPanel + i]);
    const f32x16 scale = load(scales + c / width * kPanel) * set1(256.0f);
    for (int i = 0; i < kBlock; ++i)
      store(buffer + (c + i) * kPanel, load_half(halves + i * kPanel) * scale);
  }
}

// The same of any type; F32 needs no copy.
const float* float_columns(const Packed& w, const uint8_t* panel, int64_t first, int count,
                           float* buffer) {
  switch (w.type) {
    case Type::F32:
      return reinterpret_cast<const float*>(panel) + first * kPanel;
    case Type::F16:
      for (int c = 0; c < count; ++c)
        store(buffer + c * kPanel,
              load_half(reinterpret_cast<const uint16_t*>(panel) + (first + c) * kPanel));
      return buffer;
    case Type::BF16:
      for (int c = 0; c < count; ++c)
        store(buffer + c * kPanel,
              load_bfloat(reinterpret_cast<const uint16_t*>(panel) + (first + c) * kPanel));
      return buffer;
    case Type::F8G32:
    case Type::F8G128:
      fp8_columns(w, panel, first, count, buffer);
      return buffer;
    default:
      break;
  }
  with_quantised_type(w.type, [&](auto type) {
    using L = Layout<type()>;
    constexpr int kOffset = L::affine ? 0 : L::offset;
    const PanelSource<type()> source(w, panel);
    if constexpr (L::planes == Planes::P16) {
      for (int c = 0; c < count; ++c) {
        const int64_t column = first + c;
        const auto* codes = reinterpret_cast<const int16_t*>(panel + column / 2 * 4 * kPanel);
        float q[kPanel];
        for (int r = 0; r < kPanel; ++r) q[r] = static_cast<float>(codes[2 * r + column % 2]);
        const int block = static_cast<int>(column / kBlock);
        store(buffer + c * kPanel, source.scale(block, 0) * load(q));
      }
      return;
    }
    for (int b = 0; b < count / kBlock; ++b) {
      uint8_t codes[kGroups][64];
      const int index = static_cast<int>(first / kBlock) + b;
      const auto block = source.block(index);
      for_range<0, kGroups>([&](auto g) { store_u8(codes[g], block(g)); });
      for (int c = 0; c < kBlock; ++c) {
        const int half = L::halves == 1 ? 0 : c / 16;
        float q[kPanel];
        for (int r = 0; r < kPanel; ++r) {
          const int code = codes[c / kGroup][r * kGroup + c % kGroup];
          q[r] = static_cast<float>(code - kOffset);
        }
        f32x16 value = load(q);
        if constexpr (L::scales == Scales::Zero) value = value - source.zero(index);
        value = source.scale(index, half) * value;
        if constexpr (L::affine) value = value + source.minimum(index, half);
        else if constexpr (L::has_min && L::scales != Scales::Zero)
          value = value + source.add(index, half);
        store(buffer + (b * kBlock + c) * kPanel, value);
      }
    }
  });
  return buffer;
}

// T tokens times P panels. A column of a token is read once for all panels, a panel's weights once
// for all tokens; the order of each sum is that of the columns, whatever T and P are.
template <int T, int P>
void float_tile(const float* const* weights, int count, const float* const* x, int64_t first,
                float* sums) {
  f32x16 acc[T][P];
  const float* row[T];
  for (int t = 0; t < T; ++t) row[t] = x[t] + first;
#pragma GCC unroll 24
  for (int i = 0; i < T * P; ++i) acc[i / P][i % P] = load(sums + i * kPanel);
  for (int c = 0; c < count; ++c) {
    f32x16 w[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) w[p] = load(weights[p] + c * kPanel);
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      const f32x16 value = set1(row[t][c]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[t][p] = fma(w[p], value, acc[t][p]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < T * P; ++i) store(sums + i * kPanel, acc[i / P][i % P]);
}

// P panels, whose sums lie [token][panel][16 rows] behind their weights as floats.
template <int P>
void float_panels(const Task* tasks, const float* const* x, int64_t n, std::vector<float>& buffer) {
  constexpr int kFloats = 512 * kPanel, kColumns = 512 / P;  // 32 KB
  constexpr int kTokens = std::min(kTileSums / P, 12);
  buffer.resize(kFloats + static_cast<size_t>(n) * P * kPanel);
  float* sums = buffer.data() + kFloats;
  std::fill(sums, sums + n * P * kPanel, 0.0f);
  const int64_t cols = tasks[0].w.cols;
  for (int64_t first = 0; first < cols; first += kColumns) {
    const int count = static_cast<int>(std::min<int64_t>(kColumns, cols - first));
    const float* weights[P];
    for (int p = 0; p < P; ++p) {
      const Packed& w = tasks[p].w;
      assert(w.cols == cols && first + count <= cols);
      weights[p] = float_columns(w, w.panel(tasks[p].panel), first, count,
                                 buffer.data() + p * kColumns * kPanel);
    }
    int64_t i = 0;
    for (; i + kTokens <= n; i += kTokens)
      float_tile<kTokens, P>(weights, count, x + i, first, sums + i * P * kPanel);
    for_range<1, kTokens>([&](auto left) {
      if (n - i == left())
        float_tile<left(), P>(weights, count, x + i, first, sums + i * P * kPanel);
    });
  }
  for (int64_t i = 0; i < n; ++i)
    for (int p = 0; p < P; ++p) tasks[p].out.put(i, load(sums + (i * P + p) * kPanel));
}

}  // namespace

void panels_times_float(const Task* tasks, int count, const float* const* x, int64_t n,
                        std::vector<float>& buffer) {
  const int together = n * kTasks <= kTileSums ? kTasks : n * 2 <= kTileSums ? 2 : 1;
  const int most = std::max(together, kFloatPanels);
  while (count > 0) {
    const int p = count >= 4 && most >= 4 ? 4 : count >= 2 && most >= 2 ? 2 : 1;
    if (p == 4) float_panels<4>(tasks, x, n, buffer);
    if (p == 2) float_panels<2>(tasks, x, n, buffer);
    if (p == 1) float_panels<1>(tasks, x, n, buffer);
    tasks += p, count -= p;
  }
}

void matmul_float(const float* x, int64_t n, int64_t stride, const Product& product, int threads) {
  const Packed& w = product.w;
  if (is_small(w.rows * w.cols * n)) threads = 1;
  const int panels = w.panels(),
            step = threads == 1 ? kTasks : panels_at_once(panels, threads, kTasks);
  std::vector<const float*> rows(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) rows[static_cast<size_t>(i)] = x + i * stride;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> buffer;
#pragma omp for schedule(dynamic, 1)
    for (int first = 0; first < panels; first += step) {
      Task tasks[kTasks];
      const int count = std::min(step, panels - first);
      for (int i = 0; i < count; ++i) tasks[i] = {w, first + i, panel_output(product, first + i)};
      panels_times_float(tasks, count, rows.data(), n, buffer);
    }
  }
}

}  // namespace dure::DURE_ISA
