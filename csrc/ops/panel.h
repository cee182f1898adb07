// The loops of one panel for every type and tile width, as templates. Only matmul.cpp includes
// this: it is most of what there is to compile.
#pragma once

#include "ops/matmul.h"

namespace dure::DURE_ISA {

// What the loops over codes depend on.
template <int Bits, int Offset, int Halves, bool HasMin, bool Wide = false>
struct Form {
  static constexpr int bits = Bits, offset = Offset, halves = Halves;
  static constexpr bool has_min = HasMin, wide = Wide;
  static constexpr int block_bytes = kBlock * kPanel * (wide ? 2 : 1),
                       chunk = kChunk / (wide ? 2 : 1);
};
template <class L>
using PackedForm = Form<L::bits, L::offset, L::halves, L::has_min, L::bits == 16>;

// … once they are unpacked. 16 types have six forms, because codes of few bits and no minimum are
// moved to a common offset: these loops are most of what there is to compile.
template <class L>
constexpr auto unpacked_form() {
  if constexpr (L::bits == 16) return PackedForm<L>{};
  else if constexpr (L::bits == 8)
    return Form<8, L::offset, L::halves, L::has_min, kWideCodes && L::halves == 1>{};
  else if constexpr (L::has_min) return PackedForm<L>{};
  else if constexpr (L::halves == 2) return Form<6, 32, 2, false>{};
  else return Form<5, 16, 1, false>{};
}
template <class L>
using UnpackedForm = decltype(unpacked_form<L>());

// clang wants to know the names of templates in branches that are not taken, too: an instruction
// set without such codes has these alone, which nothing can call.
struct Absent {};
template <int>
void store_wide(Absent);
template <int>
void dot_wide(Absent);
template <int, int, int, int, int>
void dot_pairs(Absent);

// Reads codes and scales straight from the packed panel: for one tile, where nothing is read twice.
template <Type kType>
struct PanelSource {
  using L = Layout<kType>;
  using F = PackedForm<L>;
  static constexpr bool unpacked = false;
  static constexpr bool unpacking_costs = L::planes != Planes::P8 && L::planes != Planes::P16;
  static constexpr int kScaleStride = L::scale_bytes / L::unit_blocks;
  static_assert(L::scale_bytes % L::unit_blocks == 0);
  const uint8_t* codes;
  const uint8_t* scales;
  bool divides = false;  // of Scales::Fp8: whether its global scales divide, all or none
  int blocks;
  // Where a panel would lie whose blocks from `blocks` on were the next panel's.
  const uint8_t *next_codes, *next_scales;

  // next: the task after this one; without it, the panel behind is taken to be read next.
  PanelSource(const Packed& m, const uint8_t* panel, const Task* next = nullptr)
      : codes(panel), scales(panel + m.panel_codes_bytes()), blocks(m.blocks()) {
    const uint8_t* then = next ? next->w.panel(next->panel) : panel + m.panel_bytes();
    next_codes = then - static_cast<ptrdiff_t>(blocks) * L::code_bytes;
    next_scales = then + (next ? next->w : m).panel_codes_bytes() -
                  static_cast<ptrdiff_t>(blocks) * kScaleStride;
    if constexpr (L::scales == Scales::Fp8) divides = *reinterpret_cast<const float*>(scales) < 0;
  }

  struct Block {
    const uint8_t* p;
    template <int G>
    __attribute__((always_inline)) u8x64 operator()(std::integral_constant<int, G>) const {
      auto nibble = [&] { return bits_at < G<4 ? 0 : 4>(load_u8(p + (G & 3) * 64), 15); };
      auto pair = [&](int at) { return bits_at<2 * (G & 3)>(load_u8(p + at + (G >> 2) * 64), 3); };
      auto bit = [&](int at) { return bits_at<G>(load_u8(p + at), 1); };
      if constexpr (L::planes == Planes::P2) return pair(0);
      if constexpr (L::planes == Planes::P2_1) return or_shifted<2>(pair(0), bit(128));
      if constexpr (L::planes == Planes::P4) return nibble();
      if constexpr (L::planes == Planes::Lut) return look_up(nibble(), lut_of<kType>());
      if constexpr (L::planes == Planes::P4_1) return or_shifted<4>(nibble(), bit(256));
      if constexpr (L::planes == Planes::P4_2) return or_shifted<4>(nibble(), pair(256));
      return load_u8(p + G * 64);  // P8; codes of 16 bits are never asked for by groups
    }
  };
  Block block(int b) const { return {codes + static_cast<size_t>(b) * L::code_bytes}; }

