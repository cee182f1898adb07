// Source blocks -> packed panels. Sixteen bytes at a time, which every processor has: wider vectors
// gain nothing, because the source comes from a file and the panels go to fresh pages.
#include <omp.h>

#include <algorithm>

#include "pack/as_integers.h"
#include "pack/layout.h"
#include "pack/planes.h"

namespace dure {

namespace {

template <Type T>
constexpr TypeSizes packed_sizes(const char* name, int columns, int bytes) {
  using L = Layout<T>;
  return {name, columns, bytes, L::code_bytes, L::scale_bytes, L::unit_blocks};
}

const TypeSizes kSizes[] = {
    {"F32", 1, 4, 64, 0, 1},
    {"F16", 1, 2, 32, 0, 1},
    {"BF16", 1, 2, 32, 0, 1},
    packed_sizes<Type::Q4_0>("Q4_0", 32, 18),
    packed_sizes<Type::Q4_1>("Q4_1", 32, 20),
    packed_sizes<Type::Q5_0>("Q5_0", 32, 22),
    packed_sizes<Type::Q5_1>("Q5_1", 32, 24),
    packed_sizes<Type::Q8_0>("Q8_0", 32, 34),
    packed_sizes<Type::Q2_K>("Q2_K", 256, 84),
    packed_sizes<Type::Q3_K>("Q3_K", 256, 110),
    packed_sizes<Type::Q4_K>("Q4_K", 256, 144),
    packed_sizes<Type::Q5_K>("Q5_K", 256, 176),
    packed_sizes<Type::Q6_K>("Q6_K", 256, 210),
    packed_sizes<Type::IQ4_NL>("IQ4_NL", 32, 18),
    packed_sizes<Type::IQ4_XS>("IQ4_XS", 256, 136),
    packed_sizes<Type::MXFP4>("MXFP4", 32, 17),
    packed_sizes<Type::I4G32>("I4G32", 32, 21),
    packed_sizes<Type::I4G64>("I4G64", 64, 37),
    packed_sizes<Type::I4G128>("I4G128", 128, 69),
    {"F8G32", 32, 36, 16, 64, 1},
    {"F8G128", 128, 132, 16, 64, 4},
    packed_sizes<Type::I8G32>("I8G32", 32, 36),
    packed_sizes<Type::I8G128>("I8G128", 128, 132),
    packed_sizes<Type::U8G32>("U8G32", 32, 37),
    packed_sizes<Type::U8G128>("U8G128", 128, 133),
    packed_sizes<Type::A4G32>("A4G32", 32, 24),
    packed_sizes<Type::A4G64>("A4G64", 64, 40),
    packed_sizes<Type::A8G32>("A8G32", 32, 40),
    packed_sizes<Type::A8G64>("A8G64", 64, 72),
    packed_sizes<Type::NV4G32>("NV4G32", 32, 22),
    packed_sizes<Type::NV4G128>("NV4G128", 128, 76),
    packed_sizes<Type::A2G64>("A2G64", 64, 72),
    packed_sizes<Type::A6G32>("A6G32", 32, 40),
    packed_sizes<Type::A6G64>("A6G64", 64, 72),
    packed_sizes<Type::A4G16>("A4G16", 32, 48),
    packed_sizes<Type::A8G16>("A8G16", 32, 48),
    packed_sizes<Type::E8G32>("E8G32", 32, 36),
    packed_sizes<Type::E8G128>("E8G128", 128, 132),
    packed_sizes<Type::B16G64>("B16G64", kWords, 2 * kWords),
    packed_sizes<Type::H16G64>("H16G64", kWords, 2 * kWords),
};

// One row of one unit, decoded: plain codes and the scales as the packed form keeps them.
struct Unit {
  // 0 .. 2^bits - 1 (for Lut types the 4-bit index), of all columns of the unit.
  uint8_t* codes = nullptr;
  uint16_t d = 0, m = 0;  // f16 (bf16 for Power)
  uint8_t scale[16] = {}, min[16] = {};
  // Of Scales::Zero f32 scale, u8 zero point; Float f32; FloatMin two f32; Fp8 f32 and the scales.
  // FloatMin16 two scales, then two minima.
  uint8_t unit[16] = {};
};

// Q4_K and Q5_K keep eight 6-bit scales and mins in 12 bytes: the last four borrow their top bits
// from the first four.
void k_scales(const uint8_t* q, uint8_t* scale, uint8_t* min) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = q[j] & 63;
    min[j] = q[j + 4] & 63;
    scale[j + 4] = static_cast<uint8_t>((q[j + 8] & 15) | ((q[j] >> 6) << 4));
    min[j + 4] = static_cast<uint8_t>((q[j + 8] >> 4) | ((q[j + 4] >> 6) << 4));
  }
}

