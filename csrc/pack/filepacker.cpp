#include "pack/filepacker.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "pack/finite.h"

namespace dure {

namespace {

// Read at a time by a thread: small beside its L2 cache, large beside the cost of a system call.
constexpr size_t kReadBytes = size_t{256} << 10;
// Handed to a thread at a time: a large page of the target, so that two threads seldom ask for the
// same one.
constexpr size_t kPieceBytes = size_t{2} << 20;

// Rows of about `bytes`, in whole panels.
int64_t rows_of(size_t bytes, size_t row_bytes) {
  return std::max<int64_t>(1, static_cast<int64_t>(bytes / (row_bytes * kPanel))) * kPanel;
}

}  // namespace

void FilePacker::add(const Packed& target, uint64_t offset, std::shared_ptr<const void> owner) {
  if (owner && (owners_.empty() || owners_.back() != owner)) owners_.push_back(std::move(owner));
  const size_t row_bytes = source_row_bytes(target.type, target.cols);
  const int64_t step = rows_of(kPieceBytes, row_bytes);
  for (int64_t first = 0; first < target.rows; first += step)
    pieces_.push_back({target, first, std::min(step, target.rows - first),
                       offset + static_cast<uint64_t>(first) * row_bytes});
}

int FilePacker::run(const DirectFile& file, bool direct, int threads, double seconds,
                    const Report& report) {
  using Clock = std::chrono::steady_clock;
  const auto interval =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  // Disks like to be read in order.
  std::sort(pieces_.begin(), pieces_.end(),
            [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
  size_t largest = kReadBytes;
  for (const Piece& p : pieces_)
    largest = std::max(largest, kPanel * source_row_bytes(p.target.type, p.target.cols));
  std::vector<BounceBuffer> buffers(static_cast<size_t>(threads));
  for (auto& buffer : buffers) buffer.take(largest);
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<int> failure{0};
#pragma omp parallel num_threads(threads)
  {
    const auto thread = static_cast<size_t>(omp_get_thread_num());
    auto due = Clock::now() + interval;
    for (size_t i; !failure && (i = next++) < pieces_.size();) {
      if (const int error = pack(pieces_[i], file, direct, buffers[thread])) {
        if (error == kNotFinite && failure.exchange(error) != kNotFinite)
          not_finite_ = pieces_[i].offset;
        failure = error;
      }
      done += pieces_[i].bytes();
      if (thread == 0 && !failure && Clock::now() >= due) {
        if (!report(done)) failure = kStopped;
        due = Clock::now() + interval;
      }
    }
  }
  if (!failure && !report(done)) failure = kStopped;
  return failure;
}

int FilePacker::pack(const Piece& piece, const DirectFile& file, bool direct,
                     BounceBuffer& buffer) {
  const size_t row_bytes = source_row_bytes(piece.target.type, piece.target.cols);
  const int64_t step = rows_of(kReadBytes, row_bytes);
  for (int64_t done = 0; done < piece.rows; done += step) {
    const int64_t rows = std::min(step, piece.rows - done);
    const size_t bytes = static_cast<size_t>(rows) * row_bytes;
    const uint64_t offset = piece.offset + static_cast<uint64_t>(done) * row_bytes;
    uint8_t* at = buffer.take(bytes);
    const int error = direct ? file.fetch(offset, bytes, &at) : file.read(offset, bytes, at);
    if (error) return error;
    if (!all_finite(piece.target.type, at, bytes)) return kNotFinite;
    pack_panels(piece.target, piece.first_row + done, rows, at);
  }
  return 0;
}

}  // namespace dure
