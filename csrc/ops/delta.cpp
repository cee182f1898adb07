// The gated delta rule (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464), with one decay a head or
// one a channel of the key (Kimi Delta Attention, arXiv 2510.26692), the short convolution before
// it, and the gates.
//
// A slot of recurrent state holds what both keep of one sequence: first the convolution's last
// kernel - 1 inputs, the oldest first, (kernel - 1, channels); then the delta rule's matrices,
// (value heads, strips, key_dim, 32): the values in strips of 32 lanes, the last one padded with
// zeros, so that a strip is one run of memory that stays in the first cache. Tokens are taken one
// after the other, whatever the chunk, so that a chunk's bounds change no bit.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "ops/buffer_pool.h"
#include "ops/columns.h"
#include "ops/states.h"

namespace dure::DURE_ISA {

void rms_norm(const float*, int64_t, int64_t, const float*, float, float*, int);  // elementwise.cpp

namespace {

constexpr int64_t kChannels = 256;  // of the convolution, in one piece of work

void store_up_to(float* p, f32x16 a, int64_t n) {
  if (n >= 16) return store(p, a);
  if (n > 0) store_n(p, a, static_cast<int>(n));
}
f32x16 load_up_to(const float* p, int64_t n) {
  return n >= 16 ? load(p) : load_n(p, static_cast<int>(std::max<int64_t>(n, 0)));
}

// Below -88 the true value is under 1e-36: zero, and not what a saturated exponential would make of
// it.
f32x16 sigmoid(f32x16 x) {
  return zero_below(set1(1.0f) / (set1(1.0f) + exp16(set1(0) - x)), x, -88.0f);
}
f32x16 silu(f32x16 x) { return zero_below(x / (set1(1.0f) + exp16(set1(0) - x)), x, -88.0f); }

// A piece of the channels through all rows of a run.
struct Convolution {
  const Columns& columns;
  const float* x;
  int64_t width, channels, kernel;
  const float* weight;  // (kernel, channels)
  bool with_silu;

  // Input of channels c to c + 15 at `row`; before the run it is what the state kept, or zero.
  f32x16 input(const StateRun& run, int64_t row, int64_t c) const {
    if (row >= run.first) return columns.load(x + row * width, c);
    if (!run.from) return set1(0);
    return load_up_to(run.from + (kernel - 1 + row - run.first) * channels + c, channels - c);
  }
  void compute(const StateRun& run, int64_t row, int64_t c, float* out) const {
    f32x16 sum = set1(0);
    for (int64_t tap = 0; tap < kernel; ++tap)
      sum = fma(input(run, row - kernel + 1 + tap, c),
                load_up_to(weight + tap * channels + c, channels - c), sum);
    store_up_to(out + row * channels + c, with_silu ? silu(sum) : sum, channels - c);
  }
  // The inputs that the rows after `row` will look back on. Rising, since `to` may be the slot they
  // are read from.
  void save(const StateRun& run, int64_t row, int64_t c, float* to) const {
    for (int64_t kept = 0; kept + 1 < kernel; ++kept)
      store_up_to(to + kept * channels + c, input(run, row - kernel + 2 + kept, c), channels - c);
  }
  void through(const StatesView& states, const StateRun& run, int64_t first, int64_t last,
               float* out) const {
    int64_t save_at = run.first_save;
    for (int64_t row = run.first; row < run.end; ++row) {
      for (int64_t c = first; c < last; c += 16) compute(run, row, c, out);
      for (; save_at < run.end_save && states.saves[save_at].row == row; ++save_at)
        for (int64_t c = first; c < last; c += 16) save(run, row, c, states.saves[save_at].to);
    }
  }
};

// What the recurrence needs of a row, for all strips of a head.
struct Prepared {
  // (rows, key heads, key_dim), of length 1; queries / sqrt(key_dim).
  PooledBuffer<float> keys, queries;
  PooledBuffer<float> products;  // (rows, key heads): key times query
  PooledBuffer<float> betas;     // (rows, value heads)
  PooledBuffer<float> decays;    // of DeltaInput's a
  // Key and query times the decays, if each channel has its own: (rows, value heads, key_dim).
  PooledBuffer<float> faded_keys, faded_queries;
};

void normalize(const float* from, int64_t count, double scale, float* to) {
  f32x16 squares = set1(0);
  for (int64_t i = 0; i < count; i += 16) {
    const f32x16 v = load_up_to(from + i, count - i);
    squares = fma(v, v, squares);
  }
  const float inverse =
      static_cast<float>(scale / std::sqrt(static_cast<double>(sum_lanes(squares)) + 1e-6));
  for (int64_t i = 0; i < count; i += 16)
    store_up_to(to + i, load_up_to(from + i, count - i) * set1(inverse), count - i);
}

float dot(const float* a, const float* b, int64_t count) {
  f32x16 sum = set1(0);
  for (int64_t i = 0; i < count; i += 16)
    sum = fma(load_up_to(a + i, count - i), load_up_to(b + i, count - i), sum);
  return sum_lanes(sum);
}

// In double, rounded once: no library's last digit shows.
float decay_of(float a, float bias, float rate) {
  const double x = static_cast<double>(a + bias);
  const double softplus = x > 20 ? x : std::log1p(std::exp(x));
  return static_cast<float>(std::exp(rate * softplus));
}
float sigmoid_of(float b) {
  return static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(b))));
}

