// Floats -> the blocks of a model file.
#pragma once

#include "common.h"

namespace dure {

// `count` weights, a whole number of blocks, to blocks at `out`. False if a weight is not finite,
// or beyond what a block's float16 scale can hold; `out` must not be used then. The same bits from
// every instruction set: Ops has the function of the one in use.
using QuantizeBlocks = bool(Type type, const float* x, int64_t count, uint8_t* out, int threads);

}  // namespace dure
