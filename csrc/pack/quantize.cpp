// Floats -> the blocks of a model file. Sixteen groups of weights are worked on at once, one a
// lane, so that a group's sums run over its weights in order and come out the same on every
// instruction set.
#include <cmath>

#include "pack/quantize.h"

namespace dure::DURE_ISA {
namespace {

constexpr int kLanes = 16;
#if defined(__AVX512F__)
constexpr int kWidth = 16;  // lanes in a register
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

// Sixteen lanes in the compiler's own vectors: GCC takes one that is wider than a register apart,
// lane by lane.
template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(4 * kWidth)));
  static constexpr int kVectors = kLanes / kWidth;
  Vector v[kVectors] = {};

  Lanes() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): numbers stand beside lanes in sums and products
  Lanes(T x) {
    for (auto& part : v) part = Vector{} + x;
  }
  T operator[](int lane) const { return v[lane / kWidth][lane % kWidth]; }
  void set(int lane, T x) { v[lane / kWidth][lane % kWidth] = x; }
};
using floats = Lanes<float>;
using mask = Lanes<int32_t>;  // -1 where it holds

#define DURE_EACH(expr) \
  for (int i = 0; i < floats::kVectors; ++i) expr
#define DURE_ALWAYS __attribute__((always_inline)) inline
DURE_ALWAYS floats operator+(floats a, const floats& b) {
  DURE_EACH(a.v[i] += b.v[i]);
  return a;
}
DURE_ALWAYS floats operator-(floats a, const floats& b) {
  DURE_EACH(a.v[i] -= b.v[i]);
  return a;
}
DURE_ALWAYS floats operator*(floats a, const floats& b) {
  DURE_EACH(a.v[i] *= b.v[i]);
  return a;
}
DURE_ALWAYS floats operator/(floats a, const floats& b) {
  DURE_EACH(a.v[i] /= b.v[i]);
  return a;
}
DURE_ALWAYS void operator+=(floats& a, const floats& b) { DURE_EACH(a.v[i] += b.v[i]); }
DURE_ALWAYS mask operator>(const floats& a, const floats& b) {
  mask m;
  DURE_EACH(m.v[i] = a.v[i] > b.v[i]);
  return m;
}
DURE_ALWAYS mask operator!=(const floats& a, const floats& b) {
  mask m;
  DURE_EACH(m.v[i] = a.v[i] != b.v[i]);
  return m;
}
DURE_ALWAYS mask operator&(mask a, const mask& b) {
  DURE_EACH(a.v[i] &= b.v[i]);
  return a;
}
DURE_ALWAYS floats choose(const mask& m, const floats& yes, const floats& no) {
  floats r;
  DURE_EACH(r.v[i] = m.v[i] ? yes.v[i] : no.v[i]);
  return r;
}
DURE_ALWAYS floats larger(const floats& a, const floats& b) {
  return choose(a > b, a, b);
}  // b if a is NaN
DURE_ALWAYS floats magnitude(floats x) {
  DURE_EACH(x.v[i] = reinterpret_cast<floats::Vector>(reinterpret_cast<mask::Vector>(x.v[i]) &
                                                      0x7FFFFFFF));
  return x;
}
#undef DURE_EACH

// The nearest whole number between low and high, which are whole; low for NaN.
DURE_ALWAYS floats nearest(const floats& x, float low, float high) {
  const floats magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to even
  const floats least = larger(x, low);
  return (choose(floats(high) > least, least, high) + magic) - magic;
}

constexpr int kSymmetricTries = 9;    // finer and coarser scales each way
constexpr int kAsymmetricTries = 20;  // from a whole step coarser than the range to one finer
constexpr float kTryStep = 0.1f;      // of a code
// What a block of 4 bits holds: beyond it, sums of squares might overflow.
constexpr float kLargest = 524288;

template <int N>  // weights in a group
struct Groups {
  floats x[N];       // x[i][lane]: weight i of that lane's group
  floats weight[N];  // of its squared error: what is large matters more, what is small still counts
  bool fits = true;

