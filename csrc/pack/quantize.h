// Floats -> the blocks of a model file.
#pragma once

#include "common.h"

namespace dure {

// `count` weights, a whole number of blocks, to blocks at `out`. importance: what the squared error
// of a weight counts, by its column among `cols`; null for all the same. False if a weight is not
// finite, or beyond what a block's scale can hold; `out` must not be used then. The same bits from
// every instruction set: Ops has the function of the one in use.
using QuantizeBlocks = bool(Type type, const float* x, int64_t count, const float* importance,
                            int64_t cols, uint8_t* out, int threads);

}  // namespace dure
