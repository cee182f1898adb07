// Source blocks -> packed panels, and one packed row -> floats. Scalar: done once a load, bound by memory.
#include <omp.h>

#include <algorithm>

#include "layout.h"

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
};

// One row of one unit, decoded: plain codes and the scales as the packed form keeps them.
struct Unit {
  uint8_t codes[256];   // 0 .. 2^bits - 1 (for Lut types the 4-bit index)
  uint16_t d = 0, m = 0;  // f16 (bf16 for Power)
  uint8_t scale[16] = {}, min[16] = {};
};

// Q4_K and Q5_K keep eight 6-bit scales and mins in 12 bytes: the last four borrow their top bits from the first four.
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
  for (int i = 0; i < N; ++i) codes[i] = q[i] & 15;
  for (int i = 0; i < N; ++i) codes[N + i] = q[i] >> 4;
}

// 64 bytes -> 256 two-bit values: of each 32 bytes all lowest pairs, then all second ones, and so on.
void pairs_of(const uint8_t* q, uint8_t* codes) {
  for (int chunk = 0; chunk < 2; ++chunk)
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i) codes[128 * chunk + 32 * j + i] = (q[32 * chunk + i] >> (2 * j)) & 3;
}

// Bit j of byte i, put at bit `place` of code 32 j + i.
void add_bits(const uint8_t* bits, int place, uint8_t* codes) {
  for (int j = 0; j < 8; ++j)
    for (int i = 0; i < 32; ++i) codes[32 * j + i] |= static_cast<uint8_t>(((bits[i] >> j) & 1) << place);
}

template <Type type>
void decode_unit( const uint8_t* s, Unit& u) {
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
      uint32_t high;
      std::memcpy(&high, s + head, 4);
      for (int i = 0; i < 16; ++i) {
        const uint8_t q = s[head + 4 + i];
        u.codes[i] = static_cast<uint8_t>((q & 15) | (((high >> i) & 1) << 4));
        u.codes[i + 16] = static_cast<uint8_t>((q >> 4) | (((high >> (i + 16)) & 1) << 4));
      }
      break;
    }
    case Type::Q8_0:
      u.d = load_u16(s);
      for (int i = 0; i < 32; ++i) u.codes[i] = static_cast<uint8_t>(s[2 + i] + 128);
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
      add_bits(s, 2, u.codes);
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
      if (five) add_bits(s + 16, 4, u.codes);
      break;
    }
    case Type::Q6_K: {
      // 128 bytes low nibbles, 64 bytes of high pairs, 16 int8 scales, d.
      for (int chunk = 0; chunk < 2; ++chunk) split_nibbles<64>(s + 64 * chunk, u.codes + 128 * chunk);
      uint8_t high[256];
      pairs_of(s + 128, high);
      for (int i = 0; i < 256; ++i) u.codes[i] |= static_cast<uint8_t>(high[i] << 4);
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
    default: throw std::invalid_argument("not a quantised type");
  }
}

// Puts one row's 32 codes in their places in a block's code area, four codes (one 32-bit word) at a time.
template <Planes P>
void put_row(uint8_t* out, int row, const uint8_t* codes) {
  uint32_t w[kGroups];
  std::memcpy(w, codes, sizeof w);
  auto put = [&](int byte, uint32_t v) { std::memcpy(out + byte + row * kGroup, &v, 4); };
  auto put4 = [&](int at) {
    for (int g = 0; g < 4; ++g) put(at + g * 64, (w[g] & 0x0F0F0F0Fu) | ((w[g + 4] & 0x0F0F0F0Fu) << 4));
  };
  auto put2 = [&](int at, int shift) {
    for (int h = 0; h < 2; ++h) {
      uint32_t v = 0;
      for (int g = 0; g < 4; ++g) v |= ((w[4 * h + g] >> shift) & 0x03030303u) << (2 * g);
      put(at + h * 64, v);
    }
  };
  auto put1 = [&](int at, int shift) {
    uint32_t v = 0;
    for (int g = 0; g < kGroups; ++g) v |= ((w[g] >> shift) & 0x01010101u) << g;
    put(at, v);
  };
  if constexpr (P == Planes::P2) put2(0, 0);
  if constexpr (P == Planes::P2_1) put2(0, 0), put1(128, 2);
  if constexpr (P == Planes::P4 || P == Planes::Lut) put4(0);
  if constexpr (P == Planes::P4_1) put4(0), put1(256, 4);
  if constexpr (P == Planes::P4_2) put4(0), put2(256, 4);
  if constexpr (P == Planes::P8)
    for (int g = 0; g < kGroups; ++g) put(g * 64, w[g]);
}

