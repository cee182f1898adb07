// Floats -> the blocks of a model file whose codes are whole numbers; those whose codes name levels
// are in levels.h.
#include "pack/groups.h"
#include "pack/levels.h"

namespace dure::DURE_ISA {
namespace {

constexpr int kSymmetricTries = 9;    // finer and coarser scales each way
constexpr int kAsymmetricTries = 20;  // from a whole step coarser than the range to one finer
constexpr float kTryStep = 0.1f;      // of a code

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
bool blocks_q8_0(const Run& run, int count, uint8_t* out) {
  const Groups<32> g(run, count);
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

// Bit 4 of each of 32 codes, as one number.
void put_fifth_bits(const uint8_t* codes, uint8_t* out) {
  uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= static_cast<uint32_t>(codes[i] >> 4) << i;
  std::memcpy(out, &high, 4);
}

// Q4_0 (Bits 4) and Q5_0 (Bits 5).
template <int Bits>
bool blocks_symmetric(const Run& run, int count, uint8_t* out) {
  constexpr int kOffset = 1 << (Bits - 1);
  const Groups<32> g(run, count);
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
      put_fifth_bits(bytes[b], out);
      out += 4;
    }
    put_nibbles(bytes[b], out);
    out += 16;
  }
  return fits;
}

// Q5_1: a code is of 5 bits, and a block's minimum is added, so that it is stored negated.
bool blocks_q5_1(const Run& run, int count, uint8_t* out) {
  const Groups<32> g(run, count);
  floats scale, minimum, codes[32];
  asymmetric_scale(g, 31, scale, minimum);
  bool fits = g.fits;
  for (int lane = 0; lane < kLanes; ++lane) {
    scale.set(lane, half(scale[lane]));
    minimum.set(lane, half(minimum[lane]));
    fits &= std::isfinite(scale[lane]) && std::isfinite(minimum[lane]);
  }
  assign(g, scale, minimum, 0, 31, codes);
  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b) {
    put_half(out, scale[b]);
    put_half(out + 2, -minimum[b]);
    put_fifth_bits(bytes[b], out + 4);
    put_nibbles(bytes[b], out + 8);
    out += 24;
  }
  return fits;
}

// 256 weights: 16 groups of 16, one a lane.
bool block_q6_k(const Run& run, int, uint8_t* out) {
  const Groups<16> g(run, kLanes);
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

// Q4_K (Bits 4) and Q5_K (Bits 5): two blocks of 256 weights, or one, of 8 groups of 32 each.
template <int Bits>
bool blocks_k(const Run& run, int count, uint8_t* out) {
  constexpr int kTop = (1 << Bits) - 1;
  const Groups<32> g(run, kParts * count);
  floats wanted, wanted_minimum, codes[32], d, minimum;
  asymmetric_scale(g, kTop, wanted, wanted_minimum);
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
  assign(g, d * sub, minimum * sub_minimum, 0, kTop, codes);
  bool fits = g.fits;
  for (int first = 0; first < kLanes; first += kParts) {
    float new_d = d[first], new_minimum = minimum[first];
    refit(g, codes, sub, sub_minimum, first, new_d, new_minimum);
    fits &= std::isfinite(new_d) && std::isfinite(new_minimum);
    for (int lane = first; lane < first + kParts; ++lane)
      d.set(lane, new_d), minimum.set(lane, new_minimum);
  }
  assign(g, d * sub, minimum * sub_minimum, 0, kTop, codes);

  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b) {
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
    }
    out += 16;
    if constexpr (Bits == 5) {  // bit j of byte i is the fifth of weight i of group j
      for (int i = 0; i < 32; ++i) {
        int high = 0;
        for (int j = 0; j < kParts; ++j) high |= (bytes[first + j][i] >> 4) << j;
        out[i] = static_cast<uint8_t>(high);
      }
      out += 32;
    }
    for (int j = 0; j < kParts; j += 2)
      for (int i = 0; i < 32; ++i)
        *out++ = static_cast<uint8_t>((bytes[first + j][i] & 15) | (bytes[first + j + 1][i] << 4));
  }
  return fits;
}

}  // namespace

bool quantize_blocks(Type type, const float* x, int64_t count, const float* importance,
                     int64_t cols, uint8_t* out, int threads) {
  const Run all{x, importance, cols, 0};
  const auto each = [&](auto&& blocks, int weights, int block_bytes, int step) {
    return each_step(count / weights, step, threads, [&](int64_t first, int n) {
      return blocks(all.from(weights * first), n, out + block_bytes * first);
    });
  };
  switch (type) {
    case Type::Q8_0:
      return each(blocks_q8_0, 32, 34, kLanes);
    case Type::Q4_0:
      return each(blocks_symmetric<4>, 32, 18, kLanes);
    case Type::Q5_0:
      return each(blocks_symmetric<5>, 32, 22, kLanes);
    case Type::Q5_1:
      return each(blocks_q5_1, 32, 24, kLanes);
    case Type::IQ4_NL:
      return each(blocks_iq4_nl, 32, 18, kLanes);
    case Type::MXFP4:
      return each(blocks_mxfp4, 32, 17, kLanes);
    case Type::Q6_K:
      return each(block_q6_k, 256, 210, 1);
    case Type::Q4_K:
      return each(blocks_k<4>, 256, 144, 2);
    case Type::Q5_K:
      return each(blocks_k<5>, 256, 176, 2);
    case Type::IQ4_XS:
      return each(blocks_iq4_xs, 256, 136, 2);
    default:
      return false;  // bind/weights.cpp lets no other type through
  }
}

}  // namespace dure::DURE_ISA
