// Rows of a packed table as floats: the embedding of a chunk of tokens.
#include <omp.h>

#include "pack/layout.h"

namespace dure {

void unpack_rows(const Packed& table, const int32_t* rows, int64_t n, float* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n > 4)
  for (int64_t i = 0; i < n; ++i) unpack_row(table, rows[i], out + i * table.cols);
}

}  // namespace dure
