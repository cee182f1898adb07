#pragma once

#include "ops/ops.h"

namespace dure {

// One matrix a head, below each other in `w`: head h's are `outputs` rows from row h * (w.rows /
// heads) + first on, where a panel begins. x (n, heads, x_stride), of which a head's first w.cols
// columns count; out (n, heads, out_stride).
struct HeadProduct {
  Packed w;
  int64_t heads, first, outputs;
  const float* x;
  int64_t x_stride;
  float* out;
  int64_t out_stride;
};

void head_matmul(const HeadProduct& product, int64_t n, bool exact, int threads);

}  // namespace dure
