// Every head's rows times its own matrix: what latent attention absorbs into queries and makes of
// what they gathered. The arithmetic is that of a matrix product of the head alone; a head is one
// thread's.
#include "ops/heads.h"

namespace dure {

void head_matmul(const HeadProduct& product, int64_t n, bool exact, int threads) {
  if (n == 0) return;
  const Packed& w = product.w;
  const int64_t heads = product.heads, x_stride = heads * product.x_stride;
  // Done sooner than a second thread is woken.
  if (n * heads * w.cols * product.outputs < (1 << 19)) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t head = 0; head < heads; ++head) {
    const float* x = product.x + head * product.x_stride;
    Product own{w, nullptr, nullptr, product.out + head * product.out_stride,
                heads * product.out_stride};
    own.w.data = w.panel(static_cast<int>((head * (w.rows / heads) + product.first) / kPanel));
    own.w.rows = product.outputs;
    if (exact || is_float(w.type)) {
      ops().matmul_float(x, n, x_stride, own, 1);
    } else {
      ActTiles tiles;
      ops().make_tiles(x, n, w.cols, x_stride, tiles, 1);
      ops().matmul_int8(tiles, &own, 1, 1);
    }
  }
}

}  // namespace dure
