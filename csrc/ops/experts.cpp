// The mixture of experts: rows sorted by expert, gate and up fused with the activation, each
// expert's rows one product. A dense gated MLP is the same with one expert that every row goes to:
// its activations never leave the int8 tiles.
#include <omp.h>

#include "ops/activation.h"
#include "ops/matmul.h"

namespace dure::DURE_ISA {

namespace {

// The rows of one expert in this call, in token order.
struct Job {
  int expert;
  std::vector<int> pairs;          // token * k + slot
  const ActTiles* x = nullptr;     // int8: the inputs, `own` unless all rows go to this expert
  ActTiles own, h;                 // … and the activated intermediate
  std::vector<const float*> rows;  // float path: the inputs
  std::vector<float> wide;         // … and the intermediate
};

std::vector<Job> jobs_of(int64_t n, const int32_t* ids, int k, const ExpertSet& e,
                         const uint8_t* chosen) {
  std::vector<int> index(static_cast<size_t>(e.count), -1);
  std::vector<Job> jobs;
  for (int64_t pair = 0; pair < n * k; ++pair) {
    if (chosen && !chosen[ids[pair]]) continue;
    int& at = index[static_cast<size_t>(ids[pair])];
    if (at < 0) {
      at = static_cast<int>(jobs.size());
      jobs.emplace_back().expert = ids[pair];
    }
    jobs[static_cast<size_t>(at)].pairs.push_back(static_cast<int>(pair));
  }
  // The largest first, so that the last item handed out is a small one.
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const Job& a, const Job& b) { return a.pairs.size() > b.pairs.size(); });
  return jobs;
}

// Adds the bias of `columns` columns to each row of x, (n, stride).
void add_bias(const float* bias, int64_t n, int columns, int64_t stride, float* x) {
  for (int64_t i = 0; i < n; ++i, x += stride)
    for (int c = 0; c < columns; c += kPanel) {
      const int width = std::min(kPanel, columns - c);
      store_n(x + c, load_n(x + c, width) + load_n(bias + c, width), width);
    }
}

// The same for the gates and ups of an expert, from a column on.
void add_biases(const ExpertSet& e, int expert, int64_t from, int64_t n, int columns,
                int64_t stride, float* gates, float* ups) {
  if (!e.gate_bias) return;
  const int64_t at = expert * e.intermediate + from;
  add_bias(e.gate_bias + at, n, columns, stride, gates);
  add_bias(e.up_bias + at, n, columns, stride, ups);
}

// 32 columns of the activated gate and up for all rows of a job, straight to the int8 tiles that
// down will read. after: what this thread reads next, if anything.
void gate_up_int8(Job& job, const ExpertSet& e, int block, const Task* after,
                  std::vector<float>& buffer) {
  const Packed gate = e.gate_of(job.expert), up = e.up_of(job.expert);
  const int rows = job.x->rows, p = 2 * block;
  buffer.resize(static_cast<size_t>(rows) * 2 * kBlock);
  float *g = buffer.data(), *u = g + static_cast<size_t>(rows) * kBlock;
  const Task tasks[kTasks] = {{gate, p, {g, kBlock, kPanel}},
                              {gate, p + 1, {g + kPanel, kBlock, kPanel}},
                              {up, p, {u, kBlock, kPanel}},
                              {up, p + 1, {u + kPanel, kBlock, kPanel}}};
  panels_times(tasks, kTasks, *job.x, after);
  add_biases(e, job.expert, static_cast<int64_t>(block) * kBlock, rows, kBlock, kBlock, g, u);
  activate(e.activation, g, u, static_cast<int64_t>(rows) * kBlock, g);
  for (int i = 0; i < rows; ++i)
    quantize_into(g + i * kBlock, record_of(job.h, i, block), i % job.h.width);
}