// log(1 + e^x) to a few ulp. With y = e^-|x|, at most 1, log(1 + y) is 2 atanh(y / (2 + y)), of
// whose series eight terms are enough.
f32x16 softplus(f32x16 x) {
  const f32x16 y = exp16(set1(0) - max(set1(0) - x, x));
  const f32x16 z = y / (set1(2.0f) + y), square = z * z;
  f32x16 sum = set1(1.0f / 15);
  for (int odd = 13; odd > 0; odd -= 2)
    sum = fma(sum, square, set1(1.0f / static_cast<float>(odd)));
  return fma(z + z, sum, max(set1(0), x));
}

// The decays of one head's channels, and key and query times them.
void fade(const DeltaInput& in, int64_t row, int64_t head, Prepared& p) {
  const DeltaShape& shape = in.shape;
  const int64_t dim = shape.key_dim, at = (row * shape.value_heads + head) * dim,
                key = (row * shape.key_heads + head / shape.group()) * dim;
  const f32x16 rate = set1(in.rate[head]), bound = set1(in.bound);
  for (int64_t d = 0; d < dim; d += 16) {
    const int64_t left = dim - d;
    const f32x16 x = load_up_to(in.a + at + d, left) + load_up_to(in.bias + head * dim + d, left);
    const f32x16 decay =
        exp16(in.bound < 0 ? bound * sigmoid(set1(0) - rate * x) : rate * softplus(x));
    store_up_to(p.decays.data() + at + d, decay, left);
    store_up_to(p.faded_keys.data() + at + d, decay * load_up_to(p.keys.data() + key + d, left),
                left);
    store_up_to(p.faded_queries.data() + at + d,
                decay * load_up_to(p.queries.data() + key + d, left), left);
  }
}

Prepared prepare(const DeltaInput& in, int64_t rows, int threads) {
  const DeltaShape& shape = in.shape;
  const int64_t keys = shape.key_heads, values = shape.value_heads, dim = shape.key_dim;
  const auto floats = [&](int64_t count) {
    return PooledBuffer<float>(static_cast<size_t>(rows * count));
  };
  Prepared p{floats(keys * dim), floats(keys * dim), floats(keys), floats(values), {}, {}, {}};
  p.decays = floats(in.by_channel ? values * dim : values);
  if (in.by_channel) {
    p.faded_keys = floats(values * dim);
    p.faded_queries = floats(values * dim);
  }
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 4)
  for (int64_t row = 0; row < rows; ++row) {
    const float* x = in.qkv + row * shape.channels();
    for (int64_t h = 0; h < keys; ++h) {
      float *q = p.queries.data() + (row * keys + h) * dim,
            *k = p.keys.data() + (row * keys + h) * dim;
      normalize(x + h * dim, dim, 1.0 / std::sqrt(static_cast<double>(dim)), q);
      normalize(x + (keys + h) * dim, dim, 1.0, k);
      p.products.data()[row * keys + h] = dot(k, q, dim);
    }
    for (int64_t h = 0; h < values; ++h) {
      p.betas.data()[row * values + h] = sigmoid_of(in.b[row * values + h]);
      if (in.by_channel) {
        fade(in, row, h, p);
      } else {
        p.decays.data()[row * values + h] =
            decay_of(in.a[row * values + h], in.bias[h], in.rate[h]);
      }
    }
  }
  return p;
}

