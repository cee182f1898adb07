// Columns of a row in another order: how fused projections are taken apart without a copy.
#pragma once

#include <algorithm>
#include <vector>

#include "isa/simd.h"

namespace dure::DURE_ISA {

// Sixteen columns of a row at a time: column c is entry map[c] of the row, or c itself where there
// is no map.
class Columns {
 public:
  Columns(const int32_t* map, int64_t count) : map_(map), count_(count) {
    if (!map) return;
    adjacent_.resize(static_cast<size_t>((count + 15) / 16));
    int64_t c = 0;
    for (; c + 16 <= count;
         c += 16) {  // a loop that becomes vectors: a layer of one row has time for no other
      int32_t different = 0;
      for (int i = 0; i < 16; ++i) different |= map[c + i] ^ (map[c] + i);
      adjacent_[static_cast<size_t>(c / 16)] = different == 0;
    }
    if (c < count) {
      bool same = true;
      for (int64_t i = c; i < count; ++i) same &= map[i] == map[c] + (i - c);
      adjacent_[static_cast<size_t>(c / 16)] = same;
    }
  }
  // Columns c to c + 15, c a multiple of 16; those from `count` on are zero.
  f32x16 load(const float* row, int64_t c) const {
    const int n = static_cast<int>(std::min<int64_t>(16, count_ - c));
    if (!map_) return from(row + c, n);
    if (adjacent_[static_cast<size_t>(c / 16)]) return from(row + map_[c], n);
    float gathered[16] = {};
    for (int i = 0; i < n; ++i) gathered[i] = row[map_[c + i]];
    return DURE_ISA::load(gathered);
  }

 private:
  static f32x16 from(const float* p, int n) { return n == 16 ? DURE_ISA::load(p) : load_n(p, n); }
  const int32_t* map_;
  int64_t count_;
  std::vector<uint8_t> adjacent_;  // by 16 columns: one run of the row
};

}  // namespace dure::DURE_ISA