// N bytes -> N low nibbles, then N high ones.
template <int N>
void split_nibbles(const uint8_t* q, uint8_t* codes) {
  for (int i = 0; i < N; i += 16) {
    const u8x16 v = load16(q + i);
    store16(codes + i, v & 15);
    store16(codes + N + i, v >> 4);
  }
}

// N bytes -> 2 N nibbles, the low one of each byte first.
template <int N>
void pair_nibbles(const uint8_t* q, uint8_t* codes) {
  for (int i = 0; i < N; i += 16) {
    const u8x16 v = load16(q + i), low = v & 15, high = v >> 4;
    store16(codes + 2 * i,
            picked<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(low, high));
    store16(codes + 2 * i + 16,
            picked<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(low, high));
  }
}

// 64 bytes -> 256 two-bit values: of each 32 bytes all lowest pairs, then all second ones, and so
// on.
void pairs_of(const uint8_t* q, uint8_t* codes) {
  for (int chunk = 0; chunk < 2; ++chunk)
    for (int i = 0; i < 32; i += 16) {
      const u8x16 v = load16(q + 32 * chunk + i);
      uint8_t* out = codes + 128 * chunk + i;
      store16(out, v & 3);
      store16(out + 32, (v >> 2) & 3);
      store16(out + 64, (v >> 4) & 3);
      store16(out + 96, v >> 6);
    }
}

// Bit j of byte i, put at bit `place` of code 32 j + i.
template <int place>
void add_bits(const uint8_t* bits, uint8_t* codes) {
  for (int i = 0; i < 32; i += 16) {
    u8x16 v = load16(bits + i);
    for (int j = 0; j < 8; ++j, v >>= 1)
      store16(codes + 32 * j + i, load16(codes + 32 * j + i) | ((v & 1) << place));
  }
}

// Bit i of `bits`, put at bit 4 of code i, for eight codes.
void add_high_bits(uint8_t bits, uint8_t* codes) {
  // Byte i keeps bit i; adding 127 carries what is not zero into the byte's top bit.
  const uint64_t spread = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  uint64_t v;
  std::memcpy(&v, codes, 8);
  v |= ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 3) & 0x1010101010101010u;
  std::memcpy(codes, &v, 8);
}

// What follows the codes in a source block of our own types.
template <class L>
constexpr int unit_bytes() {
  if (L::scales == Scales::Zero) return 5;
  if (L::affine) return 8 * L::halves;
  return L::scales == Scales::Fp8 ? 4 + 2 * L::unit_blocks : 4;
}

