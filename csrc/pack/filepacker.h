// Packed weights read straight from a file, on all threads.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "pack/direct_file.h"
#include "pack/layout.h"

namespace dure {

// What is to be packed from one file. A thread reads a little more than fits its L1 cache, packs it
// while it is warm, and goes on: the source never reaches memory, and no thread waits for another.
class FilePacker {
 public:
  // Called with the bytes done so far, by the calling thread while the others go on. False stops
  // all of them.
  using Report = std::function<bool(uint64_t)>;

  // All of `target` from source blocks that begin at byte `offset`. `owner`, if there is one, keeps
  // the memory of the target.
  void add(const Packed& target, uint64_t offset, std::shared_ptr<const void> owner = nullptr);
  // Packs all of it, and reports about every `seconds`. direct: past the page cache, if the file
  // system can. Returns 0, an errno, kEnded, kStopped or kNotFinite.
  int run(const DirectFile& file, bool direct, int threads, double seconds, const Report& report);

  static constexpr int kEnded = DirectFile::kEnded;
  static constexpr int kStopped = -2;  // by the report
  // A weight, or the scale of a block, is NaN or infinite: of the matrix whose rows are read from
  // the byte `not_finite`.
  static constexpr int kNotFinite = -3;
  uint64_t not_finite() const { return not_finite_; }

 private:
  struct Piece {
    Packed target;
    int64_t first_row, rows;
    uint64_t offset;
    uint64_t bytes() const {
      return source_row_bytes(target.type, target.cols) * static_cast<uint64_t>(rows);
    }
  };
  static int pack(const Piece& piece, const DirectFile& file, bool direct, BounceBuffer& buffer);

  std::vector<Piece> pieces_;
  uint64_t not_finite_ = 0;
  std::vector<std::shared_ptr<const void>> owners_;
};

}  // namespace dure
