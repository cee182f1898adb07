#include "pack/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <new>
#include <string>
#include <system_error>

namespace dure {

namespace {

// Reads up to `size` bytes, and at least `least`: the end of a file is not aligned.
int read_some(int descriptor, uint8_t* out, uint64_t size, uint64_t offset, uint64_t least) {
  uint64_t done = 0;
  while (done < least) {
    const ssize_t count =
        pread(descriptor, out + done, size - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    if (count == 0) return DirectFile::kEnded;
    done += static_cast<uint64_t>(count);
  }
  return 0;
}

}  // namespace

DirectFile::DirectFile(int descriptor) {
  struct stat status{};
  if (fstat(descriptor, &status) != 0) throw std::system_error(errno, std::generic_category());
  device_ = status.st_dev, node_ = status.st_ino, size_ = status.st_size;
  modified_s_ = status.st_mtim.tv_sec, modified_ns_ = status.st_mtim.tv_nsec;
  buffered_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (buffered_ < 0) throw std::system_error(errno, std::generic_category());
#ifdef O_DIRECT
  // By its descriptor, as the name may mean another file by now. Where /proc or the file system
  // does not do it, reads go through the page cache.
  const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  direct_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (direct_ < 0) return;
  struct stat opened{};
  BounceBuffer probe;
  if (fstat(direct_, &opened) != 0 || opened.st_ino != status.st_ino ||
      opened.st_dev != status.st_dev || pread(direct_, probe.take(kPage), kPage, 0) < 0) {
    close(direct_);
    direct_ = -1;
  }
#endif
}

DirectFile::~DirectFile() {
  close(buffered_);
  if (direct_ >= 0) close(direct_);
}

int DirectFile::fetch(uint64_t offset, uint64_t bytes, uint8_t** at) const {
  const uint64_t first = page_down(offset), skipped = offset - first;
  if (direct_ >= 0) {
    const int error = read_some(direct_, *at, page_up(skipped + bytes), first, skipped + bytes);
    if (error != EINVAL) {
      *at += skipped;
      return error;
    }
  }
  const int error = read_some(buffered_, *at, bytes, offset, bytes);
#ifdef POSIX_FADV_DONTNEED  // not on macOS
  posix_fadvise(buffered_, static_cast<off_t>(first), static_cast<off_t>(page_up(skipped + bytes)),
                POSIX_FADV_DONTNEED);
#endif
  return error;
}

int DirectFile::read(uint64_t offset, uint64_t bytes, uint8_t* out) const {
  return read_some(buffered_, out, bytes, offset, bytes);
}

bool DirectFile::unchanged() const {
  struct stat now{};
  return fstat(buffered_, &now) == 0 && now.st_dev == device_ && now.st_ino == node_ &&
         now.st_size == size_ && now.st_mtim.tv_sec == modified_s_ &&
         now.st_mtim.tv_nsec == modified_ns_;
}

uint8_t* BounceBuffer::take(uint64_t bytes) {
  const size_t wanted = room_for(bytes);
  if (wanted <= size_) return data_;
  std::free(data_);
  size_ = 0;
  data_ = static_cast<uint8_t*>(std::aligned_alloc(kPage, wanted));
  if (!data_) throw std::bad_alloc();
  size_ = wanted;
  return data_;
}

BounceBuffer::~BounceBuffer() { std::free(data_); }

}  // namespace dure
