// What every instruction set's header has to provide, held at compile time; docs/isa.md says what
// each name means and how exact it must be. A header that lacks one does not compile, and the
// compiler names what is missing. simd.h includes this behind the header.
#pragma once

#include <cstdint>
#include <type_traits>

namespace dure::DURE_ISA {

namespace contract {

// `function` can be called with these arguments and gives a Result.
#define DURE_GIVES(Result, ...) static_assert(std::is_same_v<decltype(__VA_ARGS__), Result>)

// Values of each type, for unevaluated calls.
inline constexpr const float* floats = nullptr;
inline constexpr const uint16_t* halves = nullptr;
inline constexpr const uint8_t* bytes = nullptr;
inline constexpr const int8_t* ints = nullptr;
inline constexpr int32_t* sums = nullptr;
f32x16 f();
i32x16 i();
u8x64 u();

// Registers: what fits them decides speed, never bits.
static_assert(kTileRows >= 1 && kTileRows <= 16);
static_assert(kTileHalves == 1 || kTileHalves == 2);
static_assert(kTileSums >= 4);
static_assert(kFloatPanels == 1 || kFloatPanels == 2 || kFloatPanels == 4);
static_assert(kTile == 1 || kTile == 2 || kTile == 4 || kTile == 8);
static_assert(kTokensKept >= 0);
static_assert(kDirect >= 0 && (kDirect <= kTile || kDirect == 2 * kTile));
static_assert(kWideCodes || !kWideCodes);
static_assert(kPairCodes ? !kWideCodes : true);

// Plain values, passed in registers.
static_assert(std::is_trivially_copyable_v<f32x16> && sizeof(f32x16) == 64);
static_assert(std::is_trivially_copyable_v<i32x16> && sizeof(i32x16) == 64);
static_assert(std::is_trivially_copyable_v<u8x64> && sizeof(u8x64) == 64);

// Floats in and out.
DURE_GIVES(f32x16, set1(1.0f));
DURE_GIVES(f32x16, load(floats));
DURE_GIVES(f32x16, load_n(floats, 15));
DURE_GIVES(void, store(const_cast<float*>(floats), f()));
DURE_GIVES(void, store_n(const_cast<float*>(floats), f(), 15));
DURE_GIVES(f32x16, load_half(halves));
DURE_GIVES(f32x16, load_half_n(halves, 15));
DURE_GIVES(f32x16, load_bfloat(halves));
DURE_GIVES(f32x16, load_u8_float(bytes));
DURE_GIVES(f32x16, load_i8_float(bytes));
DURE_GIVES(f32x16, load_low4_float(bytes));
DURE_GIVES(f32x16, load_high4_float(bytes));
DURE_GIVES(f32x16, to_float(i()));

// Arithmetic.
DURE_GIVES(f32x16, f() + f());
DURE_GIVES(f32x16, f() - f());
DURE_GIVES(f32x16, f() * f());
DURE_GIVES(f32x16, f() / f());
DURE_GIVES(f32x16, fma(f(), f(), f()));
DURE_GIVES(f32x16, max(f(), f()));
DURE_GIVES(f32x16, zero_below(f(), f(), 1.0f));
DURE_GIVES(f32x16, scale_by_power(f(), f()));
DURE_GIVES(void, transpose(static_cast<f32x16*>(nullptr)));

// Codes of weights.
DURE_GIVES(u8x64, load_u8(bytes));
DURE_GIVES(void, store_u8(const_cast<uint8_t*>(bytes), u()));
DURE_GIVES(u8x64, minus<8>(u()));
DURE_GIVES(u8x64, bits_at<4>(u(), uint8_t{15}));
DURE_GIVES(u8x64, or_shifted<4>(u(), u()));
DURE_GIVES(u8x64, look_up(u(), bytes));

// Integer products.
DURE_GIVES(void, to_int8(floats, 1.0f, const_cast<int8_t*>(ints), sums));
DURE_GIVES(uint32_t, max_magnitude_bits(floats));
DURE_GIVES(int32_t, join_sums(1, 1));
DURE_GIVES(int32_t, whole_sum(1));
DURE_GIVES(f32x16, sum_as_float(1));
struct AnyCodes {
  u8x64 operator()(int group) const;
};
DURE_GIVES(void,
           dot_groups<4, 8, 1, 0, kGroups>(AnyCodes{}, ints, sums, static_cast<i32x16*>(nullptr)));

DURE_GIVES(void, dot_words<1>(bytes, ints, static_cast<f32x16*>(nullptr)));

// Templates of the instruction set, so that a name is looked for only where it is needed.
template <class Codes, class Sums>
constexpr bool has_wide_codes() {
  DURE_GIVES(void, store_wide<128>(const_cast<uint8_t*>(bytes), Codes{}));
  DURE_GIVES(void, dot_wide<1>(bytes, ints, static_cast<Sums*>(nullptr)));
  return true;
}
template <class Codes, class Sums>
constexpr bool has_pair_codes() {
  DURE_GIVES(void, store_pair(const_cast<uint8_t*>(bytes), Codes{}, Codes{}));
  DURE_GIVES(void, dot_pairs<4, 8, 1, 0, kGroups>(bytes, ints, static_cast<Sums*>(nullptr)));
  return true;
}
template <class Unit, class Codes>
constexpr bool has_matrix_unit() {
  static_assert(Unit::kTokens > kTile && Unit::kTokens % kTile == 0 && Unit::kChunk >= 1);
  using Strip = typename Unit::Strip;
  static_assert(sizeof(Strip::codes) == Unit::kChunk * kBlock * kPanel);
  static_assert(sizeof(Strip::scale) == sizeof(float) * Unit::kChunk * kPanel);
  static_assert(sizeof(Strip::add) == sizeof(float) * Unit::kChunk * kPanel);
  DURE_GIVES(void, store_i8(const_cast<int8_t*>(ints), Codes{}));
  DURE_GIVES(void, Unit::configure());
  DURE_GIVES(void, Unit::release());
  DURE_GIVES(void, Unit::accumulate(std::declval<const Strip&>(), 1, true, bytes, floats,
                                    const_cast<float*>(floats)));
  return true;
}
DURE_GIVES(bool, MatrixUnit::in_use());
template <class Unit, class Codes>
constexpr bool provides_what_it_says() {
  if constexpr (kWideCodes) static_assert(has_wide_codes<Codes, i32x16>());
  if constexpr (kPairCodes) static_assert(has_pair_codes<Codes, i32x16>());
  if constexpr (Unit::exists) static_assert(has_matrix_unit<Unit, Codes>());
  return true;
}
static_assert(provides_what_it_says<MatrixUnit, u8x64>());

#undef DURE_GIVES

}  // namespace contract

}  // namespace dure::DURE_ISA
