// Writes what every function that docs/isa.md names gives for fixed inputs: the same bytes from
// every instruction set's header. .ci/aarch64 compiles this with each and compares; it is the
// quickest check of a new header, as it needs neither Python nor the operations.
//   c++ -std=c++20 -O1 -ffp-contract=off -Icsrc -DDURE_ISA=x '-DDURE_ISA_HEADER="isa/x.h"' …
#include <cstdio>
#include <random>
#include <vector>

#include "isa/simd.h"

namespace {

using namespace dure;
using namespace dure::DURE_ISA;

std::mt19937 random_bits(1);
std::vector<uint32_t> results;

// Which NaN a NaN is does not count.
void put(float x) { results.push_back(x != x ? 0x7FC00000u : float_to_bits(x)); }
void put(f32x16 a) {
  float lanes[16];
  store(lanes, a);
  for (const float x : lanes) put(x);
}
void put(u8x64 a) {
  uint8_t bytes[64];
  store_u8(bytes, a);
  results.insert(results.end(), bytes, bytes + 64);
}

// Any bits, zeros of both signs, subnormals, infinities, and mostly numbers.
float any_float() {
  const uint32_t r = random_bits();
  switch (random_bits() % 8) {
    case 0:
      return bits_to_float((r & 0x7F800000u) == 0x7F800000u ? 0x7FC00000u : r);
    case 1:
      return bits_to_float(r & 0x80000000u);
    case 2:
      return bits_to_float(r & 0x807FFFFFu);
    case 3:
      return bits_to_float((r & 0x80000000u) | 0x7F800000u);
    default:
      return static_cast<float>(static_cast<int>(r % 2000001) - 1000000) / 9973.0f;
  }
}

// Products of T tokens and groups First to Last - 1, of codes as packed and as unpacked: any, or
// such that every partial sum is as large as it can be.
template <int Bits, int Offset, int T, int First, int Last>
void products(bool extreme) {
  alignas(64) uint8_t codes[kGroups][64];
  alignas(64) int8_t x[T * kBlock];
  const bool high = random_bits() & 1, positive = random_bits() & 1;
  for (auto& group : codes)
    for (auto& code : group)
      code = static_cast<uint8_t>(extreme ? (high ? (1 << Bits) - 1 : 0)
                                          : random_bits() % (1 << Bits));
  for (auto& a : x)
    a = static_cast<int8_t>(extreme ? (positive ? 127 : -127)
                                    : static_cast<int>(random_bits() % 255) - 127);
  int32_t act_sums[T];
  i32x16 sums[T];
  for (int t = 0; t < T; ++t) {
    // As to_int8 gives them: of 16 columns each.
    float floats[kBlock];
    int8_t same[kBlock];
    int32_t halves[2];
    for (int i = 0; i < kBlock; ++i) floats[i] = x[t * kBlock + i];
    to_int8(floats, 1.0f, same, halves);
    act_sums[t] = Last - First == kGroups ? join_sums(halves[0], halves[1]) : halves[First / 4];
  }
  dot_groups<Bits, Offset, T, First, Last>([&](auto g) { return load_u8(codes[g]); }, x, act_sums,
                                           sums);
  for (int t = 0; t < T; ++t) put(to_float(sums[t]));
  if constexpr (kPairCodes) {
    alignas(64) uint8_t pairs[kGroups * 64];
    for (int g = 0; g < kGroups; g += 2)
      store_pair(pairs + g * 64, minus<Offset>(load_u8(codes[g])),
                 minus<Offset>(load_u8(codes[g + 1])));
    dot_pairs<Bits, Offset, T, First, Last>(pairs, x, sums);
  }
  for (int t = 0; t < T; ++t) put(to_float(sums[t]));
}

// Codes of 6 bits with an offset have a scale for 16 columns in every format: their sums are of as
// many.
template <int Bits, int Offset>
void all_products(bool extreme) {
  constexpr int kMost = Bits == 6 && Offset ? kGroups / 2 : kGroups;
  products<Bits, Offset, 1, 0, kMost>(extreme);
  products<Bits, Offset, 3, kGroups / 2, kGroups>(extreme);
  products<Bits, Offset, 4, 0, kMost>(extreme);
}

// Codes of 16 bits: sums are rounded to floats once.
template <int T>
void words(bool extreme) {
  alignas(64) int16_t codes[kBlock / 2][2 * kPanel];
  alignas(64) int8_t x[T * kBlock];
  const bool high = random_bits() & 1;
  for (auto& pair : codes)
    for (auto& code : pair)
      code = static_cast<int16_t>(extreme ? (high ? 32767 : -32767)
                                          : static_cast<int>(random_bits() % 65535) - 32767);
  for (auto& a : x)
    a = static_cast<int8_t>(extreme ? 127 : static_cast<int>(random_bits() % 255) - 127);
  f32x16 sums[T];
  dot_words<T>(reinterpret_cast<const uint8_t*>(codes), x, sums);
  for (int t = 0; t < T; ++t) put(sums[t]);
}

void floats() {
  float p[3][16];
  uint16_t halves[16];
  uint8_t bytes[16];
  for (auto& row : p)
    for (auto& x : row) x = any_float();
  for (auto& h : halves) {
    h = static_cast<uint16_t>(random_bits());
    if ((h & 0x7C00) == 0x7C00) h &= 0xFC00;  // infinities, and no NaN
  }
  for (auto& b : bytes) b = static_cast<uint8_t>(random_bits());
  const f32x16 a = load(p[0]), b = load(p[1]), c = load(p[2]);
  const int n = 1 + static_cast<int>(random_bits() % 15);
  for (const f32x16 x : {a + b, a - b, a * b, a / b, fma(a, b, c), max(a, b),
                         zero_below(a, b, -3.0f), exp16(a), load_n(p[0], n), load_half(halves),
                         load_half_n(halves, n), load_bfloat(halves), load_u8_float(bytes),
                         load_i8_float(bytes), load_low4_float(bytes), load_high4_float(bytes)})
    put(x);
  float part[16] = {};
  store_n(part, b, n);
  put(load(part));
  f32x16 square[16];
  for (auto& row : square) {
    for (auto& x : part) x = any_float();
    row = load(part);
  }
  transpose(square);
  for (const f32x16& row : square) put(row);
  float x[32];  // every other time halfway between integers
  for (auto& v : x)
    v = n % 2 ? any_float()
              : static_cast<float>(static_cast<int>(random_bits() % 509) - 254) / 2.0f;
  const uint32_t magnitude = max_magnitude_bits(x);
  results.push_back(magnitude >= 0x7F800000u ? 1 : magnitude);
  const float inverse = n % 2 ? 127.0f / bits_to_float(magnitude) : 1.0f;
  if (magnitude == 0 || magnitude >= 0x7F800000u || inverse > 3e38f) return;
  int8_t q[32];
  int32_t sums[2];
  to_int8(x, inverse, q, sums);
  for (const int8_t v : q) results.push_back(static_cast<uint8_t>(v));
  for (const int32_t s : {sums[0], sums[1], join_sums(sums[0], sums[1])}) {
    results.push_back(static_cast<uint32_t>(whole_sum(s)));
    put(sum_as_float(s));
  }
}

void codes() {
  uint8_t bytes[2][64];
  alignas(16) uint8_t table[16];
  for (auto& row : bytes)
    for (auto& b : row) b = static_cast<uint8_t>(random_bits());
  for (auto& b : table) b = static_cast<uint8_t>(random_bits());
  const u8x64 a = load_u8(bytes[0]), b = load_u8(bytes[1]);
  const u8x64 low = bits_at<0>(a, 15), high = bits_at<4>(a, 15), pair = bits_at<6>(b, 3);
  for (const u8x64 x :
       {minus<8>(a), minus<128>(a), minus<0>(a), low, high, pair, bits_at<2>(a, 3),
        bits_at<4>(a, 3), bits_at<7>(a, 1), bits_at<3>(a, 1), or_shifted<4>(low, pair),
        or_shifted<2>(pair, bits_at<5>(a, 1)), look_up(high, table)})
    put(x);
}

}  // namespace

int main() {
  for (int i = 0; i < 400; ++i) {
    floats();
    codes();
    all_products<8, 128>(i % 2);
    all_products<6, 32>(i % 2);
    all_products<5, 0>(i % 2);
    all_products<5, 16>(i % 2);
    all_products<4, 8>(i % 2);
    words<1>(i % 2), words<3>(i % 2), words<4>(i % 2);
  }
  std::fwrite(results.data(), sizeof results[0], results.size(), stdout);
}