template <Type type>
void decode_unit(const uint8_t* s, Unit& u) {
  switch (type) {
    case Type::Q4_0:
    case Type::IQ4_NL:
      u.d = load_u16(s);
      split_nibbles<16>(s + 2, u.codes);
      break;
    case Type::Q4_1:
      u.d = load_u16(s), u.m = load_u16(s + 2);
      split_nibbles<16>(s + 4, u.codes);
      break;
    case Type::Q5_0:
    case Type::Q5_1: {
      const int head = type == Type::Q5_0 ? 2 : 4;
      u.d = load_u16(s);
      if (head == 4) u.m = load_u16(s + 2);
      split_nibbles<16>(s + head + 4, u.codes);
      for (int i = 0; i < 4; ++i) add_high_bits(s[head + i], u.codes + 8 * i);
      break;
    }
    case Type::Q8_0:
      u.d = load_u16(s);
      for (int i = 0; i < 32; i += 16) store16(u.codes + i, load16(s + 2 + i) ^ 128);
      break;
    case Type::MXFP4: {
      // 2^(e-128) as bf16; the factor 1/2 is because the value table is doubled.
      const int e = s[0];
      u.d = static_cast<uint16_t>(e == 0 ? 0x20 : e == 1 ? 0x40 : (e - 1) << 7);
      split_nibbles<16>(s + 1, u.codes);
      break;
    }
    case Type::Q2_K:
      // 16 bytes of (scale | min << 4), 64 bytes of codes, d, dmin.
      for (int j = 0; j < 16; ++j) u.scale[j] = s[j];
      pairs_of(s + 16, u.codes);
      u.d = load_u16(s + 80), u.m = load_u16(s + 82);
      break;
    case Type::Q3_K: {
      // 32 bytes of high bits, 64 of low pairs, 12 of 6-bit scales, d.
      pairs_of(s + 32, u.codes);
      add_bits<2>(s, u.codes);
      const uint8_t* q = s + 96;
      for (int j = 0; j < 16; ++j) {
        const int low = j < 8 ? q[j] & 15 : q[j - 8] >> 4;
        const int high = (q[8 + j % 4] >> (j / 4 * 2)) & 3;
        u.scale[j] = static_cast<uint8_t>((low | (high << 4)) - 32);
      }
      u.d = load_u16(s + 108);
      break;
    }
    case Type::Q4_K:
    case Type::Q5_K: {
      u.d = load_u16(s), u.m = load_u16(s + 2);
      k_scales(s + 4, u.scale, u.min);
      const bool five = type == Type::Q5_K;
      const uint8_t* low = s + (five ? 48 : 16);
      for (int j = 0; j < 4; ++j) split_nibbles<32>(low + 32 * j, u.codes + 64 * j);
      if (five) add_bits<4>(s + 16, u.codes);
      break;
    }
    case Type::Q6_K: {
      // 128 bytes low nibbles, 64 bytes of high pairs, 16 int8 scales, d.
      for (int chunk = 0; chunk < 2; ++chunk)
        split_nibbles<64>(s + 64 * chunk, u.codes + 128 * chunk);
      uint8_t high[256];
      pairs_of(s + 128, high);
      for (int i = 0; i < 256; i += 16)
        store16(u.codes + i, load16(u.codes + i) | (load16(high + i) << 4));
      for (int j = 0; j < 16; ++j) u.scale[j] = s[192 + j];
      u.d = load_u16(s + 208);
      break;
    }
    case Type::IQ4_XS: {
      u.d = load_u16(s);
      const uint16_t high = load_u16(s + 2);
      for (int j = 0; j < 8; ++j) {
        const int low = (s[4 + j / 2] >> (4 * (j % 2))) & 15;
        u.scale[j] = static_cast<uint8_t>((low | (((high >> (2 * j)) & 3) << 4)) - 32);
      }
      for (int j = 0; j < 8; ++j) split_nibbles<16>(s + 8 + 16 * j, u.codes + 32 * j);
      break;
    }
    case Type::I4G32:
    case Type::I4G64:
    case Type::I4G128:
    case Type::A4G32:
    case Type::A4G64:
    case Type::NV4G32:
    case Type::NV4G128: {
      using L = Layout<type>;
      constexpr int kBytes = L::unit_blocks * kBlock / 2;
      pair_nibbles<kBytes>(s, u.codes);
      std::memcpy(u.unit, s + kBytes, unit_bytes<L>());
      break;
    }
    case Type::I8G32:
    case Type::I8G128:
    case Type::U8G32:
    case Type::U8G128:
    case Type::A8G32:
    case Type::A8G64:
    case Type::A2G64:
    case Type::A6G32:
    case Type::A6G64:
    case Type::A4G16:
    case Type::A8G16: {
      using L = Layout<type>;
      constexpr int kBytes = L::unit_blocks * kBlock;
      for (int i = 0; i < kBytes; i += 16)
        store16(u.codes + i, load16(s + i) ^ (L::scales == Scales::Float ? 128 : 0));
      std::memcpy(u.unit, s + kBytes, unit_bytes<L>());
      break;
    }
    default:
      throw std::invalid_argument("not a quantised type");
  }
}

void put_u16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }

template <class L>
void put_scales(uint8_t* out, int row, const Unit& u) {
  constexpr Scales S = L::scales;
  constexpr bool kOwn = S == Scales::Zero || S == Scales::Float || L::affine || S == Scales::Fp8;
  if constexpr (kOwn) std::memcpy(out + 4 * row, u.unit, 4);
  if constexpr (S == Scales::FloatMin) std::memcpy(out + 64 + 4 * row, u.unit + 4, 4);
  if constexpr (S == Scales::FloatMin16)
    for (int i = 1; i < 4; ++i)  // scale, minimum, scale, minimum: of 16 rows each
      std::memcpy(out + 64 * i + 4 * row, u.unit + 4 * (i % 2 * 2 + i / 2), 4);
  if constexpr (S == Scales::Zero) out[64 + row] = u.unit[4];
  if constexpr (S == Scales::Fp8)
    for (int j = 0; j < 2 * L::unit_blocks; ++j) out[64 + 16 * j + row] = u.unit[4 + j];
  if constexpr (kOwn) return;
  put_u16(out + 2 * row, u.d);
  if constexpr (S == Scales::HalfMin || S == Scales::SuperMin32 || S == Scales::SuperMin16)
    put_u16(out + 32 + 2 * row, u.m);
  if constexpr (S == Scales::SuperMin32)
    for (int j = 0; j < 8; ++j)
      out[64 + 32 * j + row] = u.scale[j], out[64 + 32 * j + 16 + row] = u.min[j];
  if constexpr (S == Scales::Super32)
    for (int j = 0; j < 8; ++j) out[32 + 16 * j + row] = u.scale[j];
  if constexpr (S == Scales::Super16)
    for (int j = 0; j < 16; ++j) out[32 + 16 * j + row] = u.scale[j];
  if constexpr (S == Scales::SuperMin16)
    for (int j = 0; j < 16; ++j) out[64 + 16 * j + row] = u.scale[j];
}

