// Packed matrices as Python holds them, and the memory they lie in.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "ops/ops.h"

namespace dure {

// Page-aligned memory for packed weights: zero until written, and committed only when written.
struct Buffer {
  static constexpr size_t kLargePage = size_t{2} << 20;
  // 4 KB on most machines, 16 on some of ARM: what is unmapped begins and ends at one.
  static size_t page_bytes() {
    static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
  }
  uint8_t* data = nullptr;
  size_t size;
  bool large;
  // large_pages: not for what is given back piece by piece. A large page may reach into the next
  // mapping, and the part that is unmapped then counts as used until the kernel splits it, which
  // it does not do while a neighbour is being read from disk.
  explicit Buffer(size_t bytes, bool large_pages = true)
      : size(round_up(std::max<size_t>(bytes, 1), page_bytes())), large(large_pages) {
    // What has large pages begins at one. What is mapped for that before and behind goes at once.
    const size_t slack = large && size >= kLargePage ? kLargePage : 0;
    void* p = mmap(nullptr, size + slack, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    if (slack) {
      const auto from = reinterpret_cast<size_t>(p), start = round_up(from, kLargePage);
      if (start > from) munmap(p, start - from);
      p = reinterpret_cast<void*>(start);
      if (from + slack > start) munmap(reinterpret_cast<void*>(start + size), from + slack - start);
    }
    // Large pages spare a decode step most of its 250,000 address look-ups a gigabyte; a wish, not
    // a need.
#ifdef MADV_HUGEPAGE  // Linux alone lets us choose
    madvise(p, size, large ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
    data = static_cast<uint8_t*>(p);
  }
  // Gives the memory another size, and what both sizes have stays committed where the system can do
  // that. What it holds is lost.
  void resize(size_t bytes) {
#ifdef MREMAP_MAYMOVE
    const size_t wanted = round_up(std::max<size_t>(bytes, 1), page_bytes());
    void* p = mremap(data, size, wanted, MREMAP_MAYMOVE);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data = static_cast<uint8_t*>(p);
    size = wanted;
#else
    Buffer other(bytes, large);
    std::swap(data, other.data);
    std::swap(size, other.size);
#endif
  }
  ~Buffer() { munmap(data, size); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

inline Packed describe(const std::string& dtype, int64_t rows, int64_t cols) {
  Packed p;
  p.type = type_from_name(dtype);
  p.rows = rows;
  p.cols = cols;
  require(rows > 0 && cols > 0 && rows < (int64_t{1} << 31) && cols < (int64_t{1} << 31),
          "a matrix needs between 1 and 2^31 rows and columns");
  require(cols % sizes_of(p.type).source_columns == 0,
          dtype + " needs columns in multiples of " +
              std::to_string(sizes_of(p.type).source_columns) + ", not " + std::to_string(cols));
  return p;
}

inline void check_source(const Packed& p, int64_t first_row, const In<uint8_t, 2>& raw) {
  require(first_row >= 0 && first_row <= p.rows && first_row % kPanel == 0,
          "first_row must be a multiple of 16 inside the matrix");
  require(raw.shape(1) == source_row_bytes(p.type, p.cols),
          "a row of " + std::to_string(p.cols) + " " + sizes_of(p.type).name + " takes " +
              std::to_string(source_row_bytes(p.type, p.cols)) + " bytes, not " +
              std::to_string(raw.shape(1)));
  require(raw.shape(0) <= static_cast<size_t>(p.rows - first_row),
          "rows past the end of the matrix");
  const int64_t end = first_row + static_cast<int64_t>(raw.shape(0));
  require(end == p.rows || raw.shape(0) % kPanel == 0,
          "a part that is not the last must have a multiple of 16 rows");
}

inline Result<double> copied(const std::vector<double>& values, size_t rows, size_t cols) {
  auto out = fresh<double>({rows, cols});
  std::copy_n(values.begin(), rows * cols, out.data());
  return out;
}

// Adds the squares of `rows` rows of x, which are given by `row_of`, column by column.
template <class RowOf>
void add_squares(int64_t rows, int64_t cols, int threads, double* sums, RowOf&& row_of) {
  constexpr int64_t kColumns = 64;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < cols; first += kColumns)
    for (int64_t row = 0; row < rows; ++row) {
      const float* x = row_of(row);
      for (int64_t c = first; c < std::min(first + kColumns, cols); ++c)
        sums[c] += static_cast<double>(x[c]) * x[c];
    }
}

struct Matrix {
  Packed view;
  Buffer buffer;
  // Of what it was multiplied with: the sums of squares by column, then the rows; empty: nobody
  // asks
  std::vector<double> squares;

  Matrix(const std::string& dtype, int64_t rows, int64_t cols)
      : view(describe(dtype, rows, cols)), buffer(view.bytes()) {
    view.data = buffer.data;
  }
  double* sums() const { return squares.empty() ? nullptr : const_cast<double*>(squares.data()); }
  // From here on, the squares of what it is multiplied with are added up.
  void watch() { squares.assign(static_cast<size_t>(view.cols) + 1, 0); }
  nb::tuple seen() const {
    require(!squares.empty(), "nobody watches this matrix");
    return nb::make_tuple(copied(squares, 1, squares.size() - 1),
                          static_cast<int64_t>(squares.back()));
  }
  void fill(int64_t first_row, const In<uint8_t, 2>& raw, int threads) {
    check_threads(threads);
    check_source(view, first_row, raw);
    const GilReleased release;
    pack_rows(view, first_row, static_cast<int64_t>(raw.shape(0)), raw.data(), threads);
  }
  Result<float> row_values(const In<int32_t, 1>& rows, int threads) const {
    check_threads(threads);
    for (size_t i = 0; i < rows.shape(0); ++i)
      require(
          rows.data()[i] >= 0 && rows.data()[i] < view.rows,
          "row " + std::to_string(rows.data()[i]) + " is not one of " + std::to_string(view.rows));
    auto out = fresh<float>({rows.shape(0), static_cast<size_t>(view.cols)});
    const GilReleased release;
    unpack_rows(view, rows.data(), static_cast<int64_t>(rows.shape(0)), out.data(), threads);
    return out;
  }
};

}  // namespace dure