// One token and one strip: S = g S + k (beta (v - g S'k))', and what is given out is S'q of the new
// S. Both products read the old S, in one pass: S'q = g S_old'q + (k'q) beta (v - …).
struct Strip {
  float* state;  // (key_dim, 32)
  int64_t dim;

  void token(const float* k, const float* q, float kq, float decay, float beta, f32x16 v[2],
             f32x16 out[2]) const {
    f32x16 r0 = set1(0), r1 = set1(0), p0 = set1(0), p1 = set1(0);
    for (int64_t d = 0; d < dim; ++d) {
      const f32x16 s0 = load(state + 32 * d), s1 = load(state + 32 * d + 16), kd = set1(k[d]),
                   qd = set1(q[d]);
      r0 = fma(s0, kd, r0);
      r1 = fma(s1, kd, r1);
      p0 = fma(s0, qd, p0);
      p1 = fma(s1, qd, p1);
    }
    const f32x16 g = set1(decay), minus = set1(-decay), b = set1(beta), c = set1(kq);
    const f32x16 d0 = fma(minus, r0, v[0]) * b, d1 = fma(minus, r1, v[1]) * b;
    out[0] = fma(c, d0, g * p0);
    out[1] = fma(c, d1, g * p1);
    for (int64_t d = 0; d < dim; ++d) {
      const f32x16 kd = set1(k[d]);
      store(state + 32 * d, fma(kd, d0, g * load(state + 32 * d)));
      store(state + 32 * d + 16, fma(kd, d1, g * load(state + 32 * d + 16)));
    }
  }

  // The same where each row d of S has a decay of its own; faded is what is multiplied by it.
  void faded_token(const float* k, const float* faded_k, const float* faded_q, float kq,
                   const float* decays, float beta, f32x16 v[2], f32x16 out[2]) const {
    f32x16 r0 = set1(0), r1 = set1(0), p0 = set1(0), p1 = set1(0);
    for (int64_t d = 0; d < dim; ++d) {
      const f32x16 s0 = load(state + 32 * d), s1 = load(state + 32 * d + 16), kd = set1(faded_k[d]),
                   qd = set1(faded_q[d]);
      r0 = fma(s0, kd, r0);
      r1 = fma(s1, kd, r1);
      p0 = fma(s0, qd, p0);
      p1 = fma(s1, qd, p1);
    }
    const f32x16 b = set1(beta), c = set1(kq);
    const f32x16 d0 = (v[0] - r0) * b, d1 = (v[1] - r1) * b;
    out[0] = fma(c, d0, p0);
    out[1] = fma(c, d1, p1);
    for (int64_t d = 0; d < dim; ++d) {
      const f32x16 kd = set1(k[d]), g = set1(decays[d]);
      store(state + 32 * d, fma(kd, d0, g * load(state + 32 * d)));
      store(state + 32 * d + 16, fma(kd, d1, g * load(state + 32 * d + 16)));
    }
  }
};

}  // namespace