  // Asks early for the codes and scales that come next: the processor's own guesses end at each
  // page of 4 KB, and it looks ahead over the instructions of two blocks at most. Behind a panel's
  // last block comes the first of the next.
  __attribute__((always_inline)) void fetch_ahead(int b) const {
    // 2 KB: what a core has on its way is no more.
    const int ahead = b + 2048 / L::code_bytes;
    const uint8_t* p = (ahead < blocks ? codes : next_codes) + ahead * ptrdiff_t{L::code_bytes};
#pragma GCC unroll 8
    for (int i = 0; i < L::code_bytes; i += 64) __builtin_prefetch(p + i, 0, 0);
    const uint8_t* q = (ahead < blocks ? scales : next_scales) + ahead * ptrdiff_t{kScaleStride};
#pragma GCC unroll 4
    for (int i = 0; i < kScaleStride; i += 64) __builtin_prefetch(q + i, 0, 0);
  }

  const uint8_t* unit(int b) const {
    return scales + static_cast<size_t>(b / L::unit_blocks) * L::scale_bytes;
  }
  static const uint16_t* halves(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

  f32x16 scale(int b, int half) const {
    const uint8_t* u = unit(b);
    const int j = b % L::unit_blocks;
    if constexpr (L::scales == Scales::Power) return load_bfloat(halves(u));
    if constexpr (L::scales == Scales::Zero || L::scales == Scales::Float ||
                  L::scales == Scales::FloatMin)
      return load(reinterpret_cast<const float*>(u));
    if constexpr (L::scales == Scales::FloatMin16)
      return load(reinterpret_cast<const float*>(u) + 32 * half);
    if constexpr (L::scales == Scales::Fp8) {  // as fp8_scale has it
      alignas(32) uint16_t e4m3[16];
      const uint8_t* p = u + 64 + 16 * (2 * j + half);
      for (int i = 0; i < 16; ++i) e4m3[i] = fp8_as_half(p[i]);
      const f32x16 global = load(reinterpret_cast<const float*>(u));
      const f32x16 own = load_half(e4m3);
      return divides ? own * set1(-128.0f) / global : own * set1(128.0f) * global;
    }
    const f32x16 d = load_half(halves(u));
    if constexpr (L::scales == Scales::SuperMin32) return d * load_u8_float(u + 64 + 32 * j);
    if constexpr (L::scales == Scales::Super32) return d * load_i8_float(u + 32 + 16 * j);
    if constexpr (L::scales == Scales::Super16)
      return d * load_i8_float(u + 32 + 16 * (2 * j + half));
    if constexpr (L::scales == Scales::SuperMin16)
      return d * load_low4_float(u + 64 + 16 * (2 * j + half));
    return d;
  }
  f32x16 add(int b, int half) const {
    const uint8_t* u = unit(b);
    const int j = b % L::unit_blocks;
    if constexpr (L::scales == Scales::Zero) return scale(b, half) * zero(b) * set1(-1.0f);
    if constexpr (L::affine && L::offset == 0) return minimum(b, half);
    if constexpr (L::affine)
      return minimum(b, half) + scale(b, half) * set1(static_cast<float>(L::offset));
    const f32x16 m = load_half(halves(u + 32));
    if constexpr (L::scales == Scales::HalfMin) return m;
    const f32x16 negative = m * set1(-1.0f);
    if constexpr (L::scales == Scales::SuperMin16)
      return negative * load_high4_float(u + 64 + 16 * (2 * j + half));
    return negative * load_u8_float(u + 64 + 32 * j + 16);
  }
  // The zero point of codes without their offset.
  f32x16 zero(int b) const {
    return load_u8_float(unit(b) + 64) - set1(static_cast<float>(L::offset));
  }
  // What is added to scale times code, of codes with their offset.
  f32x16 minimum(int b, int half) const {
    return load(reinterpret_cast<const float*>(unit(b) + 64 + 128 * half));
  }
};

template <Type kType>
void unpack_chunk(const PanelSource<kType>& source, int first, int count, Scratch& s) {
  using L = Layout<kType>;
  using F = UnpackedForm<L>;
  for (int b = 0; b < count; ++b) {
    const auto block = source.block(first + b);
    source.fetch_ahead(first + b);
    if constexpr (L::bits == 16) std::memcpy(s.codes + b * F::block_bytes, block.p, L::code_bytes);
    else
      for_range<0, kGroups>([&](auto g) __attribute__((always_inline)) {
        if constexpr (F::wide) {
          store_wide<L::offset>(s.codes + b * F::block_bytes + g * 128, block(g));
        } else if constexpr (kPairCodes) {
          if constexpr (g % 2 == 1)
            store_pair(s.codes + b * F::block_bytes + (g - 1) * 64,
                       minus<L::offset>(block(std::integral_constant<int, g - 1>{})),
                       minus<L::offset>(block(g)));
        } else {
          store_u8(s.codes + b * F::block_bytes + g * 64, minus<L::offset - F::offset>(block(g)));
        }
      });
    for (int half = 0; half < L::halves; ++half) {
      store(s.scale[b][half], source.scale(first + b, half));
      if constexpr (L::has_min) store(s.add[b][half], source.add(first + b, half));
    }
  }
}

template <class F_>
struct ScratchSource {
  using F = F_;
  static constexpr bool unpacked = true, unpacking_costs = false;
  const Scratch& s;
  struct Block {
    const uint8_t* p;
    __attribute__((always_inline)) u8x64 operator()(int g) const { return load_u8(p + g * 64); }
  };
  Block block(int b) const { return {s.codes + b * F::block_bytes}; }
  f32x16 scale(int b, int half) const { return load(s.scale[b][half]); }
  f32x16 add(int b, int half) const { return load(s.add[b][half]); }
};

// One block as the first of two tiles has unpacked it, for the second: reading it back costs less
// than unpacking it twice.
struct OneBlock {
  alignas(64) uint8_t codes[kBlock * kPanel];
  alignas(64) float scale[2][kPanel], add[2][kPanel];
};
template <class Source>
struct FirstTile {
  using F = typename Source::F;
  static constexpr bool unpacked = Source::unpacked;
  const Source& source;
  OneBlock& once;
  struct Block {
    decltype(source.block(0)) packed;
    OneBlock& once;
    const uint8_t* p;
    template <int G>
    __attribute__((always_inline)) u8x64 operator()(std::integral_constant<int, G> g) const {
      const u8x64 codes = packed(g);
      store_u8(once.codes + G * 64, codes);
      return codes;
    }
  };
  Block block(int b) const {
    const auto packed = source.block(b);
    return {packed, once, packed.p};
  }
  f32x16 scale(int b, int half) const {
    const f32x16 value = source.scale(b, half);
    store(once.scale[half], value);
    return value;
  }
  f32x16 add(int b, int half) const {
    const f32x16 value = source.add(b, half);
    store(once.add[half], value);
    return value;
  }
};
template <class F_>
struct SecondTile {
  using F = F_;
  static constexpr bool unpacked = false;
  const OneBlock& once;
  struct Block {
    const uint8_t* p;
    __attribute__((always_inline)) u8x64 operator()(int g) const { return load_u8(p + g * 64); }
  };
  Block block(int) const { return {once.codes}; }
  f32x16 scale(int, int half) const { return load(once.scale[half]); }
  f32x16 add(int, int half) const { return load(once.add[half]); }
};

// acc[t] += the products of one block and T tokens of a record; see matmul.h.
template <int T, int kWidth, class Source>
__attribute__((always_inline)) inline void multiply_block(const Source& source, int b,
                                                          const uint8_t* data, int first,
                                                          f32x16* acc, float* sums) {
  using F = typename Source::F;
  const Record<const uint8_t> record{data, kWidth};
  const int8_t* x = record.codes() + first * kBlock;
  const float *scale = record.scale() + first, *total = record.total() + first;
  const auto block = source.block(b);
  for_range<0, F::halves>([&](auto half) __attribute__((always_inline)) {
    constexpr int kSpan = kGroups / F::halves;
    const int32_t* x_sums = first + (F::halves == 1 ? record.sum()
                                     : half         ? record.high_sum()
                                                    : record.low_sum());
    i32x16 s[T];
    f32x16 word_sums[T];
    if constexpr (F::bits == 16) {
      dot_words<T>(block.p, x, word_sums);
    } else if constexpr (F::wide) {
      dot_wide<T>(block.p, x, s);
    } else if constexpr (kPairCodes && Source::unpacked) {
      dot_pairs<F::bits, F::offset, T, half * kSpan, (half + 1) * kSpan>(block.p, x, s);
    } else {
      dot_groups<F::bits, F::offset, T, half * kSpan, (half + 1) * kSpan>(block, x, x_sums, s);
    }
    const f32x16 w = source.scale(b, half);
    const f32x16 m = F::has_min ? source.add(b, half) : w;
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      f32x16 a = acc ? acc[t] : load(sums + t * kPanel);
      f32x16 sum;
      if constexpr (F::bits == 16) sum = word_sums[t];
      else sum = to_float(s[t]);
      a = fma(sum * set1(scale[t]), w, a);
      if constexpr (F::has_min)
        a = fma(F::halves == 1 ? set1(total[t]) : sum_as_float(x_sums[t]) * set1(scale[t]), m, a);
      if (acc) acc[t] = a;
      else store(sums + t * kPanel, a);
    }
  });
}

// sums (T, 16) += the products of `count` blocks and T tokens of a tile `kWidth` wide, from lane
// `first` on; with T2, (T + T2, 16) and as many of the next tile.
template <int T, int kWidth = T, int T2 = 0, class Source>
__attribute__((always_inline)) inline void accumulate(const Source& source, int count,
                                                      const uint8_t* tile, float* sums,
                                                      int first = 0,
                                                      const uint8_t* next_tile = nullptr) {
  constexpr bool kKeep = T <= kTokensKept;
  f32x16 acc[T];  // where there are registers enough to keep them
  for (int t = 0; t < T && kKeep; ++t) acc[t] = load(sums + t * kPanel);
  for (int b = 0; b < count; ++b, tile += ActTiles::kRecord * kWidth) {
    if constexpr (!Source::unpacked) source.fetch_ahead(b);
    // Or the compiler would keep them there all the same.
    if (!kKeep) asm volatile("" ::: "memory");
    if constexpr (T2 > 0 && Source::unpacking_costs) {
      OneBlock once;
      const FirstTile<Source> first_tile{source, once};
      multiply_block<T, kWidth>(first_tile, b, tile, first, nullptr, sums);
      asm volatile("" ::: "memory");
      multiply_block<T2, kWidth>(SecondTile<typename Source::F>{once}, b,
                                 next_tile + b * ActTiles::kRecord * kWidth, 0, nullptr,
                                 sums + T * kPanel);
      continue;
    }
    multiply_block<T, kWidth>(source, b, tile, first, kKeep ? acc : nullptr, sums);
    if constexpr (T2 > 0) {
      asm volatile("" ::: "memory");
      multiply_block<T2, kWidth>(source, b, next_tile + b * ActTiles::kRecord * kWidth, 0, nullptr,
                                 sums + T * kPanel);
    }
  }
  for (int t = 0; t < T && kKeep; ++t) store(sums + t * kPanel, acc[t]);
}

// All rows in one tile, or T2 of them in a second: where nothing is read twice, or from the first
// cache, unpacking to memory would not pay.
template <Type kType, int T, int kWidth = T, int T2 = 0>
void panel_few_tiles(const Task& task, const Task* next, const ActTiles& x) {
  float sums[(T + T2) * kPanel] = {};
  accumulate<T, kWidth, T2>(PanelSource<kType>(task.w, task.w.panel(task.panel), next), x.blocks,
                            x.tile(0), sums, 0, T2 ? x.tile(1) : nullptr);
  for (int t = 0; t < x.rows; ++t) task.out.put(t, load(sums + t * kPanel));
}

// What the types of one form share.
template <class F, int T, int kWidth>
[[gnu::noinline]] void unpacked_times(const Scratch& scratch, int count, const uint8_t* tile,
                                      float* sums, int first) {
  accumulate<T, kWidth>(ScratchSource<F>{scratch}, count, tile, sums, first);
}

// … of the first `rows` of T tokens: the last tile's other lanes are not worth their time.
template <class F, int T, int kWidth>
void unpacked_rows_times(const Scratch& scratch, int count, const uint8_t* tile, float* sums,
                         int first, int rows) {
  constexpr int kStep = std::max(1, kTile / 4);
  if constexpr (T > kStep) {
    if (rows <= T - kStep)
      return unpacked_rows_times<F, T - kStep, kWidth>(scratch, count, tile, sums, first, rows);
  }
  unpacked_times<F, T, kWidth>(scratch, count, tile, sums, first);
}

// Blocks of a panel that are unpacked next. They come from memory while the tiles before are
// multiplied: who asked for them only then would wait.
struct Coming {
  const uint8_t *codes = nullptr, *scales = nullptr;
  int code_bytes = 0, scale_bytes = 0;

