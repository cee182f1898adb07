// Floats -> blocks whose codes name one of sixteen levels: IQ4_NL, IQ4_XS, and MXFP4, whose levels
// are 4-bit floats.
#pragma once

#include "pack/groups.h"

namespace dure::DURE_ISA {
namespace {

constexpr int kLevels = 16;
constexpr float kIq4Levels[kLevels] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                       1,    13,   25,  38,  53,  69,  89,  113};
constexpr int kFloatLevels = 8;  // twice the magnitudes of an e2m1; the other eight are negative
constexpr float kFp4Levels[kFloatLevels] = {0, 1, 2, 3, 4, 6, 8, 12};

// The nearest of the levels, which ascend, and its number.
template <int N>
DURE_ALWAYS floats nearest_level(const floats& x, const float (&levels)[N], floats& code) {
  floats level = levels[0];
  code = 0;
  for (int k = 1; k < N; ++k) {
    const mask above = x > floats((levels[k - 1] + levels[k]) / 2);
    level = choose(above, levels[k], level);
    code = choose(above, static_cast<float>(k), code);
  }
  return level;
}

// The s that makes x ≈ s * level of least weighted squared error. The peak may be either end of the
// levels, which are no mirror images; scales are tried around both.
floats level_scale(const Groups<32>& g) {
  constexpr int kTries = 7;  // each way
  constexpr float kStep = 5;
  floats peak, best, most, code;
  for (const floats& x : g.x) peak = choose(magnitude(x) > magnitude(peak), x, peak);
  for (const float end : {kIq4Levels[0], kIq4Levels[kLevels - 1]})
    for (int k = -kTries; k <= kTries; ++k) {
      const floats inverse = floats(end + kStep * static_cast<float>(k)) / peak;
      floats xq, qq;
      for (int i = 0; i < 32; ++i) {
        const floats q = nearest_level(g.x[i] * inverse, kIq4Levels, code);
        const floats wq = g.weight[i] * q;
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

// The codes under these scales, and their levels; where the scale is 0, that is near 0.
void assign_levels(const Groups<32>& g, const floats& scale, floats* codes, floats* levels) {
  for (int i = 0; i < 32; ++i) {
    const floats x = choose(scale != 0, g.x[i] / scale, 0);
    levels[i] = nearest_level(x, kIq4Levels, codes[i]);
  }
}

bool blocks_iq4_nl(const Run& run, int count, uint8_t* out) {
  const Groups<32> g(run, count);
  floats scale = level_scale(g), codes[32], levels[32];
  bool fits = g.fits;
  for (int lane = 0; lane < kLanes; ++lane) {
    scale.set(lane, half(scale[lane]));
    fits &= std::isfinite(scale[lane]);
  }
  assign_levels(g, scale, codes, levels);
  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b, out += 18) {
    put_half(out, scale[b]);
    put_nibbles(bytes[b], out + 2);
  }
  return fits;
}

// Two blocks of 256 weights, or one: 8 groups of 32 each, whose scales are whole numbers times one.
bool blocks_iq4_xs(const Run& run, int count, uint8_t* out) {
  constexpr int kParts = 8;
  const Groups<32> g(run, kParts * count);
  const floats wanted = level_scale(g);
  floats d, codes[32], levels[32];
  for (int first = 0; first < kLanes; first += kParts) {
    float peak = 0;
    for (int lane = first; lane < first + kParts; ++lane)
      peak = std::fabs(wanted[lane]) > std::fabs(peak) ? wanted[lane] : peak;
    for (int lane = first; lane < first + kParts; ++lane) d.set(lane, half(peak / -32));
  }
  const floats sub = choose(d != 0, nearest(wanted / d, -32, 31), 0);
  assign_levels(g, d * sub, codes, levels);
  floats xq, qq;  // the best d for these codes and sub-scales
  for (int i = 0; i < 32; ++i) {
    const floats q = sub * levels[i], wq = g.weight[i] * q;
    xq += wq * g.x[i];
    qq += wq * q;
  }
  bool fits = g.fits;
  for (int first = 0; first < kLanes; first += kParts) {
    float sum_xq = 0, sum_qq = 0, best = d[first];
    for (int lane = first; lane < first + kParts; ++lane) sum_xq += xq[lane], sum_qq += qq[lane];
    if (sum_qq > 0) best = half(sum_xq / sum_qq);
    fits &= std::isfinite(best);
    for (int lane = first; lane < first + kParts; ++lane) d.set(lane, best);
  }
  assign_levels(g, d * sub, codes, levels);

  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b, out += 136) {
    const int first = kParts * b;
    put_half(out, d[first]);
    int high = 0;
    for (int j = 0; j < kParts; j += 2) {
      const int even = static_cast<int>(sub[first + j]) + 32,
                odd = static_cast<int>(sub[first + j + 1]) + 32;
      out[4 + j / 2] = static_cast<uint8_t>((even & 15) | ((odd & 15) << 4));
      high |= (even >> 4) << (2 * j) | (odd >> 4) << (2 * j + 2);
    }
    out[2] = static_cast<uint8_t>(high);
    out[3] = static_cast<uint8_t>(high >> 8);
    for (int j = 0; j < kParts; ++j) put_nibbles(bytes[first + j], out + 8 + 16 * j);
  }
  return fits;
}

// The levels under a scale, and their codes: bit 3 is the sign.
DURE_ALWAYS floats nearest_float(const floats& x, const floats& scale, floats& code) {
  const floats level = nearest_level(magnitude(x) / scale, kFp4Levels, code);
  const mask negative = (floats() > x) & (code != 0);
  code = choose(negative, code + floats(kFloatLevels), code);
  return choose(negative, floats() - level, level);
}

// The scale is a power of two: that under which the peak has its exponent, or one beside it.
bool blocks_mxfp4(const Run& run, int count, uint8_t* out) {
  constexpr int kBias = 128;     // of what levels twice as large are multiplied with
  constexpr int kHighest = 254;  // 255 is no number
  const Groups<32> g(run, count);
  floats peak, best, most, best_exponent, codes[32], code;
  for (const floats& x : g.x) peak = larger(magnitude(x), peak);
  for (int k = -1; k <= 1; ++k) {
    floats scale, exponent;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int own = static_cast<int>(float_to_bits(peak[lane]) >> 23) - 2 + k;
      const int kept = own < 0 ? 0 : own > kHighest ? kHighest : own;
      exponent.set(lane, static_cast<float>(kept));
      scale.set(lane, std::ldexp(1.0f, kept - kBias));
    }
    floats xq, qq;
    for (int i = 0; i < 32; ++i) {
      const floats q = scale * nearest_float(g.x[i], scale, code), wq = g.weight[i] * q;
      xq += wq * g.x[i];
      qq += wq * q;
    }
    const floats gain = xq + xq - qq;
    const mask better = gain > most;
    best = choose(better, scale, best);
    best_exponent = choose(better, exponent, best_exponent);
    most = choose(better, gain, most);
  }
  const mask some = best > 0;
  for (int i = 0; i < 32; ++i) {
    nearest_float(g.x[i], choose(some, best, 1), codes[i]);
    codes[i] = choose(some, codes[i], 0);
  }
  uint8_t bytes[kLanes][32];
  store_codes(codes, 0, bytes);
  for (int b = 0; b < count; ++b, out += 17) {
    *out = static_cast<uint8_t>(static_cast<int>(best_exponent[b]));
    put_nibbles(bytes[b], out + 1);
  }
  return g.fits;
}

}  // namespace
}  // namespace dure::DURE_ISA
