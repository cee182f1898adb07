// FP8 and 16-bit floats as whole numbers under a scale, so that products are of integers: what
// E8G32, E8G128, B16G64 and H16G64 are in memory. kernels/as_integers.py is the twin, bit for bit.
//
// FP8 (e4m3) has four significant bits, so that in codes of 8 bits the weights of the peak's power
// of two, and of the next three, are exact. Such codes need not use all 127; a finer step loses
// that and is nearer where the weights are uneven. Of the two the one is taken that has the
// smaller squared error, and no weight is further off than 1/128 of its group's peak.
// Codes of 16 bits: no weight is further off than 1/64000 of its group's peak.
#pragma once

#include <algorithm>
#include <cmath>

#include "common.h"

namespace dure {

constexpr int kWords = 64;  // 16-bit floats that share a scale

// The whole number next to x, |x| < 2^22, as a float; ties to even.
inline float whole(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

// 32 codes of FP8 under a scale to signed codes of 8 bits; returns their scale.
inline float fp8_to_bytes(const uint8_t* fp8, float scale, int8_t* out) {
  uint8_t peak = 0;
  for (int i = 0; i < kBlock; ++i)
    peak = std::max<uint8_t>(peak, static_cast<uint8_t>(fp8[i] & 127));
  if (peak == 0) {
    std::memset(out, 0, kBlock);
    return 0;
  }
  const int power = std::max(peak >> 3, 1);
  const int mantissa = (peak & 7) | (peak > 7 ? 8 : 0);  // peak = mantissa * 2^(power - 10)
  // The weights in units of the peak's last bit. e4m3's fields in a float's places are the value
  // times 2^-120, subnormals included.
  const float unit = bits_to_float(static_cast<uint32_t>(127 + 10 - power) << 23);
  const float lift = bits_to_float(static_cast<uint32_t>(127 + 120) << 23);
  float units[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const uint32_t sign = fp8[i] & 128u, rest = fp8[i] & 127u;
    units[i] = bits_to_float((sign << 24) | (rest << 20)) * lift * unit;
  }
  // Sums of squares are exact in doubles, in any order.
  const auto error = [&](float step) {
    double sum[4] = {};
    for (int i = 0; i < kBlock; i += 4)
      for (int j = 0; j < 4; ++j) {
        const float x = units[i + j] * step;
        const double off = static_cast<double>(whole(x) - x);
        sum[j] += off * off;
      }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  };
  constexpr int kExact = 8;
  const int most = 127 / mantissa;
  int step = kExact;  // codes to a unit
  if (most > kExact) {
    const double exact = error(kExact);
    if (exact > 0 && error(static_cast<float>(most)) * (kExact * kExact) < exact * most * most)
      step = most;
  }
  for (int i = 0; i < kBlock; ++i)
    out[i] = static_cast<int8_t>(static_cast<int>(whole(units[i] * static_cast<float>(step))));
  return scale * ((1 / unit) / static_cast<float>(step));
}

// 64 floats to signed codes of 16 bits; returns their scale. Weights that are not finite are for
// the caller to find; so small that a scale would be subnormal, they are as good as zero.
inline float floats_to_words(const float* x, int16_t* out) {
  uint32_t peak = 0;
  for (int i = 0; i < kWords; ++i) peak = std::max(peak, float_to_bits(x[i]) & 0x7FFFFFFFu);
  const float most = bits_to_float(peak), inverse = 32767.0f / most;
  if (!(peak < 0x7F800000u && inverse < INFINITY)) {
    std::memset(out, 0, kWords * sizeof *out);
    return peak < 0x7F800000u ? 0 : bits_to_float(0x7FC00000u);
  }
  for (int i = 0; i < kWords; ++i)
    out[i] = static_cast<int16_t>(static_cast<int>(whole(x[i] * inverse)));
  return most / 32767.0f;
}

}  // namespace dure
