#include "isa/amx.h"

#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "ops/ops.h"

namespace dure {

namespace {

constexpr int kTokens = Amx::kTokens;

// Register 0 holds sums, 1 activations, 2 weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
  void shape(int tile, int height, int bytes) {
    rows[tile] = static_cast<uint8_t>(height);
    column_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// The compiler's own macros do not tell it which memory they touch (GCC 12 drops the stores before
// them): ours do.
template <int Tile, int Bytes>
__attribute__((always_inline)) inline void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(p), "r"(stride),
               "m"(*static_cast<const char (*)[Bytes]>(p)));
}
template <int Tile, int Bytes>
__attribute__((always_inline)) inline void store_tile(void* p) {
  asm volatile("tilestored %%tmm%c1, (%2,%3,1)"
               : "=m"(*static_cast<char (*)[Bytes]>(p))
               : "i"(Tile), "r"(p), "r"(int64_t{64}));
}
template <int Sum, int Left, int Right>
__attribute__((always_inline)) inline void multiply() {
  asm volatile("tilezero %%tmm%c0\n\ttdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left),
               "i"(Right));
}

// The float operations of one block, in panel.h's order.
template <bool kMin>
__attribute__((always_inline)) inline void add_up(const int32_t* isum,
                                                  const Record<const uint8_t>& record,
                                                  const float* scale, const float* add,
                                                  __m512* acc) {
  const __m512 w = _mm512_load_ps(scale);
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(isum + t * kPanel));
    acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(sum, _mm512_set1_ps(record.scale()[t])), w, acc[t]);
  }
  if constexpr (kMin) {
    const __m512 m = _mm512_load_ps(add);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
      acc[t] = _mm512_fmadd_ps(_mm512_set1_ps(record.total()[t]), m, acc[t]);
  }
}

// Blocks that the unit is ahead of the float operations: what it stores can be loaded only once it
// has reached the cache.
constexpr int kAhead = 3;

template <bool kMin>
void run(const Amx::Strip& strip, int count, const uint8_t* records, const float* start,
         float* sums) {
  constexpr size_t kBytes = static_cast<size_t>(ActTiles::kRecord) * kTokens;
  alignas(64) int32_t isum[kAhead + 1][kTokens * kPanel];
  __m512 acc[kTokens];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t)
    acc[t] = start ? _mm512_load_ps(start + t * kPanel) : _mm512_setzero_ps();
  for (int b = 0; b < count + kAhead; ++b) {
    if (b < count) {
      load_tile<1, kTokens * kBlock>(records + b * kBytes, kBlock);
      load_tile<2, kGroups * 64>(strip.codes[b], 64);
      multiply<0, 1, 2>();
      store_tile<0, kTokens * kPanel * 4>(isum[b % (kAhead + 1)]);
    }
    const int behind = b - kAhead;
    if (behind >= 0)
      add_up<kMin>(isum[behind % (kAhead + 1)], {records + behind * kBytes, kTokens},
                   strip.scale[behind], strip.add[behind], acc);
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) _mm512_store_ps(sums + t * kPanel, acc[t]);
}

}  // namespace

bool Amx::in_use_ = false;

bool Amx::available() {
#ifdef __linux__
  static const bool answer = [] {
    unsigned a, b, c, d;
    // AMX-TILE, AMX-INT8.
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return answer;
#else
  return false;
#endif
}

void Amx::configure() {
  TileConfig config;
  config.shape(0, kTokens, kPanel * 4);
  config.shape(1, kTokens, kBlock);
  config.shape(2, kGroups, kPanel * kGroup);
  asm volatile("ldtilecfg %0" ::"m"(config));
}

void Amx::release() { asm volatile("tilerelease"); }

void Amx::accumulate(const Strip& strip, int count, bool has_min, const uint8_t* records,
                     const float* start, float* sums) {
  has_min ? run<true>(strip, count, records, start, sums)
          : run<false>(strip, count, records, start, sums);
}

}  // namespace dure
