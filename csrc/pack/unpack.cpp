// One packed row -> floats, with the roundings of the source format's own dequantisation.
#include "pack/layout.h"

namespace dure {

namespace {

template <Planes P>
uint8_t get_code(const uint8_t* in, int row, int column) {
  const int g = column / kGroup, byte = row * kGroup + column % kGroup;
  auto get4 = [&](const uint8_t* plane) {
    return (plane[(g & 3) * 64 + byte] >> (g < 4 ? 0 : 4)) & 15;
  };
  auto get2 = [&](const uint8_t* plane) {
    return (plane[(g >> 2) * 64 + byte] >> (2 * (g & 3))) & 3;
  };
  auto get1 = [&](const uint8_t* plane) { return (plane[byte] >> g) & 1; };
  if constexpr (P == Planes::P2) return static_cast<uint8_t>(get2(in));
  if constexpr (P == Planes::P2_1) return static_cast<uint8_t>(get2(in) | (get1(in + 128) << 2));
  if constexpr (P == Planes::P4 || P == Planes::Lut) return static_cast<uint8_t>(get4(in));
  if constexpr (P == Planes::P4_1) return static_cast<uint8_t>(get4(in) | (get1(in + 256) << 4));
  if constexpr (P == Planes::P4_2) return static_cast<uint8_t>(get4(in) | (get2(in + 256) << 4));
  return in[g * 64 + byte];
}

// The float scale and addend of one (row, block, half), rounded as the source format rounds.
template <Scales S>
void get_scale(const uint8_t* in, int row, int block_in_unit, int half, float& scale, float& add) {
  const float d = S == Scales::Power ? bfloat_to_float(load_u16(in + 2 * row))
                                     : half_to_float(load_u16(in + 2 * row));
  const int j = block_in_unit, h = 2 * block_in_unit + half;
  add = 0;
  if constexpr (S == Scales::Half || S == Scales::Power) scale = d;
  if constexpr (S == Scales::Zero || S == Scales::Float || S == Scales::FloatMin)
    std::memcpy(&scale, in + 4 * row, 4);
  if constexpr (S == Scales::FloatMin) std::memcpy(&add, in + 64 + 4 * row, 4);
  if constexpr (S == Scales::FloatMin16) {
    std::memcpy(&scale, in + 128 * half + 4 * row, 4);
    std::memcpy(&add, in + 128 * half + 64 + 4 * row, 4);
  }
  if constexpr (S == Scales::Fp8) {
    std::memcpy(&scale, in + 4 * row, 4);
    scale = fp8_scale(in[64 + 16 * h + row], scale);
  }
  if constexpr (S == Scales::HalfMin) scale = d, add = half_to_float(load_u16(in + 32 + 2 * row));
  if constexpr (S == Scales::SuperMin32) {
    scale = d * static_cast<float>(in[64 + 32 * j + row]);
    add = -(half_to_float(load_u16(in + 32 + 2 * row)) *
            static_cast<float>(in[64 + 32 * j + 16 + row]));
  }
  if constexpr (S == Scales::Super32)
    scale = d * static_cast<float>(static_cast<int8_t>(in[32 + 16 * j + row]));
  if constexpr (S == Scales::Super16)
    scale = d * static_cast<float>(static_cast<int8_t>(in[32 + 16 * h + row]));
  if constexpr (S == Scales::SuperMin16) {
    const uint8_t q = in[64 + 16 * h + row];
    scale = d * static_cast<float>(q & 15);
    add = -(half_to_float(load_u16(in + 32 + 2 * row)) * static_cast<float>(q >> 4));
  }
}

}  // namespace

void unpack_row(const Packed& m, int64_t row, float* out) {
  assert(row >= 0 && row < m.rows);
  const uint8_t* panel = m.panel(static_cast<int>(row / kPanel));
  const int r = static_cast<int>(row % kPanel);
  if (m.type == Type::F32) {
    for (int64_t c = 0; c < m.cols; ++c) std::memcpy(out + c, panel + (c * kPanel + r) * 4, 4);
    return;
  }
  if (is_fp8(m.type)) {
    const int width = sizes_of(m.type).source_columns;
    const uint8_t* scales = panel + m.panel_codes_bytes();
    for (int64_t c = 0; c < m.cols; ++c) {
      float scale;
      std::memcpy(&scale, scales + (c / width * kPanel + r) * 4, 4);
      out[c] = half_to_float(fp8_as_half(panel[c * kPanel + r])) * (scale * 256.0f);
    }
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
    if constexpr (L::planes == Planes::P16) {
      for (int64_t c = 0; c < m.cols; ++c) {
        float scale;
        std::memcpy(&scale, scales + c / (L::unit_blocks * kBlock) * L::scale_bytes + 4 * r, 4);
        const auto code = static_cast<int16_t>(load_u16(panel + c / 2 * 64 + 4 * r + c % 2 * 2));
        out[c] = scale * static_cast<float>(code);
      }
      return;
    }
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
          if constexpr (L::scales == Scales::Zero) code -= unit[64 + r];
          else if constexpr (!L::affine) code -= L::offset;
          const float value = scale * static_cast<float>(code);
          out[b * kBlock + c] = L::has_min && L::scales != Scales::Zero ? value + add : value;
        }
      }
    }
  });
}

}  // namespace dure
