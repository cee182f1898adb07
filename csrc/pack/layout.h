// How a weight matrix lies in memory once packed. One panel holds 16 output rows; inside it, codes
// come first, then scales.
//
//   codes   per 32 columns: bit planes (4-, 2-, 1- or 8-bit) of 16 rows x 4 columns interleaved,
//           so that one 64-byte load feeds 16 lanes of an int8 dot product with four weights each
//   scales  per unit (32 to 256 columns): what the source format stores, one vector of 16 rows at
//           a time
//
// Nothing is lost: weight = scale * (code - kOffset) + add, with the very floats the source format
// defines; of the types with a zero point it is scale * (code - zero). E8G*, B16G64 and H16G64
// alone round (as_integers.h).
#pragma once

#include "common.h"

namespace dure {

// How the codes of one 32-column block are cut into planes.
// P16: signed, two columns of the 16 rows after the other, as dot_wide takes them.
enum class Planes { P2, P2_1, P4, P4_1, P4_2, P8, P16, Lut };

// How the scales of one unit are stored, 16 rows each.
enum class Scales {
  Half,        // f16 d                                        (Q4_0 Q5_0 Q8_0 IQ4_NL)
  HalfMin,     // f16 d, f16 m                                 (Q4_1 Q5_1)
  Power,       // bf16 d, a power of two                       (MXFP4)
  SuperMin32,  // f16 d, f16 dmin, 8 x (u8 scale, u8 min)      (Q4_K Q5_K)
  Super32,     // f16 d, 8 x i8 scale                          (IQ4_XS)
  Super16,     // f16 d, 16 x i8 scale, each for 16 columns    (Q6_K Q3_K)
  SuperMin16,  // f16 d, f16 dmin, 16 x u8 (scale | min << 4)  (Q2_K)
  Zero,        // f32 d, u8 zero                               (I4G* U8G*)
  Float,       // f32 d                                        (I8G*)
  FloatMin,    // f32 d, f32 m: weight = d * code + m          (A2G* A4G* A6G* A8G*)
  FloatMin16,  // the same twice, each for 16 columns          (A4G16 A8G16)
  Fp8,         // f32 d, f8 (e4m3) for each 16 columns         (NV4G*)
};

template <Planes P, Scales S, int Bits, int Offset>
struct LayoutOf {
  static constexpr Planes planes = P;
  static constexpr Scales scales = S;
  // Codes are < 2^bits: bounds the int16 sums of the AVX2 kernel.
  static constexpr int bits = Bits;
  static constexpr int offset = Offset;  // subtracted from a code; done on the integer sum
  static constexpr bool super = S == Scales::SuperMin32 || S == Scales::Super32 ||
                                S == Scales::Super16 || S == Scales::SuperMin16;
  static constexpr bool has_min = S == Scales::HalfMin || S == Scales::SuperMin32 ||
                                  S == Scales::SuperMin16 || S == Scales::Zero ||
                                  S == Scales::FloatMin || S == Scales::FloatMin16;
  // The offset is taken from codes only where int8 asks for it: the minimum is of whole codes.
  static constexpr bool affine = S == Scales::FloatMin || S == Scales::FloatMin16;
  static constexpr int halves = (S == Scales::Super16 || S == Scales::SuperMin16 ||
                                 S == Scales::Fp8 || S == Scales::FloatMin16)
                                    ? 2
                                    : 1;
  static constexpr int unit_blocks = super ? 8 : 1;
  static constexpr int code_bytes = P == Planes::P2     ? 128
                                    : P == Planes::P2_1 ? 192
                                    : P == Planes::P4   ? 256
                                    : P == Planes::Lut  ? 256
                                    : P == Planes::P4_1 ? 320
                                    : P == Planes::P4_2 ? 384
                                    : P == Planes::P16  ? 1024
                                                        : 512;
  static constexpr int scale_bytes =
      S == Scales::Half || S == Scales::Power                          ? 32
      : S == Scales::HalfMin || S == Scales::Float || S == Scales::Fp8 ? 64
      : S == Scales::FloatMin                                          ? 128
      : S == Scales::FloatMin16                                        ? 256
      : S == Scales::Zero                                              ? 64 + 16
      : S == Scales::SuperMin32                                        ? 64 + 256
      : S == Scales::Super32                                           ? 32 + 128
      : S == Scales::Super16                                           ? 32 + 256
                                                                       : 64 + 256;
};

// One unit for `Columns` columns.
template <class Base, int Columns>
struct UnitOf : Base {
  static constexpr int unit_blocks = Columns / kBlock;
  static constexpr int scale_bytes =
      Base::scale_bytes + (Base::scales == Scales::Fp8 ? 2 * kPanel * unit_blocks : 0);
};
using Int4Zero = LayoutOf<Planes::P4, Scales::Zero, 4, 0>;
using Int8 = LayoutOf<Planes::P8, Scales::Float, 8, 128>;
using Int8Zero = LayoutOf<Planes::P8, Scales::Zero, 8, 128>;
using Int4Min = LayoutOf<Planes::P4, Scales::FloatMin, 4, 0>;
using Int8Min = LayoutOf<Planes::P8, Scales::FloatMin, 8, 128>;
using Int2Min = LayoutOf<Planes::P2, Scales::FloatMin, 2, 0>;
using Int6Min = LayoutOf<Planes::P4_2, Scales::FloatMin, 6, 0>;
using Int16 = LayoutOf<Planes::P16, Scales::Float, 16, 0>;
using Fp4 = LayoutOf<Planes::Lut, Scales::Fp8, 5, 16>;

template <Type>
struct Layout;
// clang-format off: a table
template <> struct Layout<Type::Q4_0> : LayoutOf<Planes::P4, Scales::Half, 4, 8> {};
template <> struct Layout<Type::Q4_1> : LayoutOf<Planes::P4, Scales::HalfMin, 4, 0> {};
template <> struct Layout<Type::Q5_0> : LayoutOf<Planes::P4_1, Scales::Half, 5, 16> {};
template <> struct Layout<Type::Q5_1> : LayoutOf<Planes::P4_1, Scales::HalfMin, 5, 0> {};
template <> struct Layout<Type::Q8_0> : LayoutOf<Planes::P8, Scales::Half, 8, 128> {};
template <> struct Layout<Type::Q2_K> : LayoutOf<Planes::P2, Scales::SuperMin16, 2, 0> {};
template <> struct Layout<Type::Q3_K> : LayoutOf<Planes::P2_1, Scales::Super16, 3, 4> {};
template <> struct Layout<Type::Q4_K> : LayoutOf<Planes::P4, Scales::SuperMin32, 4, 0> {};
template <> struct Layout<Type::Q5_K> : LayoutOf<Planes::P4_1, Scales::SuperMin32, 5, 0> {};
template <> struct Layout<Type::Q6_K> : LayoutOf<Planes::P4_2, Scales::Super16, 6, 32> {};
template <> struct Layout<Type::IQ4_NL> : LayoutOf<Planes::Lut, Scales::Half, 8, 128> {};
template <> struct Layout<Type::IQ4_XS> : LayoutOf<Planes::Lut, Scales::Super32, 8, 128> {};
template <> struct Layout<Type::MXFP4> : LayoutOf<Planes::Lut, Scales::Power, 5, 16> {};
template <> struct Layout<Type::I4G32> : UnitOf<Int4Zero, 32> {};
template <> struct Layout<Type::I4G64> : UnitOf<Int4Zero, 64> {};
template <> struct Layout<Type::I4G128> : UnitOf<Int4Zero, 128> {};
template <> struct Layout<Type::I8G32> : UnitOf<Int8, 32> {};
template <> struct Layout<Type::I8G128> : UnitOf<Int8, 128> {};
template <> struct Layout<Type::U8G32> : UnitOf<Int8Zero, 32> {};
template <> struct Layout<Type::U8G128> : UnitOf<Int8Zero, 128> {};
template <> struct Layout<Type::A4G32> : UnitOf<Int4Min, 32> {};
template <> struct Layout<Type::A4G64> : UnitOf<Int4Min, 64> {};
template <> struct Layout<Type::A8G32> : UnitOf<Int8Min, 32> {};
template <> struct Layout<Type::A8G64> : UnitOf<Int8Min, 64> {};
template <> struct Layout<Type::NV4G32> : UnitOf<Fp4, 32> {};
template <> struct Layout<Type::NV4G128> : UnitOf<Fp4, 128> {};
template <> struct Layout<Type::A2G64> : UnitOf<Int2Min, 64> {};
template <> struct Layout<Type::A6G32> : UnitOf<Int6Min, 32> {};
template <> struct Layout<Type::A6G64> : UnitOf<Int6Min, 64> {};
template <> struct Layout<Type::A4G16> : LayoutOf<Planes::P4, Scales::FloatMin16, 4, 0> {};
template <> struct Layout<Type::A8G16> : LayoutOf<Planes::P8, Scales::FloatMin16, 8, 128> {};
template <> struct Layout<Type::E8G32> : Layout<Type::I8G32> {};
template <> struct Layout<Type::E8G128> : Layout<Type::I8G32> {};
template <> struct Layout<Type::B16G64> : UnitOf<Int16, 64> {};
template <> struct Layout<Type::H16G64> : Layout<Type::B16G64> {};
// clang-format on

// The 16 values of the non-linear 4-bit types, plus their offset so that they are codes like all
// others.
alignas(16) constexpr uint8_t kIq4Codes[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                               129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) constexpr uint8_t kFp4Codes[16] = {16, 17, 18, 19, 20, 22, 24, 28,
                                               16, 15, 14, 13, 12, 10, 8,  4};
template <Type T>
constexpr const uint8_t* lut_of() {
  return T == Type::IQ4_NL || T == Type::IQ4_XS ? kIq4Codes : kFp4Codes;
}

// Types that round what they are packed from.
constexpr bool is_rounded(Type t) {
  return t == Type::E8G32 || t == Type::E8G128 || t == Type::B16G64 || t == Type::H16G64;
}
constexpr bool is_fp8(Type t) { return t == Type::F8G32 || t == Type::F8G128; }
// Types whose products are of floats: columns of 16 weights, of FP8 with a unit's 16 scales behind
// the panel's columns.
constexpr bool is_float(Type t) {
  return t == Type::F32 || t == Type::F16 || t == Type::BF16 || is_fp8(t);
}

// Sizes of a type, at run time.
struct TypeSizes {
  const char* name;
  int source_columns;  // columns in one source block
  int source_bytes;
  int code_bytes;   // packed, per 32 columns of 16 rows (floats: per column of 16 rows)
  int scale_bytes;  // packed, per unit
  int unit_blocks;  // 32-column blocks in one unit
};
const TypeSizes& sizes_of(Type);
Type type_from_name(const std::string& name);  // throws std::invalid_argument

// Calls f with a std::integral_constant of the quantised type, or of one that lies in memory as it
// does; floats are the caller's affair.
template <class F>
auto with_quantised_type(Type t, F&& f) {
  // clang-format off: a table
#define DURE_CASE(T) case Type::T: return f(std::integral_constant<Type, Type::T>{});
  switch (t) {
    DURE_CASE(Q4_0) DURE_CASE(Q4_1) DURE_CASE(Q5_0) DURE_CASE(Q5_1) DURE_CASE(Q8_0)
    DURE_CASE(Q2_K) DURE_CASE(Q3_K) DURE_CASE(Q4_K) DURE_CASE(Q5_K) DURE_CASE(Q6_K)
    DURE_CASE(IQ4_NL) DURE_CASE(IQ4_XS) DURE_CASE(MXFP4)
    DURE_CASE(I4G32) DURE_CASE(I4G64) DURE_CASE(I4G128)
    DURE_CASE(I8G32) DURE_CASE(I8G128) DURE_CASE(U8G32) DURE_CASE(U8G128)
    DURE_CASE(A4G32) DURE_CASE(A4G64) DURE_CASE(A8G32) DURE_CASE(A8G64)
    DURE_CASE(NV4G32) DURE_CASE(NV4G128)
    DURE_CASE(A2G64) DURE_CASE(A6G32) DURE_CASE(A6G64) DURE_CASE(A4G16) DURE_CASE(A8G16)
    DURE_CASE(B16G64)
    case Type::E8G32:
    case Type::E8G128: return f(std::integral_constant<Type, Type::I8G32>{});
    case Type::H16G64: return f(std::integral_constant<Type, Type::B16G64>{});
    default: throw std::invalid_argument("not a quantised type");
  }
// clang-format on
#undef DURE_CASE
}

// A packed matrix, or one expert's part of a record: a view, owned elsewhere.
struct Packed {
  Type type = Type::F32;
  int64_t rows = 0, cols = 0;
  const uint8_t* data = nullptr;

