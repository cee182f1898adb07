// The table of one instruction set.
#include "ops/matmul.h"

namespace dure {
namespace DURE_ISA {
void quantize_rows(const float*, int64_t, int64_t, int8_t*, float*);
void make_tiles(const float*, int64_t, int64_t, int64_t, ActTiles&, int);
void matmul_int8(const ActTiles&, const Product*, int, int);
void matmul_float(const float*, int64_t, int64_t, const Product&, int);
void experts(const ActTiles*, const float*, int64_t, const int32_t*, const float*, int,
             const ExpertSet&, const ExpertsPart&, int);
void rms_norm(const float*, int64_t, int64_t, const float*, float, float*, int);
void norm_tiles(const float*, int64_t, int64_t, const float*, float, ActTiles&, int);
void rope(float*, int64_t, int, int, const float*, const float*, int, bool, int);
void silu_mul(const float*, const float*, int64_t, float*, int);
}  // namespace DURE_ISA

// These work on floats only: an instruction set that differs from another in its integers shares
// them with it.
#ifndef DURE_FLOAT_ISA
#define DURE_FLOAT_ISA DURE_ISA
#endif
namespace DURE_FLOAT_ISA {
void paged_attention(const float*, int, const CacheView&, const RowsView&, const Scoring&, float*,
                     int);
bool chunk_peaks(const float*, int64_t, float*);
void exp_below(const float*, int64_t, float, float, float*);
double exp_sum(const float*, int64_t, float, float);
QuantizeBlocks quantize_blocks;
const StateOps& state_ops();
}  // namespace DURE_FLOAT_ISA

#define DURE_CONCAT_(a, b) a##b
#define DURE_CONCAT(a, b) DURE_CONCAT_(a, b)
#define DURE_TEXT_(a) #a
#define DURE_TEXT(a) DURE_TEXT_(a)

const Ops& DURE_CONCAT(DURE_ISA, _ops)() {
  namespace isa = DURE_ISA;
  namespace floats = DURE_FLOAT_ISA;
  static const Ops table{
      DURE_TEXT(DURE_ISA), isa::tile_width,   isa::quantize_rows, isa::make_tiles,
      isa::matmul_int8,    isa::matmul_float, isa::experts,       isa::rms_norm,
      isa::norm_tiles,     isa::rope,         isa::silu_mul,      floats::paged_attention,
      floats::chunk_peaks, floats::exp_below, floats::exp_sum,    floats::quantize_blocks,
      &floats::state_ops()};
  return table;
}

}  // namespace dure