template <Planes P>
uint8_t get_code(const uint8_t* in, int row, int column) {
  const int g = column / kGroup, byte = row * kGroup + column % kGroup;
  auto get4 = [&](const uint8_t* plane) { return (plane[(g & 3) * 64 + byte] >> (g < 4 ? 0 : 4)) & 15; };
  auto get2 = [&](const uint8_t* plane) { return (plane[(g >> 2) * 64 + byte] >> (2 * (g & 3))) & 3; };
  auto get1 = [&](const uint8_t* plane) { return (plane[byte] >> g) & 1; };
  if constexpr (P == Planes::P2) return static_cast<uint8_t>(get2(in));
  if constexpr (P == Planes::P2_1) return static_cast<uint8_t>(get2(in) | (get1(in + 128) << 2));
  if constexpr (P == Planes::P4 || P == Planes::Lut) return static_cast<uint8_t>(get4(in));
  if constexpr (P == Planes::P4_1) return static_cast<uint8_t>(get4(in) | (get1(in + 256) << 4));
  if constexpr (P == Planes::P4_2) return static_cast<uint8_t>(get4(in) | (get2(in + 256) << 4));
  return in[g * 64 + byte];
}

void put_u16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }

template <Scales S>
void put_scales(uint8_t* out, int row, const Unit& u) {
  put_u16(out + 2 * row, u.d);
  if constexpr (S == Scales::HalfMin || S == Scales::SuperMin32 || S == Scales::SuperMin16)
    put_u16(out + 32 + 2 * row, u.m);
  if constexpr (S == Scales::SuperMin32)
    for (int j = 0; j < 8; ++j) out[64 + 32 * j + row] = u.scale[j], out[64 + 32 * j + 16 + row] = u.min[j];
  if constexpr (S == Scales::Super32)
    for (int j = 0; j < 8; ++j) out[32 + 16 * j + row] = u.scale[j];
  if constexpr (S == Scales::Super16)
    for (int j = 0; j < 16; ++j) out[32 + 16 * j + row] = u.scale[j];
  if constexpr (S == Scales::SuperMin16)
    for (int j = 0; j < 16; ++j) out[64 + 16 * j + row] = u.scale[j];
}

// The float scale and addend of one (row, block, half), rounded as the source format rounds.
template <Scales S>
void get_scale(const uint8_t* in, int row, int block_in_unit, int half, float& scale, float& add) {
  const float d = S == Scales::Power ? bfloat_to_float(load_u16(in + 2 * row)) : half_to_float(load_u16(in + 2 * row));
  const int j = block_in_unit, h = 2 * block_in_unit + half;
  add = 0;
  if constexpr (S == Scales::Half || S == Scales::Power) scale = d;
  if constexpr (S == Scales::HalfMin) scale = d, add = half_to_float(load_u16(in + 32 + 2 * row));
  if constexpr (S == Scales::SuperMin32) {
    scale = d * static_cast<float>(in[64 + 32 * j + row]);
    add = -(half_to_float(load_u16(in + 32 + 2 * row)) * static_cast<float>(in[64 + 32 * j + 16 + row]));
  }
  if constexpr (S == Scales::Super32) scale = d * static_cast<float>(static_cast<int8_t>(in[32 + 16 * j + row]));
  if constexpr (S == Scales::Super16) scale = d * static_cast<float>(static_cast<int8_t>(in[32 + 16 * h + row]));
  if constexpr (S == Scales::SuperMin16) {
    const uint8_t q = in[64 + 16 * h + row];
    scale = d * static_cast<float>(q & 15);
    add = -(half_to_float(load_u16(in + 32 + 2 * row)) * static_cast<float>(q >> 4));
  }
}

