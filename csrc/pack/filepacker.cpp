#include "pack/filepacker.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace dure {

namespace {

// Read at a time by a thread: small beside its L2 cache, large beside the cost of a system call.
constexpr size_t kReadBytes = size_t{256} << 10;
// Handed to a thread at a time: a large page of the target, so that two threads seldom ask for the
// same one.
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

// Whether all of `count` numbers are finite, which lie `stride` bytes apart: of `T` that has its
// exponent in the bits of kMask.
template <class T, T kMask>
bool finite(const uint8_t* at, size_t count, size_t stride) {
  bool all = true;
  for (size_t i = 0; i < count; ++i, at += stride) {
    T bits;
    std::memcpy(&bits, at, sizeof bits);
    all &= (bits & kMask) != kMask;
  }
  return all;
}

// Whether the weights of a float type, and the float16 scales of a GGUF type's blocks, are finite.
bool all_finite(Type type, const uint8_t* source, size_t bytes) {
  if (type == Type::F32) return finite<uint32_t, 0x7F800000>(source, bytes / 4, 4);
  if (type == Type::BF16) return finite<uint16_t, 0x7F80>(source, bytes / 2, 2);
  if (type == Type::F16) return finite<uint16_t, 0x7C00>(source, bytes / 2, 2);
  const size_t block = static_cast<size_t>(sizes_of(type).source_bytes), count = bytes / block;
  const auto halves = [&](size_t first, size_t second) {
    return finite<uint16_t, 0x7C00>(source + first, count, block) &&
           finite<uint16_t, 0x7C00>(source + second, count, block);
  };
  switch (type) {
    case Type::Q4_0:
    case Type::Q5_0:
    case Type::Q8_0:
    case Type::IQ4_NL:
    case Type::IQ4_XS:
      return halves(0, 0);
    case Type::Q4_1:
    case Type::Q5_1:
    case Type::Q4_K:
    case Type::Q5_K:
      return halves(0, 2);
    case Type::Q2_K:
      return halves(80, 82);
    case Type::Q3_K:
      return halves(108, 108);
    case Type::Q6_K:
      return halves(208, 208);
    default:
      return true;  // no GGUF type, or one without floats
  }
}

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

int FilePacker::run(int descriptor, int threads, double seconds, const Report& report) {
  using Clock = std::chrono::steady_clock;
  const auto interval =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  // Disks like to be read in order.
  std::sort(pieces_.begin(), pieces_.end(),
            [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
  size_t largest = kReadBytes;
  for (const Piece& p : pieces_)
    largest = std::max(largest, kPanel * source_row_bytes(p.target.type, p.target.cols));
  std::vector<std::vector<uint8_t>> buffers(static_cast<size_t>(threads));
  for (auto& buffer : buffers) buffer.resize(largest);
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<int> failure{0};
#pragma omp parallel num_threads(threads)
  {
    const auto thread = static_cast<size_t>(omp_get_thread_num());
    auto due = Clock::now() + interval;
    for (size_t i; !failure && (i = next++) < pieces_.size();) {
      if (const int error = pack(pieces_[i], descriptor, buffers[thread])) {
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

int FilePacker::pack(const Piece& piece, int descriptor, std::vector<uint8_t>& buffer) {
  const size_t row_bytes = source_row_bytes(piece.target.type, piece.target.cols);
  const int64_t step = rows_of(kReadBytes, row_bytes);
  for (int64_t done = 0; done < piece.rows; done += step) {
    const int64_t rows = std::min(step, piece.rows - done);
    const size_t bytes = static_cast<size_t>(rows) * row_bytes;
    if (const int error = read_all(descriptor, buffer.data(), bytes,
                                   piece.offset + static_cast<uint64_t>(done) * row_bytes))
      return error;
    if (!all_finite(piece.target.type, buffer.data(), bytes)) return kNotFinite;
    pack_panels(piece.target, piece.first_row + done, rows, buffer.data());
  }
  return 0;
}

}  // namespace dure
