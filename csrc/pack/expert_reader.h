// Records of experts read from disk by threads of their own, and packed as they arrive.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "pack/direct_file.h"
#include "pack/layout.h"

namespace dure {

// Some threads that read pieces of files and pack them. What is needed now goes before what is
// guessed, and that before what fills an empty cache. Whoever asked takes the names of finished
// records from one queue.
class ExpertReader {
 public:
  enum Priority : int { kNeeded, kGuessed, kWarming, kPriorities };

  // A range of a file, and where its bytes go: packed as rows of `target`, or as they are to `raw`.
  struct Piece {
    std::shared_ptr<const DirectFile> file;
    uint64_t offset = 0, bytes = 0;
    Packed target;
    int64_t first_row = 0, rows = 0;
    uint8_t* raw = nullptr;  // page-aligned, as the offset
  };
  using Pieces = std::vector<Piece>;
  // A record that is complete, or that cannot be had: error is an errno or one of those below, of
  // the bytes at `offset` of `file`.
  struct Finished {
    uint64_t tag = 0;
    int error = 0;
    const DirectFile* file = nullptr;
    uint64_t offset = 0;
  };
  static constexpr int kEnded = DirectFile::kEnded;
  static constexpr int kNotFinite = -3;  // a weight or scale is NaN or infinite
  static constexpr int kChanged = -4;    // the file is not what it was when it was opened
  static constexpr int kNoMemory = -5;   // for the bytes on their way

  explicit ExpertReader(int threads);
  ~ExpertReader();
  ExpertReader(const ExpertReader&) = delete;
  ExpertReader& operator=(const ExpertReader&) = delete;

  // Adds the rows of `target`, whose source blocks are at `offset`, to the pieces.
  static void add_packed(std::shared_ptr<const DirectFile> file, uint64_t offset,
                         const Packed& target, Pieces& pieces);
  // Adds bytes that are taken as they are.
  static void add_raw(std::shared_ptr<const DirectFile> file, uint64_t offset, uint64_t bytes,
                      uint8_t* raw, Pieces& pieces);

  // Reads all pieces, of which there is at least one; `owner` keeps the memory they go to until
  // then. A tag is not 0, and not that of a record under way.
  void submit(uint64_t tag, Pieces pieces, std::shared_ptr<const void> owner, Priority priority);
  // Reads a record before others of a lower priority, if it is not finished.
  void raise(uint64_t tag, Priority priority);
  // Drops a record of which nothing has been read. Returns whether it could be.
  bool cancel(uint64_t tag);
  // Enters a record that something else than these threads has made.
  void finish(uint64_t tag, int error);
  // Takes what has finished; waits for the first up to `seconds`.
  std::vector<Finished> take(double seconds);
  uint64_t read_bytes() const;

 private:
  struct Record {
    Pieces pieces;
    std::shared_ptr<const void> owner;
    size_t begun = 0, done = 0;
    Priority priority = kNeeded;
    Finished result;
  };
  void work();
  // Returns the tag of the next record with pieces to read; 0 without one. Called with the lock.
  uint64_t next() const;
  static int read(const Piece& piece, BounceBuffer& bounce);

  const int home_;  // a forked child has none of the threads
  mutable std::mutex mutex_;
  std::condition_variable wanted_, finished_;
  std::unordered_map<uint64_t, Record> records_;
  std::deque<uint64_t> queues_[kPriorities];
  std::vector<Finished> out_;
  uint64_t bytes_ = 0;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace dure
