// Floats -> the blocks of a model file.
#pragma once

#include "common.h"

namespace dure {

// `count` weights, a whole number of blocks, to blocks at `out`. False if a weight is not finite,
// or beyond what a block's float16 scale can hold; `out` must not be used then. The same bits from
// every instruction set.
using QuantizeBlocks = bool(Type type, const float* x, int64_t count, uint8_t* out, int threads);

namespace portable {
QuantizeBlocks quantize_blocks;
}
#ifdef DURE_X86
namespace avx2 {
QuantizeBlocks quantize_blocks;
}
namespace avx512 {
QuantizeBlocks quantize_blocks;
}
#endif

QuantizeBlocks quantize_blocks;  // with the instruction set in use

}  // namespace dure
