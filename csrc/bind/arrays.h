// What the files that face Python share: arrays as they come in and go out, and checks.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "bind/gil.h"
#include "ops/buffer_pool.h"

namespace nb = nanobind;

namespace dure {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using InOut = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Result = nb::ndarray<nb::numpy, T>;

// Arrays are taken as they are or refused: a silent copy would hide a cost, and lose what is
// written in place.
inline const auto strict = nb::arg().noconvert();
inline const auto any = nb::arg();

inline void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument(what);
}
inline void check_threads(int threads) {
  require(threads >= 1 && threads <= 1024, "threads must be between 1 and 1024");
}

template <class T, class Array = Result<T>>
Array fresh(std::initializer_list<size_t> shape) {
  size_t count = 1;
  for (const size_t s : shape) count *= s;
  const size_t size = BufferPool::size_class(count * sizeof(T));
  T* data = static_cast<T*>(buffer_pool().take(size));
  struct Held {
    void* data;
    size_t size;
  };
  auto* held = new Held{data, size};
  return Array(data, shape, nb::capsule(held, [](void* p) noexcept {
                 auto* h = static_cast<Held*>(p);
                 buffer_pool().give(h->data, h->size);
                 delete h;
               }));
}

void bind_weights(nb::module_& m);           // bind/weights.cpp
void bind_experts(nb::module_& m);           // bind/experts.cpp
void bind_states(nb::module_& m);            // bind/states.cpp
void bind_attention(nb::module_& m);         // bind/attention.cpp
void bind_sampling(nb::module_& m);          // bind/sampling.cpp
void bind_suffix_automaton(nb::module_& m);  // bind/suffix_automaton.cpp

}  // namespace dure
