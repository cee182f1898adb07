// Every head's rows times its own matrix: what latent attention absorbs into queries and makes of what they gathered.
// The arithmetic is that of a matrix product of the head alone; a head is one thread's.
#include "heads.h"

#include <algorithm>

namespace dure {

void head_matmul(const HeadProduct& product, int64_t n, bool exact, int threads) {
  const Packed& w = product.w;
  const int64_t heads = product.heads, cols = w.cols, outputs = product.outputs;
  Recycled<float> inputs(static_cast<size_t>(n * heads * cols)), results(static_cast<size_t>(n * heads * outputs));
  if (n * heads * cols * outputs < (1 << 19)) threads = 1;  // done sooner than a second thread is woken
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t head = 0; head < heads; ++head) {
    float *x = inputs.data() + head * n * cols, *y = results.data() + head * n * outputs;
    for (int64_t i = 0; i < n; ++i) std::copy_n(product.x + (i * heads + head) * product.x_stride, cols, x + i * cols);
    Product own{w, nullptr, nullptr, y};
    own.w.data = w.panel(static_cast<int>((head * (w.rows / heads) + product.first) / kPanel));
    own.w.rows = outputs;
    if (exact || is_float(w.type)) {
      ops().matmul_float(x, n, own, 1);
    } else {
      ActTiles tiles;
      ops().make_tiles(x, n, cols, tiles, 1);
      ops().matmul_int8(tiles, &own, 1, 1);
    }
    for (int64_t i = 0; i < n; ++i) std::copy_n(y + i * outputs, outputs, product.out + (i * heads + head) * product.out_stride);
  }
}

}  // namespace dure