  Groups(const float* from,
         int count) {  // count groups, one behind the other; the other lanes are zero
    float columns[N][kLanes] = {};
    for (int g = 0; g < count; ++g)
      for (int i = 0; i < N; ++i) columns[i][g] = from[g * N + i];
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
    for (int i = 0; i < N; ++i) weight[i] = rms + magnitude(x[i]);
  }
};

// The s that, with codes from low to high, makes x ≈ s * code of least weighted squared error. For
// given codes it is Σwxq / Σwqq, which takes (Σwxq)² / Σwqq off the error; the codes are tried that
// a grid of scales around the peak's gives.
template <int N>
floats symmetric_scale(const Groups<N>& g, float low, float high) {
  floats peak, best, most;
  for (const floats& x : g.x) peak = choose(magnitude(x) > magnitude(peak), x, peak);
  for (int k = -kSymmetricTries; k <= kSymmetricTries; ++k) {
    const floats inverse = floats(low + kTryStep * static_cast<float>(k)) / peak;
    floats xq, qq;
    for (int i = 0; i < N; ++i) {
      const floats q = nearest(g.x[i] * inverse, low, high), wq = g.weight[i] * q;
      xq += wq * g.x[i];
      qq += wq * q;
    }
    const floats scale = xq / qq, gain = scale * xq;
    const mask better = gain > most;
    best = choose(better, scale, best);
    most = choose(better, gain, most);
  }
  return best;
}

// The s and m, neither negative, that make x ≈ s * code - m of least weighted squared error, codes
// from 0 to top.
template <int N>
void asymmetric_scale(const Groups<N>& g, float top, floats& best, floats& best_minimum) {
  floats low, high = g.x[0], w, wx;
  for (int i = 0; i < N; ++i) {
    low = choose(low > g.x[i], g.x[i], low);
    high = larger(g.x[i], high);
    w += g.weight[i];
    wx += g.weight[i] * g.x[i];
  }
  best = 0;
  best_minimum = larger((floats() - wx) / w, 0);  // all codes 0
  floats most = larger((floats() - best_minimum) * (best_minimum * w + floats(2) * wx), 0);
  for (int k = 0; k <= kAsymmetricTries; ++k) {
    const floats inverse = floats(top - 1 + kTryStep * static_cast<float>(k)) / (high - low);
    floats wq, wqq, wxq;
    for (int i = 0; i < N; ++i) {
      const floats q = nearest((g.x[i] - low) * inverse, 0, top), weighted = g.weight[i] * q;
      wq += weighted;
      wqq += weighted * q;
      wxq += weighted * g.x[i];
    }
    floats scale = (w * wxq - wx * wq) / (w * wqq - wq * wq);
    floats minimum = (scale * wq - wx) / w;
    const mask none = floats() > minimum;
    scale = choose(none, wxq / wqq, scale);
    minimum = choose(none, 0, minimum);
    const floats two = 2;
    const floats gain =
        scale * (two * wxq - scale * wqq + two * minimum * wq) - minimum * (two * wx + minimum * w);
    const mask better = (gain > most) & (scale > 0);
    best = choose(better, scale, best);
    best_minimum = choose(better, minimum, best_minimum);
    most = choose(better, gain, most);
  }
}

float half(float x) { return half_to_float(float_to_half(x)); }
void put_half(uint8_t* out, float x) {
  const uint16_t bits = float_to_half(x);
  std::memcpy(out, &bits, 2);
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

bool blocks_q8_0(const float* from, int count, uint8_t* out) {
  const Groups<32> g(from, count);
  floats peak, codes[32];
  for (const floats& x : g.x) peak = larger(magnitude(x), peak);
  floats scale = peak / 127;
  bool fits = g.fits;
  for (int lane = 0; lane < kLanes; ++lane) {
    scale.set(lane, half(scale[lane]));
    fits &= std::isfinite(scale[lane]);
  }
  assign(g, scale, 0, -127, 127, codes);
  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b, out += 34) {
    put_half(out, scale[b]);
    std::memcpy(out + 2, bytes[b], 32);
  }
  return fits;
}