void short_conv(const float* x, int64_t width, const int32_t* map, const float* weight,
                int64_t kernel, int64_t channels, bool with_silu, const StatesView& states,
                float* out, int threads) {
  const Columns columns(map, channels);
  const Convolution convolution{columns, x, width, channels, kernel, weight, with_silu};
  const int64_t pieces = (channels + kChannels - 1) / kChannels,
                runs = static_cast<int64_t>(states.runs.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (states.rows * channels > 16384)
  for (int64_t i = 0; i < runs * pieces; ++i) {
    const int64_t first = i % pieces * kChannels;
    convolution.through(states, states.runs[i / pieces], first,
                        std::min(first + kChannels, channels), out);
  }
}

void delta_rule(const DeltaInput& in, const StatesView& states, float* out, int threads) {
  const DeltaShape& shape = in.shape;
  const int64_t dim = shape.key_dim, strips = shape.strips(), group = shape.group();
  const Prepared p = prepare(in, states.rows, threads);
  const int64_t items = shape.value_heads * strips, runs = static_cast<int64_t>(states.runs.size());
#pragma omp parallel num_threads(threads) if (states.rows * items > 8)
  {
    PooledBuffer<float> local(static_cast<size_t>(dim * 32));
    const Strip strip{local.data(), dim};
    const size_t bytes = static_cast<size_t>(dim) * 32 * sizeof(float);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < runs * items; ++i) {
      const StateRun& run = states.runs[i / items];
      const int64_t item = i % items, head = item / strips, lane = item % strips * 32,
                    key = head / group;
      const int64_t place = in.offset + item * dim * 32;  // of this strip in a slot
      if (run.from) {
        std::memcpy(local.data(), run.from + place, bytes);
      } else {
        std::memset(local.data(), 0, bytes);
      }
      int64_t save = run.first_save;
      for (int64_t row = run.first; row < run.end; ++row) {
        const int64_t at = row * shape.key_heads + key, gate = row * shape.value_heads + head,
                      left = shape.value_dim - lane;
        const float* value = in.qkv + row * shape.channels() + 2 * shape.key_heads * dim +
                             head * shape.value_dim + lane;
        f32x16 v[2] = {load_up_to(value, left), load_up_to(value + 16, left - 16)}, result[2];
        const float *k = p.keys.data() + at * dim, kq = p.products.data()[at],
                    beta = p.betas.data()[gate];
        if (in.by_channel) {
          strip.faded_token(k, p.faded_keys.data() + gate * dim,
                            p.faded_queries.data() + gate * dim, kq, p.decays.data() + gate * dim,
                            beta, v, result);
        } else {
          strip.token(k, p.queries.data() + at * dim, kq, p.decays.data()[gate], beta, v, result);
        }
        float* to = out + gate * shape.value_dim + lane;
        store_up_to(to, result[0], left);
        store_up_to(to + 16, result[1], left - 16);
        for (; save < run.end_save && states.saves[save].row == row; ++save)
          std::memcpy(states.saves[save].to + place, local.data(), bytes);
      }
    }
  }
}

// Each head of a row normed, then gated: rms_norm(x) * silu or sigmoid(gate), in that order.
void gated_norm(const float* x, int64_t n, int64_t heads, int64_t dim, const float* weight,
                float eps, const float* gate, int64_t width, const int32_t* map, bool with_silu,
                float* out, int threads) {
  const int64_t cols = heads * dim;
  const Columns columns(map, cols);
  rms_norm(x, n * heads, dim, weight, eps, out, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (n * cols > 16384)
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < cols; c += 16) {
      float* to = out + i * cols + c;
      const f32x16 open = columns.load(gate + i * width, c);
      store_up_to(to, (with_silu ? silu(open) : sigmoid(open)) * load_up_to(to, cols - c),
                  cols - c);
    }
}

void sigmoid_mul(const float* x, int64_t n, int64_t cols, const float* gate, int64_t width,
                 const int32_t* map, float* out, int threads) {
  const Columns columns(map, cols);
#pragma omp parallel for num_threads(threads) schedule(static) if (n * cols > 16384)
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < cols; c += 16) {
      const f32x16 share = sigmoid(columns.load(gate + i * width, c));
      store_up_to(out + i * cols + c, share * load_up_to(x + i * cols + c, cols - c), cols - c);
    }
}

const StateOps& state_ops() {
  static const StateOps table{short_conv, delta_rule, gated_norm, sigmoid_mul};
  return table;
}

}  // namespace dure::DURE_ISA
