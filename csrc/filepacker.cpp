#include "filepacker.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>

namespace dure {

namespace {

// Read at a time by a thread: small beside its L2 cache, large beside the cost of a system call.
constexpr size_t kReadBytes = size_t{256} << 10;
// Handed to a thread at a time: a large page of the target, so that two threads seldom ask for the same one.
constexpr size_t kPieceBytes = size_t{2} << 20;

// 0 once `size` bytes from `offset` lie in `out`, else an errno or kEnded.
int read_all(int descriptor, uint8_t* out, size_t size, uint64_t offset) {
  while (size) {
    const ssize_t count = pread(descriptor, out, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    if (count == 0) return FilePacker::kEnded;
    out += count, offset += static_cast<uint64_t>(count), size -= static_cast<size_t>(count);
  }
  return 0;
}

// Rows of about `bytes`, in whole panels.
int64_t rows_of(size_t bytes, size_t row_bytes) {
  return std::max<int64_t>(1, static_cast<int64_t>(bytes / (row_bytes * kPanel))) * kPanel;
}

}  // namespace

void FilePacker::add(const Packed& target, uint64_t offset) {
  const size_t row_bytes = source_row_bytes(target.type, target.cols);
  const int64_t step = rows_of(kPieceBytes, row_bytes);
  for (int64_t first = 0; first < target.rows; first += step)
    pieces_.push_back({target, first, std::min(step, target.rows - first), offset + static_cast<uint64_t>(first) * row_bytes});
  sorted_ = false;
}

int FilePacker::run(int descriptor, int threads, double seconds) {
  if (!sorted_)  // disks like to be read in order
    std::stable_sort(pieces_.begin() + static_cast<std::ptrdiff_t>(next_), pieces_.end(),
                     [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
  sorted_ = true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::vector<std::vector<uint8_t>> buffers(static_cast<size_t>(threads));
  size_t largest = kReadBytes;
  for (const Piece& p : pieces_) largest = std::max(largest, kPanel * source_row_bytes(p.target.type, p.target.cols));
  for (auto& buffer : buffers) buffer.resize(largest);
  std::atomic<size_t> next{next_};
  std::atomic<int> failure{0};
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t>& buffer = buffers[static_cast<size_t>(omp_get_thread_num())];
    do {  // one piece at least, so that every call gets on
      const size_t i = next++;
      if (i >= pieces_.size()) break;
      if (const int error = pack(pieces_[i], descriptor, buffer)) failure = error;
    } while (!failure && std::chrono::steady_clock::now() < end);
  }
  next_ = std::min(next.load(), pieces_.size());
  return failure;
}

uint64_t FilePacker::done_bytes() const {
  uint64_t sum = 0;
  for (size_t i = 0; i < next_; ++i) sum += pieces_[i].bytes();
  return sum;
}

int FilePacker::pack(const Piece& piece, int descriptor, std::vector<uint8_t>& buffer) {
  const size_t row_bytes = source_row_bytes(piece.target.type, piece.target.cols);
  const int64_t step = rows_of(kReadBytes, row_bytes);
  for (int64_t done = 0; done < piece.rows; done += step) {
    const int64_t rows = std::min(step, piece.rows - done);
    const size_t bytes = static_cast<size_t>(rows) * row_bytes;
    if (const int error = read_all(descriptor, buffer.data(), bytes, piece.offset + static_cast<uint64_t>(done) * row_bytes))
      return error;
    pack_panels(piece.target, piece.first_row + done, rows, buffer.data());
  }
  return 0;
}

}  // namespace dure
