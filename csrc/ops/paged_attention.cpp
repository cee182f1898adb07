// Grouped-query attention over the paged cache, for prefill and decode rows alike.
//
// One (block, key-value head) of the cache is K transposed, (head_dim, 32), then V, (32, values):
// scores are 32 lanes of keys, outputs are lanes of head_dim, and neither needs a horizontal sum.
// They are float16, float32 in exact mode, or int8 with a float scale for 32 columns of a token:
// then K's scales follow, (groups, 32), and V's, (groups, 32), and K has been turned (hadamard.h).
// A latent cache (DeepSeek-AI 2024, arXiv 2405.04434) has one entry a token, (32, head_dim), whose
// first columns are the value: unpacking makes the same two of it. Its bytes are not turned, as
// what is key is value too.
//
// Query heads that share a key-value head, of neighbouring tokens, fill register tiles. Keys are
// walked in fixed spans (softmax.h): a span's keys and values are made float once when several
// tiles want them, else as they are loaded. A key that some rows of a tile see and others do not is
// taken row by row. Each row's arithmetic is that of the row alone.
#include <omp.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "ops/blocks.h"
#include "ops/hadamard.h"
#include "ops/ops.h"
#include "ops/softmax.h"

namespace dure::DURE_ISA {

namespace {

constexpr int kSpanBlocks = kSpan / kCacheBlock;
// Tiles that read the blocks of the cache as they are stored: making them float for each costs less
// than floats that go through the second cache.
constexpr int kTilesAtOnce = 2;
// Rows (tokens x heads of a group) that share a span made float.
constexpr int kRunRows = 384;
// Hand-outs, so that uneven ones and a disturbed thread even out.
constexpr int kTasksPerThread = 4;
// Bytes of partial results that one run may leave for a merge.
constexpr size_t kMostShared = 8 << 20;

inline void fetch(const uint8_t* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// scores[r][32] = q_r . k for R queries, q being (dim, R). `next` is fetched meanwhile.
template <int R, class S, bool Ahead>
void tile_scores(const S& block, const float* q, int dim, float* scores, const uint8_t* next) {
  for (int first = 0; first < 2; first += kTileHalves) {
    f32x16 sums[R][kTileHalves];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      for (int h = 0; h < kTileHalves; ++h) sums[r][h] = set1(0);
    for (int d = 0; d < dim; ++d) {
      f32x16 k[kTileHalves];
      for (int h = 0; h < kTileHalves; ++h) k[h] = block.keys(d, first + h);
      if constexpr (Ahead)
        fetch(next + (d * 2 + first) * 16 * static_cast<int>(sizeof(typename S::Element)),
              16 * kTileHalves * static_cast<int>(sizeof(typename S::Element)));
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const f32x16 x = set1(q[d * R + r]);
        for (int h = 0; h < kTileHalves; ++h) sums[r][h] = fma(x, k[h], sums[r][h]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      for (int h = 0; h < kTileHalves; ++h)
        store(scores + r * kScoreStride + 16 * (first + h), sums[r][h]);
  }
}

// Columns [d, d + 16 V) of sums_r += the sum over keys [from, to) of p_r * v, key by key.
template <int R, int V, class S, bool Ahead>
inline void tile_values_at(const S& block, int d, int from, int to, const float* p, float* sums,
                           int64_t record, const uint8_t* next) {
  constexpr int kStep = 16 * V * static_cast<int>(sizeof(typename S::Element));
  f32x16 acc[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < V; ++i) acc[r][i] = load(sums + r * record + d + 16 * i);
  for (int t = from; t < to; ++t) {
    f32x16 v[V];
    for (int i = 0; i < V; ++i) v[i] = block.values(t, d + 16 * i);
    if constexpr (Ahead) fetch(next + t * kStep, kStep);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const f32x16 x = set1(p[r * kScoreStride + t]);
      for (int i = 0; i < V; ++i) acc[r][i] = fma(x, v[i], acc[r][i]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < V; ++i) store(sums + r * record + d + 16 * i, acc[r][i]);
}

template <int R, class S, bool Ahead>
void tile_values(const S& block, int width, int from, int to, const float* p, float* sums,
                 int64_t record, const uint8_t* next) {
  constexpr int kFit = kTileSums / R, V = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  int d = 0;
  for (; d + 16 * V <= width; d += 16 * V)
    tile_values_at<R, V, S, Ahead>(
        block, d, from, to, p, sums, record,
        next + d * kCacheBlock * static_cast<int>(sizeof(typename S::Element)));
  for (; d < width; d += 16)
    tile_values_at<R, 1, S, Ahead>(
        block, d, from, to, p, sums, record,
        next + d * kCacheBlock * static_cast<int>(sizeof(typename S::Element)));
}

// One call of paged_attention.
struct Call {
  const float* q;
  int heads;
  const CacheView& view;
  const RowsView& rows;
  const Scoring& scoring;
  float* out;
  int group() const { return heads / view.kv_heads; }
  int dim() const { return view.head_dim; }
  int padded() const {
    return static_cast<int>(round_up(static_cast<size_t>(view.value_dim()), 16));
  }
  int64_t record() const { return kRecordHead + padded(); }
  int64_t end_of(int64_t row) const { return static_cast<int64_t>(rows.positions[row]) + 1; }
  int64_t first_of(int64_t row) const {
    return scoring.window > 0 ? std::max<int64_t>(0, end_of(row) - scoring.window) : 0;
  }
};

// Rows [first, end) of one sequence at consecutive positions, and the spans that any of them sees.
struct Run {
  int64_t first, end, first_span, end_span;
  int64_t spans() const { return end_span - first_span; }
};

// Spans of a run for one key-value head. If the run is shared out over several tasks, they leave a
// record a row and span, and the last to finish merges them.
struct Shared {
  std::atomic<int> left{0};
  size_t records = 0;  // where they begin, in floats
};
struct Task {
  const Run* run;
  int kv_head;
  int64_t from, to;  // spans
  Shared* shared;
};

// A tile of R queries and the keys [first, end) that each sees.
struct Tile {
  int rows;
  const float* q;  // (dim, rows), scaled
  int64_t first[kTileRows], end[kTileRows];
};

inline int within(int64_t position, int64_t start, int length) {
  return static_cast<int>(std::clamp<int64_t>(position - start, 0, length));
}

// The keys of one span that a tile's rows see, counted from the span's first: each row's, all of
// them, and the shared ones.
struct Sight {
  int lo[kTileRows], hi[kTileRows];
  int first = kSpan, last = 0, shared_lo = 0, shared_hi = kSpan;
  Sight() = default;
  Sight(const Tile& tile, int64_t span) {
    for (int r = 0; r < tile.rows; ++r) {
      lo[r] = within(tile.first[r], span * kSpan, kSpan),
      hi[r] = within(tile.end[r], span * kSpan, kSpan);
      shared_lo = std::max(shared_lo, lo[r]), shared_hi = std::min(shared_hi, hi[r]);
      if (lo[r] < hi[r]) first = std::min(first, lo[r]), last = std::max(last, hi[r]);
    }
  }
  int begin() const { return first / kCacheBlock; }  // its blocks
  int end() const { return ceil_div(last, kCacheBlock); }
};

// records_r += p_r * v over the span's keys [start, start + length), which `block` begins with and
// p counts from: those that all rows see together, the others row by row.
template <int R, class S, bool Ahead>
void keys_values(const S& block, int start, int length, const Sight& sight, int width,
                 const float* p, float* sums, int64_t record, const uint8_t* next) {
  int from = within(sight.shared_lo, start, length);
  int to = within(sight.shared_hi, start, length);
  if (from == 0 && to == length)
    return tile_values<R, S, Ahead>(block, width, 0, to, p, sums, record, next);
  if (from >= to) from = to = length;
  auto alone = [&](int r, int a, int z) {
    if (a < z)
      tile_values<1, S, false>(block, width, a, z, p + r * kScoreStride, sums + r * record, record,
                               next);
  };
#pragma GCC unroll 1
  for (int r = 0; r < R; ++r)
    alone(r, within(sight.lo[r], start, length),
          std::min(within(sight.hi[r], start, length), from));
  if (from < to) tile_values<R, S, Ahead>(block, width, from, to, p, sums, record, next);
#pragma GCC unroll 1
  for (int r = 0; r < R; ++r)
    alone(r, std::max(within(sight.lo[r], start, length), to), within(sight.hi[r], start, length));
}

// Calls f with the number of a tile's rows as a constant.
template <class F>
void with_rows(const Tile& tile, F&& f) {
  for_range<1, kTileRows + 1>([&](auto rows) {
    if (tile.rows == rows) f(rows);
  });
}

// What the rows of up to kTilesAtOnce tiles gather from one span: a record each. The tiles take
// each block in turn while it is in the first cache; of a span made float they take the values at
// once, so that sums are loaded and stored once.
template <class B>
void tiles_span(const B& blocks, const Call& call, const Tile* tiles, int count, int64_t span,
                float* scores, float* records) {
  using S = typename B::Source;
  assert(count >= 1 && count <= kTilesAtOnce);
  const int64_t record = call.record(), base = span * kSpanBlocks;
  Sight sights[kTilesAtOnce];
  float *scores_of[kTilesAtOnce], *records_of[kTilesAtOnce];
  int begin = kSpanBlocks, end = 0;
  for (int i = 0; i < count; ++i) {
    sights[i] = Sight(tiles[i], span);
    begin = std::min(begin, sights[i].begin()), end = std::max(end, sights[i].end());
    scores_of[i] = scores + i * kTileRows * kScoreStride;
    records_of[i] = records;
    records += tiles[i].rows * record;
  }
  auto each_sees = [&](int from, int to, auto&& f) {
    for (int i = 0; i < count; ++i)
      if (to > sights[i].begin() && from < sights[i].end())
        with_rows(tiles[i], [&](auto rows) { f(rows, i); });
  };
  // What is read after a block's keys, and after its values.
  const int64_t half_bytes =
      kCacheBlock * blocks.keys * static_cast<int64_t>(sizeof(typename S::Element));
  auto after_keys = [&](int b) -> const uint8_t* {
    if constexpr (!B::ahead) return reinterpret_cast<const uint8_t*>(blocks.k);
    else return b + 1 < end ? blocks.at(base + b + 1) : blocks.at(base + begin) + half_bytes;
  };
  auto after_values = [&](int b) -> const uint8_t* {
    if constexpr (!B::ahead) return reinterpret_cast<const uint8_t*>(blocks.v);
    else return blocks.at(base + (b + 1 < end ? b + 1 : b)) + half_bytes;
  };
  for (int b = begin; b < end; ++b) {
    const uint8_t* next = after_keys(b);
    each_sees(b, b + 1, [&](auto rows, int i) {
      tile_scores<rows(), S, B::ahead>(blocks.block(base + b), tiles[i].q, call.dim(),
                                       scores_of[i] + b * kCacheBlock, next);
    });
  }
  for (int i = 0; i < count; ++i) {
    std::fill_n(records_of[i], tiles[i].rows * record, 0.0f);
#pragma GCC unroll 1
    for (int r = 0; r < tiles[i].rows; ++r)
      if (sights[i].lo[r] < sights[i].hi[r])
        span_softmax(scores_of[i] + r * kScoreStride, sights[i].lo[r], sights[i].hi[r],
                     records_of[i] + r * record);
  }
  // Blocks whose values lie side by side, if any rows of a tile see them.
  constexpr int kBlocks = B::ahead ? 1 : kSpanBlocks;
  for (int b = B::ahead ? begin : 0; b < end; b += kBlocks) {
    const uint8_t* next = after_values(b);
    each_sees(b, b + kBlocks, [&](auto rows, int i) {
      const int first = std::max(b, sights[i].begin()),
                count = std::min(b + kBlocks, sights[i].end()) - first;
      keys_values<rows(), S, B::ahead>(blocks.block(base + first), first * kCacheBlock,
                                       count * kCacheBlock, sights[i], call.padded(),
                                       scores_of[i] + first * kCacheBlock,
                                       records_of[i] + kRecordHead, record, next);
    });
  }
}

// One thread's memory, cut out of the call's.
struct Scratch {
  float *scores, *part, *q, *states, *keys, *values;
  static size_t floats(const Call& call, size_t rows) {
    const size_t keys = static_cast<size_t>(call.dim()),
                 record = static_cast<size_t>(call.record());
    return kTilesAtOnce * kTileRows * (kScoreStride + record) + rows * (keys + record) +
           kSpan * (keys + static_cast<size_t>(call.padded()));
  }
  Scratch(float* memory, const Call& call, size_t rows) {
    const size_t record = static_cast<size_t>(call.record());
    scores = memory;
    part = scores + kTilesAtOnce * kTileRows * kScoreStride;
    states = part + kTilesAtOnce * kTileRows * record;
    keys = states + rows * record;
    values = keys + kSpan * call.dim();
    q = values + kSpan * call.padded();
  }
};

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Memory = std::unique_ptr<float[], Free>;
Memory allocate(size_t floats) {
  void* p = std::aligned_alloc(64, round_up(std::max<size_t>(floats, 1) * sizeof(float), 64));
  if (!p) throw std::bad_alloc();
  return Memory(static_cast<float*>(p));
}

// The run's queries of one key-value head, in tiles as even as they come.
std::vector<Tile> tiles_of(const Call& call, const Run& run, int kv_head, float* q) {
  const int64_t group = call.group(), count = (run.end - run.first) * group;
  const int dim = call.dim(), tiles = ceil_div(count, kTileRows);
  const bool turned = call.view.type == CacheType::Byte && !call.view.latent;
  const float factor =
      call.scoring.scale * kLog2E / static_cast<float>(turned ? turned_columns(dim) : 1);
  std::vector<float> rows(turned ? static_cast<size_t>(kTileRows) * dim : 0);
  std::vector<Tile> result(static_cast<size_t>(tiles));
  int64_t next = 0;
  for (int i = 0; i < tiles; ++i) {
    Tile& tile = result[static_cast<size_t>(i)];
    tile.rows = static_cast<int>(count / tiles + (i < count % tiles));
    const float* from[kTileRows];
    for (int r = 0; r < tile.rows; ++r) {
      const int64_t row = run.first + (next + r) / group,
                    head = kv_head * group + (next + r) % group;
      from[r] = call.q + (row * call.heads + head) * dim;
      tile.first[r] = call.first_of(row), tile.end[r] = call.end_of(row);
      if (!turned) continue;
      float* mine = rows.data() + static_cast<size_t>(r) * dim;
      std::copy_n(from[r], dim, mine);
      turn(mine, dim);
      from[r] = mine;
    }
    for (int d = 0; d < dim; ++d)
      for (int r = 0; r < tile.rows; ++r) q[d * tile.rows + r] = from[r][d] * factor;
    tile.q = q;
    q += static_cast<int64_t>(tile.rows) * dim;
    next += tile.rows;
  }
  return result;
}

// What a row's result is multiplied by: one over the sum of its weights, of which its head's sink
// is one. As of any two parts, both are taken relative to the higher peak.
float share_of(const Call& call, int64_t head, const float* state) {
  if (!call.scoring.sinks) return 1.0f / state[1];
  const float sink = call.scoring.sinks[head] * kLog2E, peak = std::max(state[0], sink);
  const f32x16 shift = shift_of(peak);
  float weights[16], sinks[16];
  store(weights, exp2_16(set1(state[0]) - shift));
  store(sinks, exp2_16(set1(sink) - shift));
  return weights[0] / (state[1] * weights[0] + sinks[0]);
}

// A row's result: what it gathered, over the sum of its weights.
void finish(const Call& call, const Run& run, int kv_head, int64_t index, const float* state) {
  const int64_t group = call.group(), row = run.first + index / group,
                head = kv_head * group + index % group;
  const int dim = call.view.value_dim();
  float* out = call.out + (row * call.heads + head) * dim;
  const f32x16 share = set1(share_of(call, head, state) * call.scoring.value_scale);
  for (int d = 0; d < dim; d += 16)
    store_n(out + d, load(state + kRecordHead + d) * share, std::min(16, dim - d));
}

// The records of all spans, which several tasks left, merged in order.
void merge_shared(const Call& call, const Task& task, float* records) {
  const Run& run = *task.run;
  const int64_t record = call.record(), count = (run.end - run.first) * call.group();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = run.first + i / call.group();
    const int64_t first = call.first_of(row) / kSpan, last = (call.end_of(row) - 1) / kSpan;
    auto at = [&](int64_t span) {
      return records + ((span - run.first_span) * count + i) * record;
    };
    for (int64_t span = first + 1; span <= last; ++span)
      merge_records(at(first), at(span), call.padded());
    finish(call, run, task.kv_head, i, at(first));
  }
}

template <class S>
void task_spans(const Call& call, const Task& task, Scratch scratch, float* shared) {
  const Run& run = *task.run;
  const CacheView& view = call.view;
  const int dim = call.dim(), padded = call.padded();
  const int64_t record = call.record(), count = (run.end - run.first) * call.group();
  const int64_t head_bytes = view.head_bytes();
  const Stored<S> stored{
      static_cast<const uint8_t*>(view.data),
      call.rows.block_tables + call.rows.sequences[run.first] * call.rows.table_width,
      head_bytes * view.kv_heads,
      head_bytes * task.kv_head,
      view.latent ? 0 : dim,
      view.latent ? dim : view.value_dim()};
  const std::vector<Tile> tiles = tiles_of(call, run, task.kv_head, scratch.q);
  // Float caches are for checking: they go the one way that is compiled for floats.
  constexpr bool kDirect = !std::is_same_v<S, Floats>;
  const bool direct =
      kDirect && tiles.size() <= kTilesAtOnce && view.value_dim() == padded && !view.latent;
  const int64_t first_key = call.first_of(run.first), end_key = call.end_of(run.end - 1);
  assert(end_key <= call.rows.table_width * kCacheBlock);
  assert(std::all_of(stored.table + first_key / kCacheBlock,
                     stored.table + ceil_div(end_key, kCacheBlock),
                     [&](int32_t block) { return block >= 0 && block < view.num_blocks; }));
  for (int64_t span = task.from; span < task.to; ++span) {
    const int64_t base = span * kSpanBlocks;
    const Unpacked unpacked{scratch.keys, scratch.values, base, dim, padded};
    if (!direct) {
      const int64_t end = std::min<int64_t>(base + kSpanBlocks, ceil_div(end_key, kCacheBlock));
      for (int64_t b = std::max(base, first_key / kCacheBlock); b < end; ++b) {
        float *keys = unpacked.keys_of(b), *values = unpacked.values_of(b);
        if (view.latent) unpack_latent(stored.block(b), dim, view.latent, keys, values);
        else unpack(stored.block(b), dim, view.value_dim(), padded, keys, values);
      }
    }
    int64_t index = 0;
    for (size_t first = 0, together; first < tiles.size(); first += together) {
      together = std::min<size_t>(kTilesAtOnce, tiles.size() - first);
      float* part =
          task.shared ? shared + ((span - run.first_span) * count + index) * record : scratch.part;
      auto gather = [&](const auto& blocks) {
        tiles_span(blocks, call, &tiles[first], static_cast<int>(together), span, scratch.scores,
                   part);
      };
      if (!direct) gather(unpacked);
      else if constexpr (kDirect) gather(stored);
      for (size_t i = first; i < first + together; ++i)
        for (int r = 0; r < tiles[i].rows; ++r, ++index, part += record) {
          if (task.shared) continue;
          float* state = scratch.states + index * record;
          if (span == tiles[i].first[r] / kSpan) std::copy_n(part, record, state);
          else if (span * kSpan < tiles[i].end[r] && span * kSpan >= tiles[i].first[r])
            merge_records(state, part, padded);
        }
    }
  }
  if (!task.shared) {
    for (int64_t i = 0; i < count; ++i)
      finish(call, run, task.kv_head, i, scratch.states + i * record);
  } else if (task.shared->left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    merge_shared(call, task, shared);
  }
}

// Stretches of rows at consecutive positions of one sequence: long enough to share what is
// unpacked, and so many that every thread gets some.
std::vector<Run> runs_of(const Call& call, int threads) {
  const RowsView& rows = call.rows;
  std::vector<Run> runs;
  auto follows = [&](int64_t i) {
    return i < rows.rows && rows.sequences[i] == rows.sequences[i - 1] &&
           rows.positions[i] == rows.positions[i - 1] + 1;
  };
  for (int64_t i = 0; i < rows.rows;) {
    int64_t end = i + 1;
    while (follows(end)) ++end;
    const int64_t group = call.group(), spans = (call.end_of(end - 1) + kSpan - 1) / kSpan;
    const int64_t least = ceil_div(2 * kTileRows, group),
                  most = std::max<int64_t>(least, kRunRows / group);
    const int64_t even = (end - i) * call.view.kv_heads * spans / (kTasksPerThread * threads);
    const int64_t tokens = std::clamp(even, least, most);
    for (; i < end; i += tokens) {
      const int64_t stop = std::min(end, i + tokens);
      runs.push_back(
          {i, stop, call.first_of(i) / kSpan, (call.end_of(stop - 1) + kSpan - 1) / kSpan});
    }
    i = end;
  }
  return runs;
}

template <class S>
void all_tasks(const Call& call, int threads) {
  const int kv_heads = call.view.kv_heads;
  // A short context is walked sooner than a second thread is woken.
  int64_t keys = 0;
  for (int64_t i = 0; i < call.rows.rows; ++i) keys += call.end_of(i) - call.first_of(i);
  if (keys * call.heads * call.dim() < (1 << 17)) threads = 1;
  const std::vector<Run> runs = runs_of(call, threads);
  int64_t work = 0, most_rows = 0;
  auto work_of = [&](const Run& run) { return (run.end - run.first) * run.spans(); };
  for (const Run& run : runs) {
    work += work_of(run) * kv_heads;
    most_rows = std::max(most_rows, (run.end - run.first) * call.group());
  }
  const int64_t target = std::max<int64_t>(1, work / (kTasksPerThread * threads));
  std::vector<Task> tasks;
  std::vector<std::unique_ptr<Shared>> shared;
  size_t shared_floats = 0;
  for (auto run = runs.rbegin(); run != runs.rend();
       ++run) {  // the last see the most keys, and are begun first
    const size_t floats =
        static_cast<size_t>((run->end - run->first) * call.group() * run->spans() * call.record());
    int64_t pieces = std::min(run->spans(), work_of(*run) / target);
    if (threads == 1 || pieces < 2 || floats * sizeof(float) > kMostShared) pieces = 1;
    for (int head = 0; head < kv_heads; ++head) {
      Shared* mine = nullptr;
      if (pieces > 1) {
        mine = shared.emplace_back(std::make_unique<Shared>()).get();
        mine->left = static_cast<int>(pieces);
        mine->records = shared_floats;
        shared_floats += floats;
      }
      for (int64_t i = 0; i < pieces; ++i)
        tasks.push_back({&*run, head, run->first_span + run->spans() * i / pieces,
                         run->first_span + run->spans() * (i + 1) / pieces, mine});
    }
  }
  const auto count = static_cast<int64_t>(tasks.size());
  threads = static_cast<int>(std::min<int64_t>(threads, count));
  const size_t each = round_up(Scratch::floats(call, static_cast<size_t>(most_rows)), 16);
  const Memory memory = allocate(each * static_cast<size_t>(threads) + shared_floats);
  float* records = memory.get() + each * static_cast<size_t>(threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    const Scratch scratch(memory.get() + each * static_cast<size_t>(omp_get_thread_num()), call,
                          static_cast<size_t>(most_rows));
    task_spans<S>(call, task, scratch, task.shared ? records + task.shared->records : nullptr);
  }
}

}  // namespace

void paged_attention(const float* q, int heads, const CacheView& cache, const RowsView& rows,
                     const Scoring& scoring, float* out, int threads) {
  const Call call{q, heads, cache, rows, scoring, out};
  if (rows.rows == 0) return;
  if (cache.type == CacheType::Byte) all_tasks<Bytes>(call, threads);
  else if (cache.type == CacheType::Half) all_tasks<Halves>(call, threads);
  else all_tasks<Floats>(call, threads);
}

}  // namespace dure::DURE_ISA