template <Type T>
void pack_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows,
                size_t row_bytes) {
  using L = Layout<T>;
  constexpr int kColumns = L::unit_blocks * kBlock;
  const int units = m.blocks() / L::unit_blocks;
  uint8_t* scales = panel + m.panel_codes_bytes();
  uint8_t codes[kPanel][kColumns] = {};  // rows past the end multiply to zero
  if (rows < kPanel) std::memset(scales, 0, static_cast<size_t>(units) * L::scale_bytes);
  for (int unit = 0; unit < units; ++unit, scales += L::scale_bytes) {
    for (int row = 0; row < rows; ++row) {
      Unit u;
      u.codes = codes[row];
      decode_unit<T>(
          source + row * row_bytes + static_cast<size_t>(unit) * sizes_of(T).source_bytes, u);
      put_scales<L>(scales, row, u);
    }
    for (int b = 0; b < L::unit_blocks; ++b, panel += L::code_bytes)
      put_block<L::planes>(panel, codes[0] + b * kBlock, kColumns);
  }
}

// Rows of floats -> columns of 16 floats, each a bit pattern V.
template <class V>
void pack_float_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows,
                      size_t row_bytes) {
  constexpr int kStep = 64 / sizeof(V);  // a cache line of a row
  if (rows < kPanel) std::memset(panel, 0, m.panel_bytes());
  for (int64_t first = 0; first < m.cols; first += kStep) {
    const int count = static_cast<int>(std::min<int64_t>(kStep, m.cols - first));
    V tile[kStep][kPanel] = {};
    for (int row = 0; row < rows; ++row) {
      V line[kStep];
      std::memcpy(line, source + row * row_bytes + first * sizeof(V), count * sizeof(V));
      for (int c = 0; c < count; ++c) tile[c][row] = line[c];
    }
    std::memcpy(panel + first * sizeof tile[0], tile, count * sizeof tile[0]);
  }
}

// Sixteen rows of 16 bytes -> 16 columns.
void transpose16(const uint8_t* source, size_t stride, uint8_t* out) {
  u8x16 v[16], w[16];
  for (size_t i = 0; i < 16; ++i) v[i] = load16(source + i * stride);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = picked<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(v[i], v[i + 8]);
      w[2 * i + 1] =
          picked<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(v[i], v[i + 8]);
    }
    std::memcpy(v, w, sizeof v);
  }
  std::memcpy(out, v, sizeof v);
}

// Rows of units, FP8 codes and then their f32 scale -> columns of 16 codes, then 16 scales a unit.
void pack_fp8_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows,
                    size_t row_bytes) {
  const TypeSizes& s = sizes_of(m.type);
  uint8_t* scales = panel + m.panel_codes_bytes();
  std::memset(scales, 0, m.panel_bytes() - m.panel_codes_bytes());
  for (int64_t unit = 0; unit < m.cols / s.source_columns; ++unit, scales += s.scale_bytes) {
    const uint8_t* at = source + static_cast<size_t>(unit) * s.source_bytes;
    for (int row = 0; row < rows; ++row)
      std::memcpy(scales + 4 * row, at + row * row_bytes + s.source_columns, 4);
    for (int c = 0; c < s.source_columns; c += 16, panel += 16 * kPanel) {
      if (rows == kPanel) {
        transpose16(at + c, row_bytes, panel);
        continue;
      }
      uint8_t last[kPanel][16] = {};
      for (int row = 0; row < rows; ++row) std::memcpy(last[row], at + row * row_bytes + c, 16);
      transpose16(last[0], 16, panel);
    }
  }
}