void gate_up_float(Job& job, const ExpertSet& e, int panel, std::vector<float>& weights,
                   std::vector<float>& buffer) {
  const Packed gate = e.gate_of(job.expert), up = e.up_of(job.expert);
  const auto n = static_cast<int64_t>(job.rows.size());
  buffer.assign(static_cast<size_t>(n) * 2 * kPanel, 0.0f);
  float *g = buffer.data(), *u = g + n * kPanel;
  const int columns = static_cast<int>(
      std::min<int64_t>(kPanel, e.intermediate - static_cast<int64_t>(panel) * kPanel));
  const Task tasks[] = {{gate, panel, {g, kPanel, columns}}, {up, panel, {u, kPanel, columns}}};
  panels_times_float(tasks, 2, job.rows.data(), n, weights);
  add_biases(e, job.expert, static_cast<int64_t>(panel) * kPanel, n, columns, kPanel, g, u);
  activate(e.activation, g, u, n * kPanel, g);
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(job.wide.data() + i * e.intermediate + static_cast<int64_t>(panel) * kPanel,
                g + i * kPanel, sizeof(float) * columns);
}

// Adds the squares of 32 (int8) or 16 columns of what down takes, over a job's rows, to the sums.
void watch_inner(const Job& job, const ExpertSet& e, int part, bool as_float) {
  const int columns = as_float ? kPanel : kBlock;
  const int64_t first = static_cast<int64_t>(part) * columns,
                end = std::min(first + columns, e.intermediate);
  double* sums = e.inner_squares + job.expert * e.intermediate;
  for (size_t i = 0; i < job.pairs.size(); ++i) {
    const int row = static_cast<int>(i), lane = row % std::max(job.h.width, 1);
    const uint8_t* data = as_float ? nullptr : job.h.record(row, part);
    const Record<const uint8_t> record{data, job.h.width};
    for (int64_t c = first; c < end; ++c) {
      const double x =
          as_float ? job.wide[i * static_cast<size_t>(e.intermediate) + static_cast<size_t>(c)]
                   : record.scale()[lane] *
                         static_cast<float>(record.codes()[lane * kBlock + (c - first)]);
      sums[c] += x * x;
    }
  }
}

// Items handed out at a time.
constexpr int kPartsAtOnce = 4, kDownsAtOnce = 2;

// Columns of the products, from a multiple of kPanel on: (n, k, width).
struct Columns {
  int64_t first, width;
  float* products;

  int panel(int item) const { return static_cast<int>(first / kPanel) + item * kTasks; }
  int items() const { return static_cast<int>(ceil_div(width, kTasks * kPanel)); }
};

// kTasks panels of down, the `item`th of these columns, for all rows of a job; row i goes to
// products[pairs[i]]. after: what this thread reads next, if anything.
void down_panels(const Job& job, const ExpertSet& e, int item, bool as_float,
                 const Columns& columns, const Task* after, std::vector<float>& weights,
                 std::vector<float>& buffer) {
  const Packed down = e.down_of(job.expert);
  const auto n = static_cast<int64_t>(job.pairs.size());
  const int first = columns.panel(item);
  const int end = static_cast<int>(ceil_div(columns.first + columns.width, kPanel));
  const int count = std::min(kTasks, end - first);
  const int64_t start = static_cast<int64_t>(first) * kPanel,
                width = std::min<int64_t>(count * kPanel, e.hidden - start);
  buffer.resize(static_cast<size_t>(n) * width);
  Task tasks[kTasks];
  for (int i = 0; i < count; ++i)
    tasks[i] = {down,
                first + i,
                {buffer.data() + i * kPanel, width,
                 static_cast<int>(std::min<int64_t>(kPanel, width - i * kPanel))}};
  if (as_float) {
    std::vector<const float*> rows;
    for (int64_t i = 0; i < n; ++i) rows.push_back(job.wide.data() + i * e.intermediate);
    panels_times_float(tasks, count, rows.data(), n, weights);
  } else {
    panels_times(tasks, count, job.h, after);
  }
  if (e.down_bias)
    add_bias(e.down_bias + job.expert * e.hidden + start, n, static_cast<int>(width), width,
             buffer.data());
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(columns.products + job.pairs[static_cast<size_t>(i)] * columns.width + start -
                    columns.first,
                buffer.data() + i * width, sizeof(float) * width);
}

}  // namespace

