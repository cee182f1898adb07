// Packed weights read straight from a file, on all threads.
#pragma once

#include <vector>

#include "layout.h"

namespace dure {

// What is to be packed from one file, and how much of it is done. A thread reads a little more than fits its L1 cache,
// packs it while it is warm, and goes on: the source never reaches memory, and no thread waits for another.
class FilePacker {
 public:
  // All of `target` from source blocks that begin at byte `offset`.
  void add(const Packed& target, uint64_t offset);
  // Goes on packing for `seconds` or to the end, whichever is first. Returns 0, an errno, or kEnded.
  int run(int descriptor, int threads, double seconds);
  uint64_t done_bytes() const;
  bool finished() const { return next_ == pieces_.size(); }

  static constexpr int kEnded = -1;  // the file is shorter than was asked for

 private:
  struct Piece {
    Packed target;
    int64_t first_row, rows;
    uint64_t offset;
    uint64_t bytes() const { return source_row_bytes(target.type, target.cols) * static_cast<uint64_t>(rows); }
  };
  static int pack(const Piece& piece, int descriptor, std::vector<uint8_t>& buffer);

  std::vector<Piece> pieces_;
  size_t next_ = 0;
  bool sorted_ = true;
};

}  // namespace dure