// Rows of units of FP8, as above -> codes of 8 bits, and a scale for 32 of them.
void pack_fp8_bytes_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows,
                          size_t row_bytes) {
  using L = Layout<Type::E8G128>;
  const TypeSizes& s = sizes_of(m.type);
  uint8_t* scales = panel + m.panel_codes_bytes();
  uint8_t codes[kPanel][kBlock] = {};
  if (rows < kPanel) std::memset(scales, 0, m.panel_bytes() - m.panel_codes_bytes());
  for (int b = 0; b < m.blocks(); ++b, panel += L::code_bytes, scales += L::scale_bytes) {
    const int unit = b * kBlock / s.source_columns, first = b * kBlock % s.source_columns;
    for (int row = 0; row < rows; ++row) {
      const uint8_t* at = source + row * row_bytes + static_cast<size_t>(unit) * s.source_bytes;
      float scale;
      std::memcpy(&scale, at + s.source_columns, 4);
      int8_t bytes[kBlock];
      scale = fp8_to_bytes(at + first, scale, bytes);
      std::memcpy(scales + 4 * row, &scale, 4);
      for (int i = 0; i < kBlock; ++i) codes[row][i] = static_cast<uint8_t>(bytes[i]) ^ 128;
    }
    put_block<L::planes>(panel, codes[0], kBlock);
  }
}

// Rows of 16-bit floats -> codes of 16 bits, and a scale for 64 of them.
void pack_words_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows,
                      size_t row_bytes) {
  using L = Layout<Type::B16G64>;
  uint8_t* scales = panel + m.panel_codes_bytes();
  int16_t codes[kPanel][kWords] = {};
  if (rows < kPanel) std::memset(scales, 0, m.panel_bytes() - m.panel_codes_bytes());
  for (int64_t first = 0; first < m.cols; first += kWords, scales += L::scale_bytes) {
    for (int row = 0; row < rows; ++row) {
      uint16_t line[kWords];
      std::memcpy(line, source + row * row_bytes + first * sizeof line[0], sizeof line);
      float values[kWords];
      if (m.type == Type::B16G64)
        for (int i = 0; i < kWords; ++i) values[i] = bfloat_to_float(line[i]);
      else
        for (int i = 0; i < kWords; ++i) values[i] = half_to_float(line[i]);
      const float scale = floats_to_words(values, codes[row]);
      std::memcpy(scales + 4 * row, &scale, 4);
    }
    for (int b = 0; b < L::unit_blocks; ++b, panel += L::code_bytes)
      put_block<L::planes>(panel, reinterpret_cast<const uint8_t*>(codes[0] + b * kBlock),
                           sizeof codes[0]);
  }
}

}  // namespace

const TypeSizes& sizes_of(Type t) { return kSizes[static_cast<int>(t)]; }

Type type_from_name(const std::string& name) {
  for (size_t i = 0; i < std::size(kSizes); ++i)
    if (name == kSizes[i].name) return static_cast<Type>(i);
  throw std::invalid_argument("no kernel for tensor type " + name);
}

size_t source_row_bytes(Type t, int64_t cols) {
  const TypeSizes& s = sizes_of(t);
  return static_cast<size_t>(cols / s.source_columns) * s.source_bytes;
}

void pack_panels(const Packed& target, int64_t first_row, int64_t count, const uint8_t* source) {
  assert(first_row % kPanel == 0 && first_row + count <= target.rows);
  const size_t row_bytes = source_row_bytes(target.type, target.cols);
  for (int64_t done = 0; done < count; done += kPanel, source += kPanel * row_bytes) {
    uint8_t* panel =
        const_cast<uint8_t*>(target.panel(static_cast<int>((first_row + done) / kPanel)));
    const int rows = static_cast<int>(std::min<int64_t>(kPanel, count - done));
    if (target.type == Type::F32) {
      pack_float_panel<uint32_t>(panel, target, source, rows, row_bytes);
    } else if (is_fp8(target.type)) {
      pack_fp8_panel(panel, target, source, rows, row_bytes);
    } else if (target.type == Type::E8G32 || target.type == Type::E8G128) {
      pack_fp8_bytes_panel(panel, target, source, rows, row_bytes);
    } else if (target.type == Type::B16G64 || target.type == Type::H16G64) {
      pack_words_panel(panel, target, source, rows, row_bytes);
    } else if (is_float(target.type)) {
      pack_float_panel<uint16_t>(panel, target, source, rows, row_bytes);
    } else {
      with_quantised_type(target.type, [&](auto t) {
        if constexpr (!is_rounded(t())) pack_panel<t()>(panel, target, source, rows, row_bytes);
      });
    }
  }
}

void pack_rows(const Packed& target, int64_t first_row, int64_t count, const uint8_t* source,
               int threads) {
  const size_t row_bytes = source_row_bytes(target.type, target.cols);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t done = 0; done < count; done += kPanel)
    pack_panels(target, first_row + done, std::min<int64_t>(kPanel, count - done),
                source + done * row_bytes);
}

}  // namespace dure