// Q4_0 (Bits 4) and Q5_0 (Bits 5).
template <int Bits>
bool blocks_symmetric(const float* from, int count, uint8_t* out) {
  constexpr int kOffset = 1 << (Bits - 1);
  const Groups<32> g(from, count);
  floats scale = symmetric_scale(g, -kOffset, kOffset - 1), codes[32];
  bool fits = g.fits;
  for (int lane = 0; lane < kLanes; ++lane) {
    scale.set(lane, half(scale[lane]));
    fits &= std::isfinite(scale[lane]);
  }
  assign(g, scale, 0, -kOffset, kOffset - 1, codes);
  uint8_t bytes[kLanes][32];
  store_codes(codes, kOffset, bytes);
  for (int b = 0; b < count; ++b) {
    put_half(out, scale[b]);
    out += 2;
    if constexpr (Bits == 5) {
      uint32_t high = 0;
      for (int i = 0; i < 32; ++i) high |= static_cast<uint32_t>(bytes[b][i] >> 4) << i;
      std::memcpy(out, &high, 4);
      out += 4;
    }
    for (int i = 0; i < 16; ++i)
      *out++ = static_cast<uint8_t>((bytes[b][i] & 15) | (bytes[b][i + 16] << 4));
  }
  return fits;
}

// 256 weights: 16 groups of 16, one a lane.
bool block_q6_k(const float* from, uint8_t* out) {
  const Groups<16> g(from, kLanes);
  const floats wanted = symmetric_scale(g, -32, 31);
  float peak = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    peak = std::fabs(wanted[lane]) > std::fabs(peak) ? wanted[lane] : peak;
  float d = half(peak / -128);
  const floats sub = d != 0 ? nearest(wanted / d, -128, 127) : floats();
  floats codes[16];
  assign(g, floats(d) * sub, 0, -32, 31, codes);
  floats xq, qq;  // the best d for these codes and sub-scales
  for (int i = 0; i < 16; ++i) {
    const floats q = sub * codes[i], wq = g.weight[i] * q;
    xq += wq * g.x[i];
    qq += wq * q;
  }
  float sum_xq = 0, sum_qq = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum_xq += xq[lane], sum_qq += qq[lane];
  if (sum_qq > 0) d = half(sum_xq / sum_qq);
  assign(g, floats(d) * sub, 0, -32, 31, codes);

  uint8_t bytes[kLanes][16];
  store_codes(codes, 32, bytes);
  const uint8_t* code = bytes[0];
  for (int h = 0; h < 2; ++h, code += 128) {
    for (int i = 0; i < 64; ++i)
      out[64 * h + i] = static_cast<uint8_t>((code[i] & 15) | ((code[64 + i] & 15) << 4));
    for (int i = 0; i < 32; ++i)
      out[128 + 32 * h + i] =
          static_cast<uint8_t>((code[i] >> 4) | ((code[32 + i] >> 4) << 2) |
                               ((code[64 + i] >> 4) << 4) | ((code[96 + i] >> 4) << 6));
  }
  for (int lane = 0; lane < kLanes; ++lane)
    out[192 + lane] = static_cast<uint8_t>(static_cast<int>(sub[lane]));
  put_half(out + 208, d);
  return g.fits && std::isfinite(d);
}

constexpr int kParts = 8;  // groups of 32 in a block of 256

// The scale and minimum of one block of 256 that fit its codes best, given the sub-scales and
// sub-minimums of its groups.
void refit(const Groups<32>& g, const floats* codes, const floats& sub, const floats& sub_minimum,
           int first, float& d, float& minimum) {
  floats qq, qm, mm, xq, xm;
  for (int i = 0; i < 32; ++i) {
    const floats q = sub * codes[i], wq = g.weight[i] * q, wm = g.weight[i] * sub_minimum;
    qq += wq * q;
    qm += wq * sub_minimum;
    mm += wm * sub_minimum;
    xq += wq * g.x[i];
    xm += wm * g.x[i];
  }
  float a = 0, b = 0, c = 0, y = 0, z = 0;
  for (int lane = first; lane < first + kParts; ++lane)
    a += qq[lane], b += qm[lane], c += mm[lane], y += xq[lane], z += xm[lane];
  const float determinant = a * c - b * b;
  const float new_d = (y * c - z * b) / determinant, new_minimum = (y * b - z * a) / determinant;
  if (determinant > 0 && new_d > 0 && new_minimum > 0) {
    d = half(new_d);
    minimum = half(new_minimum);
  } else if (!(c > 0) && a > 0 && y > 0) {
    d = half(y / a);
  }
}