template <Type T>
void pack_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows, size_t row_bytes) {
  using L = Layout<T>;
  const TypeSizes& s = sizes_of(T);
  const int units = m.blocks() / L::unit_blocks;
  uint8_t* scales = panel + m.panel_codes_bytes();
  if (rows < kPanel) std::memset(panel, 0, m.panel_bytes());  // rows past the end multiply to zero
  Unit u;
  for (int unit = 0; unit < units; ++unit)
    for (int row = 0; row < rows; ++row) {
      decode_unit<T>(source + row * row_bytes + static_cast<size_t>(unit) * s.source_bytes, u);
      put_scales<L::scales>(scales + static_cast<size_t>(unit) * L::scale_bytes, row, u);
      for (int b = 0; b < L::unit_blocks; ++b) {
        uint8_t* out = panel + static_cast<size_t>(unit * L::unit_blocks + b) * L::code_bytes;
        put_row<L::planes>(out, row, u.codes + b * kBlock);
      }
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

void pack_rows(const Packed& target, int64_t first_row, int64_t count, const uint8_t* source, int threads) {
  const size_t row_bytes = source_row_bytes(target.type, target.cols);
  const int first_panel = static_cast<int>(first_row / kPanel), panels = ceil_div(count, kPanel);
  uint8_t* base = const_cast<uint8_t*>(target.data);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int p = 0; p < panels; ++p) {
    uint8_t* panel = base + target.panel_bytes() * (first_panel + p);
    const int rows = static_cast<int>(std::min<int64_t>(kPanel, count - static_cast<int64_t>(p) * kPanel));
    const uint8_t* from = source + static_cast<size_t>(p) * kPanel * row_bytes;
    if (is_float(target.type)) {
      const size_t width = target.type == Type::F32 ? 4 : 2;
      std::memset(panel, 0, target.panel_bytes());
      for (int row = 0; row < rows; ++row)
        for (int64_t c = 0; c < target.cols; ++c)
          std::memcpy(panel + (c * kPanel + row) * width, from + row * row_bytes + c * width, width);
    } else {
      with_quantised_type(target.type, [&](auto t) { pack_panel<t()>(panel, target, from, rows, row_bytes); });
    }
  }
}

void unpack_row(const Packed& m, int64_t row, float* out) {
  const uint8_t* panel = m.panel(static_cast<int>(row / kPanel));
  const int r = static_cast<int>(row % kPanel);
  if (m.type == Type::F32) {
    for (int64_t c = 0; c < m.cols; ++c) std::memcpy(out + c, panel + (c * kPanel + r) * 4, 4);
    return;
  }
  if (is_float(m.type)) {
    for (int64_t c = 0; c < m.cols; ++c) {
      const uint16_t v = load_u16(panel + (c * kPanel + r) * 2);
      out[c] = m.type == Type::F16 ? half_to_float(v) : bfloat_to_float(v);
    }
    return;
  }
  with_quantised_type(m.type, [&](auto t) {
    using L = Layout<t()>;
    const uint8_t* scales = panel + m.panel_codes_bytes();
    for (int b = 0; b < m.blocks(); ++b) {
      const uint8_t* codes = panel + static_cast<size_t>(b) * L::code_bytes;
      const uint8_t* unit = scales + static_cast<size_t>(b / L::unit_blocks) * L::scale_bytes;
      for (int half = 0; half < L::halves; ++half) {
        float scale, add;
        get_scale<L::scales>(unit, r, b % L::unit_blocks, half, scale, add);
        const int width = kBlock / L::halves;
        for (int c = half * width; c < (half + 1) * width; ++c) {
          int code = get_code<L::planes>(codes, r, c);
          if constexpr (L::planes == Planes::Lut) code = lut_of<t()>()[code];
          const float value = scale * static_cast<float>(code - L::offset);
          out[b * kBlock + c] = L::has_min ? value + add : value;
        }
      }
    }
  });
}

}  // namespace dure
