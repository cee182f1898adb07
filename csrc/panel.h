// The loops of one panel for every type and tile width, as templates. Only matmul.cpp includes this: it is most of what
// there is to compile.
#pragma once

#include "matmul.h"

namespace dure::DURE_ISA {

// Reads codes and scales straight from the packed panel: for one tile, where nothing is read twice.
template <Type kType>
struct PanelSource {
  using L = Layout<kType>;
  const uint8_t* codes;
  const uint8_t* scales;

  PanelSource(const Packed& m, const uint8_t* panel) : codes(panel), scales(panel + m.panel_codes_bytes()) {}

  struct Block {
    const uint8_t* p;
    template <int G>
    __attribute__((always_inline)) u8x64 operator()(std::integral_constant<int, G>) const {
      auto nibble = [&] { return bits_at<G < 4 ? 0 : 4>(load_u8(p + (G & 3) * 64), 15); };
      auto pair = [&](int at) { return bits_at<2 * (G & 3)>(load_u8(p + at + (G >> 2) * 64), 3); };
      auto bit = [&](int at) { return bits_at<G>(load_u8(p + at), 1); };
      if constexpr (L::planes == Planes::P2) return pair(0);
      if constexpr (L::planes == Planes::P2_1) return or_shifted<2>(pair(0), bit(128));
      if constexpr (L::planes == Planes::P4) return nibble();
      if constexpr (L::planes == Planes::Lut) return look_up(nibble(), lut_of<kType>());
      if constexpr (L::planes == Planes::P4_1) return or_shifted<4>(nibble(), bit(256));
      if constexpr (L::planes == Planes::P4_2) return or_shifted<4>(nibble(), pair(256));
      if constexpr (L::planes == Planes::P8) return load_u8(p + G * 64);
    }
  };
  Block block(int b) const { return {codes + static_cast<size_t>(b) * L::code_bytes}; }

