// Memory for results and for what passes between two operations. These buffers are born and die a
// few hundred times a step, and fresh pages cost more than most operations that fill them (18 MB:
// 4,500 page faults). So freed blocks wait here for the next one of their size class.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "common.h"

namespace dure {

class BufferPool {
 public:
  // `bytes` rounded up to a class; classes are a quarter of a power of two apart.
  static size_t size_class(size_t bytes) {
    size_t step = 1024;
    while (step * 8 < bytes) step *= 2;
    return round_up(std::max<size_t>(bytes, 1), step);
  }
  void* take(size_t size) {
    {
      const std::lock_guard lock(mutex_);
      auto& waiting = free_[size];
      if (!waiting.empty()) {
        void* p = waiting.back();
        waiting.pop_back();
        held_ -= size;
        return p;
      }
    }
    void* p = std::aligned_alloc(64, round_up(size, 64));
    if (!p) throw std::bad_alloc();
    return p;
  }
  void give(void* p, size_t size) noexcept {
    const std::lock_guard lock(mutex_);
    if (size > kLargest || held_ + size > kMost) return std::free(p);
    try {
      free_[size].push_back(p);
      held_ += size;
    } catch (...) { std::free(p); }
  }

 private:
  static constexpr size_t kLargest = size_t{48} << 20, kMost = size_t{64} << 20;
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  size_t held_ = 0;
};

inline BufferPool& buffer_pool() {
  static auto* one = new BufferPool;  // never destroyed: arrays may outlive the module at exit
  return *one;
}

// A recycled block, 64-byte aligned and uninitialised; given back when it goes out of scope.
template <class T>
class PooledBuffer {
 public:
  PooledBuffer() = default;
  explicit PooledBuffer(size_t count)
      : size_(BufferPool::size_class(count * sizeof(T))),
        data_(static_cast<T*>(buffer_pool().take(size_))) {}
  PooledBuffer(PooledBuffer&& other) noexcept
      : size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  PooledBuffer& operator=(PooledBuffer&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~PooledBuffer() {
    if (data_) buffer_pool().give(data_, size_);
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  size_t size_ = 0;
  T* data_ = nullptr;
};

}  // namespace dure