void experts(const ActTiles* tiles, const float* x, int64_t n, const int32_t* ids,
             const float* weights, int k, const ExpertSet& e, const ExpertsPart& part,
             int threads) {
  std::vector<Job> jobs = jobs_of(n, ids, k, e, part.chosen);
  const bool as_float = tiles == nullptr;
  const int num_jobs = static_cast<int>(jobs.size());
  const int wide_items = as_float ? e.gate.panels() : static_cast<int>(e.intermediate / kBlock);
  std::vector<std::pair<int, int>> copies;  // (job, row of it)
  for (int j = 0; j < num_jobs; ++j) {
    Job& job = jobs[static_cast<size_t>(j)];
    const auto rows = static_cast<int>(job.pairs.size());
    if (as_float) {
      for (const int pair : job.pairs) job.rows.push_back(x + pair / k * e.hidden);
      job.wide.resize(static_cast<size_t>(rows) * e.intermediate);
      continue;
    }
    shape_tiles(job.h, rows, e.intermediate);
    job.x = tiles;
    if (k == 1 && rows == n) continue;
    shape_tiles(job.own, rows, e.hidden);
    job.x = &job.own;
    for (int i = 0; i < rows; ++i) copies.emplace_back(j, i);
  }

#pragma omp parallel num_threads(threads)
  {
    std::vector<float> weights_as_floats, buffer;
    if (!copies.empty()) {
#pragma omp for schedule(static)
      for (size_t i = 0; i < copies.size(); ++i) {
        Job& job = jobs[static_cast<size_t>(copies[i].first)];
        const int row = copies[i].second;
        copy_row(*tiles, job.pairs[static_cast<size_t>(row)] / k, job.own, row);
      }
    }
    const int team = omp_get_num_threads();
    auto job_of = [&](int64_t item, int items) -> Job& {
      return jobs[static_cast<size_t>(item / items)];
    };
    // The first panel of what this thread reads next, of `items` for each job.
    Task after;
    auto coming = [&](int64_t item, int step, int items, auto&& task_of) -> const Task* {
      const int64_t next = item_after(item, step, team);
      if (next >= int64_t{num_jobs} * items) return nullptr;
      after = task_of(job_of(next, items).expert, static_cast<int>(next % items));
      return &after;
    };
#pragma omp for schedule(dynamic, kPartsAtOnce)
    for (int64_t item = 0; item < int64_t{num_jobs} * wide_items; ++item) {
      Job& job = job_of(item, wide_items);
      const int part = static_cast<int>(item % wide_items);
      if (as_float) {
        gate_up_float(job, e, part, weights_as_floats, buffer);
      } else {
        const Task* next = coming(item, kPartsAtOnce, wide_items, [&](int expert, int block) {
          return Task{e.gate_of(expert), 2 * block, {}};
        });
        gate_up_int8(job, e, part, next, buffer);
      }
    }
    if (e.inner_squares) {
#pragma omp for schedule(static)
      for (int64_t item = 0; item < int64_t{num_jobs} * wide_items; ++item)
        watch_inner(jobs[static_cast<size_t>(item / wide_items)], e,
                    static_cast<int>(item % wide_items), as_float);
    }
    for (int64_t from = 0; from < e.hidden; from += part.columns) {
      const Columns columns{from, std::min(part.columns, e.hidden - from), part.products};
      const int items = columns.items();
#pragma omp for schedule(dynamic, kDownsAtOnce)
      for (int64_t item = 0; item < int64_t{num_jobs} * items; ++item) {
        const Task* next = coming(item, kDownsAtOnce, items, [&](int expert, int at) {
          return Task{e.down_of(expert), columns.panel(at), {}};
        });
        down_panels(job_of(item, items), e, static_cast<int>(item % items), as_float, columns, next,
                    weights_as_floats, buffer);
      }
      // A token's experts are added in the order its router named them, whatever else is in the
      // batch, and in whatever order they were computed.
#pragma omp for schedule(static)
      for (int64_t token = 0; token < (part.out ? n : 0); ++token) {
        const float* products = part.products + token * k * columns.width;
        for (int64_t c = 0; c < columns.width; c += kPanel) {
          const int width = static_cast<int>(std::min<int64_t>(kPanel, columns.width - c));
          const int64_t at = token * e.hidden + from + c;
          f32x16 acc = set1(0);
          for (int slot = 0; slot < k; ++slot)
            acc = fma(set1(weights[token * k + slot]),
                      load_n(products + slot * columns.width + c, width), acc);
          store_n(part.out + at, part.add ? acc + load_n(part.add + at, width) : acc, width);
        }
      }
    }
  }
}

}  // namespace dure::DURE_ISA