// Two blocks of 256 weights, or one: 8 groups of 32 each.
bool blocks_q4_k(const float* from, int count, uint8_t* out) {
  const Groups<32> g(from, kParts * count);
  floats wanted, wanted_minimum, codes[32], d, minimum;
  asymmetric_scale(g, 15, wanted, wanted_minimum);
  for (int first = 0; first < kLanes; first += kParts) {
    float most = 0, most_minimum = 0;
    for (int lane = first; lane < first + kParts; ++lane) {
      most = wanted[lane] > most ? wanted[lane] : most;
      most_minimum = wanted_minimum[lane] > most_minimum ? wanted_minimum[lane] : most_minimum;
    }
    for (int lane = first; lane < first + kParts; ++lane)
      d.set(lane, half(most / 63)), minimum.set(lane, half(most_minimum / 63));
  }
  const floats sub = choose(d > 0, nearest(wanted / d, 0, 63), 0);
  const floats sub_minimum = choose(minimum > 0, nearest(wanted_minimum / minimum, 0, 63), 0);
  assign(g, d * sub, minimum * sub_minimum, 0, 15, codes);
  bool fits = g.fits;
  for (int first = 0; first < kLanes; first += kParts) {
    float new_d = d[first], new_minimum = minimum[first];
    refit(g, codes, sub, sub_minimum, first, new_d, new_minimum);
    fits &= std::isfinite(new_d) && std::isfinite(new_minimum);
    for (int lane = first; lane < first + kParts; ++lane)
      d.set(lane, new_d), minimum.set(lane, new_minimum);
  }
  assign(g, d * sub, minimum * sub_minimum, 0, 15, codes);

  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b, out += 144) {
    const int first = kParts * b;
    put_half(out, d[first]);
    put_half(out + 2, minimum[first]);
    for (int j = 0; j < 4; ++j) {
      const int s = static_cast<int>(sub[first + j]), late_s = static_cast<int>(sub[first + j + 4]);
      const int m = static_cast<int>(sub_minimum[first + j]),
                late_m = static_cast<int>(sub_minimum[first + j + 4]);
      out[4 + j] = static_cast<uint8_t>(s | (late_s >> 4 << 6));
      out[8 + j] = static_cast<uint8_t>(m | (late_m >> 4 << 6));
      out[12 + j] = static_cast<uint8_t>((late_s & 15) | ((late_m & 15) << 4));
      for (int i = 0; i < 32; ++i)
        out[16 + 32 * j + i] =
            static_cast<uint8_t>(bytes[first + 2 * j][i] | (bytes[first + 2 * j + 1][i] << 4));
    }
  }
  return fits;
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

bool quantize_blocks(Type type, const float* x, int64_t count, uint8_t* out, int threads) {
  const auto by_32 = [&](auto&& blocks, int block_bytes) {
    return each_step(count / 32, kLanes, threads, [&](int64_t first, int n) {
      return blocks(x + 32 * first, n, out + block_bytes * first);
    });
  };
  switch (type) {
    case Type::Q8_0:
      return by_32(blocks_q8_0, 34);
    case Type::Q4_0:
      return by_32(blocks_symmetric<4>, 18);
    case Type::Q5_0:
      return by_32(blocks_symmetric<5>, 22);
    case Type::Q6_K:
      return each_step(count / 256, 1, threads, [&](int64_t first, int) {
        return block_q6_k(x + 256 * first, out + 210 * first);
      });
    case Type::Q4_K:
      return each_step(count / 256, 2, threads, [&](int64_t first, int n) {
        return blocks_q4_k(x + 256 * first, n, out + 144 * first);
      });
    default:
      return false;  // bind/module.cpp lets no other type through
  }
}

}  // namespace dure::DURE_ISA
