// Intel's matrix unit (AMX: Sapphire Rapids and later) for tiles of 16 tokens. It gives the same
// integers as the int8 dot of AVX-512, 128 times as many an instruction; the floats that follow are
// the same operations in the same order. Only for formats with one scale a block: two would keep it
// busy with half a block at a time, and gain nothing (docs/log.md).
#pragma once

#include "common.h"

namespace dure {

struct Amx {
  static constexpr bool exists = true;
  static constexpr int kTokens = 16;  // of a tile
  // Blocks unpacked at a time: of four panels and a tile of tokens, 53 KB, near the first cache.
  static constexpr int kChunk = 16;

  // A stretch of a panel, unpacked: codes with their offset taken off, and the scales as floats.
  struct Strip {
    alignas(64) int8_t codes[kChunk][kGroups][64];
    alignas(64) float scale[kChunk][kPanel];
    alignas(64) float add[kChunk][kPanel];
  };

  // Whether processor and system have it; asks the system for leave to use it, once a process.
  static bool available();
  // Says once, when the instruction set is picked, whether it is used.
  static void use(bool wanted) { in_use_ = wanted; }
  static bool in_use() { return in_use_; }

  // Sets this thread's tile registers up, and frees them; `accumulate` may be called in between.
  static void configure();
  static void release();

  // sums (16 tokens, 16) = start + the products of `count` blocks of a tile of tokens (records as
  // ActTiles has them) and a strip. start is none for the first stretch; has_min says whether `add`
  // counts.
  static void accumulate(const Strip& strip, int count, bool has_min, const uint8_t* records,
                         const float* start, float* sums);

 private:
  static bool in_use_;
};

}  // namespace dure
