// Intel's matrix unit (AMX: Sapphire Rapids and later) for tiles of 8 or 16 tokens. It gives the same integers as the int8
// dot of AVX-512, eight times as many an instruction; the floats that follow are the same operations in the same order.
#pragma once

#include "common.h"

namespace dure::amx {

constexpr int kChunk = 16;  // blocks unpacked at a time: of four panels and a tile of tokens, 55 KB, near the first cache

// A stretch of a panel, unpacked: codes with their offset taken off, and the scales as floats.
struct Strip {
  alignas(64) int8_t codes[kChunk][kGroups][64];
  alignas(64) float scale[kChunk][2][kPanel];
  alignas(64) float add[kChunk][2][kPanel];
};

// Whether processor and system have it; asks the system for leave to use it, once a process.
bool available();
extern bool in_use;  // set when the instruction set is picked, and not changed afterwards

// The tiles' shapes for `width` tokens, 8 or 16, in this thread's registers; between the two, `accumulate` may be called.
void configure(int width);
void release();

// sums (width, 16) = start + the products of `count` blocks of a tile of tokens (records as ActTiles has them) and a strip.
// start is none for the first stretch. halves: scales a block of 32 columns; has_min: whether `add` counts.
void accumulate(const Strip& strip, int count, int halves, bool has_min, const uint8_t* records, int width,
                const float* start, float* sums);

}  // namespace dure::amx