  Coming() = default;
  Coming(const Packed& w, int panel, int first, int count) {
    const TypeSizes& s = sizes_of(w.type);
    codes = w.panel(panel) + static_cast<size_t>(first) * s.code_bytes;
    scales = w.panel(panel) + w.panel_codes_bytes() +
             static_cast<size_t>(first / s.unit_blocks) * s.scale_bytes;
    code_bytes = count * s.code_bytes, scale_bytes = count / s.unit_blocks * s.scale_bytes;
  }
  // Asks for one part of as many. Inlined, or GCC takes it for a function without effects.
  __attribute__((always_inline)) void fetch(int part, int parts) const {
    ask(codes, code_bytes, part, parts), ask(scales, scale_bytes, part, parts);
  }

 private:
  __attribute__((always_inline)) static void ask(const uint8_t* p, int bytes, int part, int parts) {
    const int step = ceil_div(ceil_div(bytes, parts), 64) * 64;
    for (int i = part * step; i < std::min(bytes, (part + 1) * step); i += 64)
      __builtin_prefetch(p + i, 0, 2);  // the second cache: the first one has the tiles
  }
};

// partial (rows, 16) += blocks [first, first + count) times `rows` rows from a row on, of tiles
// that are kWidth tokens wide; T of them at a time.
template <Type kType, int T, int kWidth = T>
void panel_many_tiles(const Packed& w, const uint8_t* panel, const ActTiles& x, int from, int rows,
                      int first, int count, float* partial, const Coming& coming) {
  using F = UnpackedForm<Layout<kType>>;
  const PanelSource<kType> source(w, panel);
  Scratch& scratch = thread_scratch().scratch;
  for (const int end = first + count; first < end; first += F::chunk) {
    const int blocks = std::min(F::chunk, end - first);
    unpack_chunk(source, first, blocks, scratch);
    for (int i = 0; i < rows; i += T) {
      if (first + blocks == end) coming.fetch(i / T, ceil_div(rows, T));
      unpacked_rows_times<F, T, kWidth>(scratch, blocks, x.record(from + i, first),
                                        partial + i * kPanel, (from + i) % kWidth,
                                        std::min(T, rows - i));
    }
  }
}

// For the matrix unit, if there is one.
template <Type kType, class Strip>
void unpack_strip(const PanelSource<kType>& source, int first, int count, Strip& s) {
  using L = Layout<kType>;
  for (int b = 0; b < count; ++b) {
    const auto block = source.block(first + b);
    for_range<0, kGroups>([&](auto g) __attribute__((always_inline)) {
      store_i8(s.codes[b][g], minus<L::offset>(block(g)));
    });
    store(s.scale[b], source.scale(first + b, 0));
    if constexpr (L::has_min) store(s.add[b], source.add(first + b, 0));
  }
}

}  // namespace dure::DURE_ISA