  const uint8_t* unit(int b) const { return scales + static_cast<size_t>(b / L::unit_blocks) * L::scale_bytes; }
  static const uint16_t* halves(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

  f32x16 scale(int b, int half) const {
    const uint8_t* u = unit(b);
    const int j = b % L::unit_blocks;
    if constexpr (L::scales == Scales::Power) return load_bfloat(halves(u));
    const f32x16 d = load_half(halves(u));
    if constexpr (L::scales == Scales::SuperMin32) return d * load_u8_float(u + 64 + 32 * j);
    if constexpr (L::scales == Scales::Super32) return d * load_i8_float(u + 32 + 16 * j);
    if constexpr (L::scales == Scales::Super16) return d * load_i8_float(u + 32 + 16 * (2 * j + half));
    if constexpr (L::scales == Scales::SuperMin16) return d * load_low4_float(u + 64 + 16 * (2 * j + half));
    return d;
  }
  f32x16 add(int b, int half) const {
    const uint8_t* u = unit(b);
    const int j = b % L::unit_blocks;
    const f32x16 m = load_half(halves(u + 32));
    if constexpr (L::scales == Scales::HalfMin) return m;
    const f32x16 negative = m * set1(-1.0f);
    if constexpr (L::scales == Scales::SuperMin16) return negative * load_high4_float(u + 64 + 16 * (2 * j + half));
    return negative * load_u8_float(u + 64 + 32 * j + 16);
  }
};

template <class L_>
struct ScratchSource {
  using L = L_;
  const Scratch& s;
  struct Block {
    const uint8_t (*p)[64];
    template <int G>
    __attribute__((always_inline)) u8x64 operator()(std::integral_constant<int, G>) const { return load_u8(p[G]); }
  };
  Block block(int b) const { return {s.codes[b]}; }
  f32x16 scale(int b, int half) const { return load(s.scale[b][half]); }
  f32x16 add(int b, int half) const { return load(s.add[b][half]); }
};

template <Type kType>
void unpack_chunk(const PanelSource<kType>& source, int first, int count, Scratch& s) {
  using L = Layout<kType>;
  for (int b = 0; b < count; ++b) {
    const auto block = source.block(first + b);
    for_range<0, kGroups>([&](auto g) __attribute__((always_inline)) { store_u8(s.codes[b][g], block(g)); });
    for (int half = 0; half < L::halves; ++half) {
      store(s.scale[b][half], source.scale(first + b, half));
      if constexpr (L::has_min) store(s.add[b][half], source.add(first + b, half));
    }
  }
}

// acc[t] += the products of `count` blocks, for T tokens of a tile `kWidth` wide, from lane `first` on.
template <int T, int kWidth = T, class Source>
__attribute__((always_inline)) inline void accumulate(const Source& source, int count, const uint8_t* tile, f32x16* acc,
                                                      int first = 0) {
  using L = typename Source::L;
  for (int b = 0; b < count; ++b, tile += ActTiles::kRecord * kWidth) {
    const Record<const uint8_t> record{tile, kWidth};
    const float *scale = record.scale() + first, *total = record.total() + first;
    const auto block = source.block(b);
    for_range<0, L::halves>([&](auto half) __attribute__((always_inline)) {
      constexpr int kSpan = kGroups / L::halves;
      const int32_t* sums = first + (L::halves == 1 ? record.sum() : half ? record.high_sum() : record.low_sum());
      i32x16 s[T];
      dot_groups<L::bits, L::offset, T, half * kSpan, (half + 1) * kSpan>(block, record.codes() + first * kBlock, sums, s);
      const f32x16 w = source.scale(b, half);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[t] = fma(to_float(s[t]) * set1(scale[t]), w, acc[t]);
      if constexpr (L::has_min) {
        const f32x16 m = source.add(b, half);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
          acc[t] = fma(set1(L::halves == 1 ? total[t] : static_cast<float>(sums[t]) * scale[t]), m, acc[t]);
      }
    });
  }
}

template <Type kType, int T>
void panel_one_tile(const Packed& w, const uint8_t* panel, const ActTiles& x, const Output& out) {
  f32x16 acc[T];
  for (int t = 0; t < T; ++t) acc[t] = set1(0);
  const PanelSource<kType> source(w, panel);
  accumulate<T>(source, x.blocks, x.tile(0), acc);
  for (int t = 0; t < x.rows; ++t) out.put(t, acc[t]);
}

// Tiles that are kWidth tokens wide, kTile of them at a time.
template <Type kType, int kWidth = kTile>
void panel_many_tiles(const Packed& w, const uint8_t* panel, const ActTiles& x, const Output& out, Scratch& scratch,
                      std::vector<float>& partial) {
  constexpr int T = kTile;
  const PanelSource<kType> source(w, panel);
  const ScratchSource<Layout<kType>> unpacked{scratch};
  const int parts = ceil_div(x.rows, T);
  if (partial.size() < static_cast<size_t>(parts) * T * kPanel) partial.resize(static_cast<size_t>(parts) * T * kPanel);
  for (int first = 0; first < x.blocks; first += kChunk) {
    const int count = std::min(kChunk, x.blocks - first);
    unpack_chunk(source, first, count, scratch);
    for (int i = 0; i < parts; ++i) {
      f32x16 acc[T];
      float* sums = partial.data() + static_cast<size_t>(i) * T * kPanel;
      for (int t = 0; t < T; ++t) acc[t] = first ? load(sums + t * kPanel) : set1(0);
      accumulate<T, kWidth>(unpacked, count, x.record(i * T, first), acc, i * T % kWidth);
      if (first + count < x.blocks) {
        for (int t = 0; t < T; ++t) store(sums + t * kPanel, acc[t]);
      } else {
        const int last = std::min(T, x.rows - i * T);
        for (int t = 0; t < last; ++t) out.put(static_cast<int64_t>(i) * T + t, acc[t]);
      }
    }
  }
}

#ifdef DURE_AMX
template <Type kType>
void unpack_strip(const PanelSource<kType>& source, int first, int count, amx::Strip& s) {
  using L = Layout<kType>;
  for (int b = 0; b < count; ++b) {
    const auto block = source.block(first + b);
    for_range<0, kGroups>([&](auto g) __attribute__((always_inline)) { store_i8(s.codes[b][g], minus<L::offset>(block(g))); });
    store(s.scale[b], source.scale(first + b, 0));
    if constexpr (L::has_min) store(s.add[b], source.add(first + b, 0));
  }
}
#endif

}  // namespace dure::DURE_ISA