  int panels() const { return ceil_div(rows, kPanel); }
  int blocks() const { return static_cast<int>(cols / kBlock); }  // quantised types only
  size_t panel_codes_bytes() const {
    const TypeSizes& s = sizes_of(type);
    return is_float(type) ? static_cast<size_t>(cols) * s.code_bytes
                          : static_cast<size_t>(blocks()) * s.code_bytes;
  }
  size_t panel_bytes() const {
    const TypeSizes& s = sizes_of(type);
    if (is_float(type))
      return round_up(
          panel_codes_bytes() + static_cast<size_t>(cols / s.source_columns) * s.scale_bytes, 64);
    return round_up(
        panel_codes_bytes() + static_cast<size_t>(blocks() / s.unit_blocks) * s.scale_bytes, 64);
  }
  size_t bytes() const { return panel_bytes() * panels(); }
  const uint8_t* panel(int p) const {
    assert(data && p >= 0 && p < panels());
    return data + panel_bytes() * p;
  }
};

// What of a layout the float operations depend on.
struct ScaleShape {
  int halves;
  bool has_min;
  bool bytes;  // whether codes are of 8 bits at most
};
inline ScaleShape scale_shape(Type t) {
  return with_quantised_type(t, [](auto type) {
    using L = Layout<type()>;
    return ScaleShape{L::halves, L::has_min, L::bits <= 8};
  });
}

size_t source_row_bytes(Type, int64_t cols);
// Source blocks of `count` rows -> their places in the panels from `first_row` (a multiple of 16).
void pack_rows(const Packed& target, int64_t first_row, int64_t count, const uint8_t* source,
               int threads);
// On this thread.
void pack_panels(const Packed& target, int64_t first_row, int64_t count, const uint8_t* source);
// One row back as floats, with the roundings of the source format's own dequantisation.
void unpack_row(const Packed& matrix, int64_t row, float* out);
void unpack_rows(const Packed& table, const int32_t* rows, int64_t n, float* out, int threads);

}  // namespace dure
