// A file that is read past the page cache, where the file system can.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dure {

// What every file system with direct reads takes as alignment of offset, length and memory.
constexpr uint64_t kPage = 4096;
inline uint64_t page_down(uint64_t offset) { return offset / kPage * kPage; }
inline uint64_t page_up(uint64_t offset) { return page_down(offset + kPage - 1); }
// Bytes of memory that `fetch` wants, from an aligned address on, for a range of so many.
inline size_t room_for(uint64_t bytes) { return page_up(bytes) + 2 * kPage; }

class DirectFile {
 public:
  static constexpr int kEnded = -1;  // the file is shorter than was asked for

  // Duplicates the descriptor, and remembers what the file is now. Raises std::system_error if it
  // cannot.
  explicit DirectFile(int descriptor);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  bool direct() const { return direct_ >= 0; }
  // Reads a range to about *at, which is aligned and has `room_for(bytes)`; *at becomes where its
  // first byte is. Returns 0, an errno or kEnded. Without direct reads, what the page cache got is
  // dropped from it.
  int fetch(uint64_t offset, uint64_t bytes, uint8_t** at) const;
  // The same through the page cache, to `out`, aligned or not.
  int read(uint64_t offset, uint64_t bytes, uint8_t* out) const;
  // Whether the file is what it was when it was opened.
  bool unchanged() const;

 private:
  int buffered_ = -1, direct_ = -1;
  uint64_t device_ = 0, node_ = 0;
  int64_t size_ = 0, modified_s_ = 0, modified_ns_ = 0;
};

// Memory for one range at a time.
class BounceBuffer {
 public:
  // Returns aligned memory for a range of `bytes`.
  uint8_t* take(uint64_t bytes);
  BounceBuffer() = default;
  ~BounceBuffer();
  BounceBuffer(const BounceBuffer&) = delete;
  BounceBuffer& operator=(const BounceBuffer&) = delete;

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace dure
