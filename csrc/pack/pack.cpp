// Source blocks -> packed panels. Sixteen bytes at a time, which every processor has: wider vectors
// gain nothing, because the source comes from a file and the panels go to fresh pages.
#include <omp.h>

#include <algorithm>
#include <utility>

#include "pack/as_integers.h"
#include "pack/layout.h"
#include "pack/planes.h"
#include "pack/source_blocks.h"

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

// The scales of one unit, of 16 rows.
template <Type T, class L = Layout<T>>
void put_scales(uint8_t* out, const uint8_t* const* rows) {
  if constexpr (L::super) {
    constexpr bool kMin = L::scales == Scales::SuperMin32 || L::scales == Scales::SuperMin16;
    uint8_t levels[kPanel][16] = {};
    for (int row = 0; row < kPanel; ++row) {
      const SuperScales u = super_scales<T>(rows[row]);
      std::memcpy(out + 2 * row, &u.d, 2);
      if (kMin) std::memcpy(out + 32 + 2 * row, &u.m, 2);
      store16(levels[row], u.levels);
    }
    uint8_t* at = out + (kMin ? 64 : 32);
    if constexpr (L::scales == Scales::Super32) {  // eight of them
      uint8_t columns[16 * kPanel];
      transpose16(levels[0], 16, columns);
      std::memcpy(at, columns, 8 * kPanel);
    } else {
      transpose16(levels[0], 16, at);
    }
  } else {
    for (int row = 0; row < kPanel; ++row) {
      const uint8_t* s = rows[row];
      if constexpr (T == Type::MXFP4) {
        const uint16_t d = power_of(s[0]);
        std::memcpy(out + 2 * row, &d, 2);
      } else if constexpr (L::scales == Scales::Half || L::scales == Scales::HalfMin) {
        std::memcpy(out + 2 * row, s, 2);
        if (L::has_min) std::memcpy(out + 32 + 2 * row, s + 2, 2);
      } else {  // our own types: behind the codes
        const uint8_t* own = s + own_code_bytes<L>();
        std::memcpy(out + 4 * row, own, 4);
        if constexpr (L::scales == Scales::FloatMin) std::memcpy(out + 64 + 4 * row, own + 4, 4);
        if constexpr (L::scales == Scales::FloatMin16)
          for (int i = 1; i < 4; ++i)  // scale, minimum, scale, minimum: of 16 rows each
            std::memcpy(out + 64 * i + 4 * row, own + 4 * (i % 2 * 2 + i / 2), 4);
        if constexpr (L::scales == Scales::Zero) out[64 + row] = own[4];
        if constexpr (L::scales == Scales::Fp8)
          for (int j = 0; j < 2 * L::unit_blocks; ++j) out[64 + 16 * j + row] = own[4 + j];
      }
    }
  }
}

// A block of zeros, for the rows past the end: it multiplies to zero in every type.
constexpr uint8_t kNoRow[256] = {};

template <Type T>
void pack_panel(uint8_t* panel, const Packed& m, const uint8_t* source, int rows,
                size_t row_bytes) {
  using L = Layout<T>;
  const auto bytes = static_cast<size_t>(sizes_of(T).source_bytes);
  assert(bytes <= sizeof kNoRow);
  uint8_t* scales = panel + m.panel_codes_bytes();
  const uint8_t* at[kPanel];
  for (int row = 0; row < kPanel; ++row) at[row] = row < rows ? source + row * row_bytes : kNoRow;
  for (int unit = 0; unit < m.blocks() / L::unit_blocks; ++unit, scales += L::scale_bytes) {
    put_scales<T>(scales, at);
    [&]<int... kBlocks>(std::integer_sequence<int, kBlocks...>) {
      (put_block<L::planes>(
           panel + kBlocks * L::code_bytes, [&](int row) { return codes<T, 2 * kBlocks>(at[row]); },
           [&](int row) { return codes<T, 2 * kBlocks + 1>(at[row]); }),
       ...);
    }(std::make_integer_sequence<int, L::unit_blocks>{});
    panel += L::unit_blocks * L::code_bytes;
    for (int row = 0; row < rows; ++row) at[row] += bytes;
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
    put_block<L::planes>(
        panel, [&](int row) { return load16(codes[row]); },
        [&](int row) { return load16(codes[row] + 16); });
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
      put_words(panel, reinterpret_cast<const uint8_t*>(codes[0] + b * kBlock), sizeof codes[0]);
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
