#include "amx.h"

#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "ops.h"

namespace dure::amx {

namespace {

// Registers: 0 and 1 hold sums, 2 activations and 3 weights of 32 columns, 4 and 5 those of 16 columns.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
  void shape(int tile, int height, int bytes) {
    rows[tile] = static_cast<uint8_t>(height);
    column_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// The compiler's own macros do not tell it which memory they touch (GCC 12 drops the stores before them): ours do.
template <int Tile, int Bytes>
__attribute__((always_inline)) inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
               :: "i"(Tile), "r"(p), "r"(stride), "m"(*static_cast<const char(*)[Bytes]>(p)));
}
template <int Tile, int Bytes>
__attribute__((always_inline)) inline void store_tile(void* p) {
  asm volatile("tilestored %%tmm%c1, (%2,%3,1)" : "=m"(*static_cast<char(*)[Bytes]>(p)) : "i"(Tile), "r"(p), "r"(int64_t{64}));
}
template <int Sum, int Left, int Right>
__attribute__((always_inline)) inline void multiply() {
  asm volatile("tilezero %%tmm%c0\n\ttdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" :: "i"(Sum), "i"(Left), "i"(Right));
}

// The float operations of one block (or half of one): panel.h's order.
template <int T, bool kMin>
__attribute__((always_inline)) inline void add_up(const int32_t* isum, const float* act_scale, const float* act_total,
                                                  const float* scale, const float* add, __m512* acc) {
  const __m512 w = _mm512_load_ps(scale);
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(isum + t * kPanel)), _mm512_set1_ps(act_scale[t]));
    acc[t] = _mm512_fmadd_ps(scaled, w, acc[t]);
  }
  if constexpr (kMin) {
    const __m512 m = _mm512_load_ps(add);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] = _mm512_fmadd_ps(_mm512_set1_ps(act_total[t]), m, acc[t]);
  }
}

// Blocks that the unit is ahead of the float operations: what it stores can be loaded only once it has reached the cache.
constexpr int kDepth = 3;

template <int T, int kHalves, bool kMin>
void run(const Strip& strip, int count, const uint8_t* records, const float* start, float* sums) {
  constexpr size_t kBytes = static_cast<size_t>(ActTiles::kRecord) * T;
  alignas(64) int32_t isum[kDepth + 1][kHalves][T * kPanel];
  __m512 acc[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) acc[t] = start ? _mm512_load_ps(start + t * kPanel) : _mm512_setzero_ps();
  auto multiply_block = [&](int b) __attribute__((always_inline)) {
    const uint8_t* codes = records + b * kBytes;
    if constexpr (kHalves == 1) {
      load_tile<2, T * kBlock>(codes, kBlock);
      load_tile<3, kGroups * 64>(strip.codes[b], 64);
      multiply<0, 2, 3>();
      store_tile<0, T * 64>(isum[b % (kDepth + 1)][0]);
    } else {
      load_tile<4, T * kBlock - 16>(codes, kBlock);
      load_tile<5, kGroups / 2 * 64>(strip.codes[b], 64);
      multiply<0, 4, 5>();
      store_tile<0, T * 64>(isum[b % (kDepth + 1)][0]);
      load_tile<4, T * kBlock - 16>(codes + 16, kBlock);
      load_tile<5, kGroups / 2 * 64>(strip.codes[b][kGroups / 2], 64);
      multiply<1, 4, 5>();
      store_tile<1, T * 64>(isum[b % (kDepth + 1)][1]);
    }
  };
  auto add_up_block = [&](int b) __attribute__((always_inline)) {
    const Record<const uint8_t> record{records + b * kBytes, T};
    if constexpr (kHalves == 1) {
      add_up<T, kMin>(isum[b % (kDepth + 1)][0], record.scale(), record.total(), strip.scale[b][0], strip.add[b][0], acc);
    } else {
      for (int half = 0; half < 2; ++half) {
        const int32_t* sum = half ? record.high_sum() : record.low_sum();
        float total[T];
        if constexpr (kMin)
          for (int t = 0; t < T; ++t) total[t] = static_cast<float>(sum[t]) * record.scale()[t];
        add_up<T, kMin>(isum[b % (kDepth + 1)][half], record.scale(), total, strip.scale[b][half], strip.add[b][half], acc);
      }
    }
  };
  for (int b = 0; b < count + kDepth; ++b) {
    if (b < count) multiply_block(b);
    if (b >= kDepth) add_up_block(b - kDepth);
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) _mm512_store_ps(sums + t * kPanel, acc[t]);
}

}  // namespace

bool in_use = false;

bool available() {
#ifdef __linux__
  static const bool answer = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return false;  // AMX-TILE, AMX-INT8
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return answer;
#else
  return false;
#endif
}

void configure(int width) {
  TileConfig config;
  for (int tile = 0; tile < 2; ++tile) config.shape(tile, width, 64);
  config.shape(2, width, kBlock);
  config.shape(3, kGroups, 64);
  config.shape(4, width, kBlock / 2);
  config.shape(5, kGroups / 2, 64);
  asm volatile("ldtilecfg %0" ::"m"(config));
}

void release() { asm volatile("tilerelease"); }

void accumulate(const Strip& strip, int count, int halves, bool has_min, const uint8_t* records, int width,
                const float* start, float* sums) {
  auto with = [&](auto wide) {
    constexpr int T = wide();
    if (halves == 1) return has_min ? run<T, 1, true>(strip, count, records, start, sums) : run<T, 1, false>(strip, count, records, start, sums);
    return has_min ? run<T, 2, true>(strip, count, records, start, sums) : run<T, 2, false>(strip, count, records, start, sums);
  };
  if (width == 8) return with(std::integral_constant<int, 8>{});
  with(std::integral_constant<int, 16>{});
}

}  // namespace dure::amx
