// The limits of a machine: bytes a second read from memory, and operations a second out of registers.
// limits.py compiles this once for each instruction set. Each function runs on the calling thread.

#include <cstddef>
#include <cstdint>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" {

// Reads `bytes`, a multiple of 256, in order; the sum keeps the compiler from leaving the reads out.
int64_t read_memory(const void *data, size_t bytes) {
    const auto *at = static_cast<const __m256i *>(data);
    __m256i sums[8] = {};
    for (size_t i = 0; i < bytes / sizeof(__m256i); i += 8) {
        for (int j = 0; j < 8; j++) sums[j] = _mm256_add_epi64(sums[j], _mm256_load_si256(at + i + j));
    }
    for (int j = 1; j < 8; j++) sums[0] = _mm256_add_epi64(sums[0], sums[j]);
    alignas(32) int64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), sums[0]);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// An empty statement that may have changed the register, so that a loop of equal steps stays a loop.
#define KEEP(x) __asm__ volatile("" : "+v"(x))

#ifdef __AVX512VNNI__
using Bytes = __m512i;
using Floats = __m512;
static Bytes dot(Bytes sum, Bytes a, Bytes b) { return _mm512_dpbusd_epi32(sum, a, b); }
static Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
#else
using Bytes = __m256i;
using Floats = __m256;
#ifdef __AVXVNNI__
static Bytes dot(Bytes sum, Bytes a, Bytes b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#else
// Without VNNI, products are summed in int16; widening them once a block is left out of the limit.
static Bytes dot(Bytes sum, Bytes a, Bytes b) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b)); }
#endif
static Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
#endif

#ifdef __AMX_INT8__
// Operations of products of 16 x 64 by 64 x 16 bytes, four tiles of sums at a time. Zero where Linux allows none.
int64_t int8_dots(int64_t rounds) {
    constexpr int request_permission = 0x1023, tile_data = 18;
    if (syscall(SYS_arch_prctl, request_permission, tile_data)) return 0;
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; tile++) {
        config[16 + 2 * tile] = 64;  // bytes a row
        config[48 + tile] = 16;      // rows
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    rounds /= 128;  // each is that much longer than one of vectors
    for (int64_t i = 0; i < rounds; i++) {
        __asm__ volatile(
            "tdpbssd %tmm6, %tmm4, %tmm0\n\ttdpbssd %tmm7, %tmm4, %tmm1\n\t"
            "tdpbssd %tmm6, %tmm5, %tmm2\n\ttdpbssd %tmm7, %tmm5, %tmm3");
    }
    __asm__ volatile("tilerelease");
    return rounds * 4 * 16 * 16 * 64 * 2;
}
#else
// Operations (a product and a sum are two) of `rounds` rounds of ten independent int8 dot products.
int64_t int8_dots(int64_t rounds) {
    Bytes a = {}, b = {}, sums[10] = {};
    KEEP(b);  // not known to be zero
    for (int64_t i = 0; i < rounds; i++) {
        for (auto &sum : sums) {
            KEEP(a);  // or an AVX2 product, which does not depend on its sum, is computed once for all ten
            sum = dot(sum, a, b);
            KEEP(sum);
        }
    }
    return rounds * 10 * static_cast<int64_t>(sizeof(Bytes)) * 2;
}
#endif

// The same of ten independent float32 fused products and sums.
int64_t float_fmas(int64_t rounds) {
    Floats a = {}, b = {}, sums[10] = {};
    KEEP(b);  // not known to be zero
    for (int64_t i = 0; i < rounds; i++) {
        for (auto &sum : sums) {
            KEEP(a);  // or an AVX2 product, which does not depend on its sum, is computed once for all ten
            sum = multiply_add(sum, a, b);
            KEEP(sum);
        }
    }
    return rounds * 10 * static_cast<int64_t>(sizeof(Floats) / sizeof(float)) * 2;
}

}
