// What Python sees of the operations on recurrent states: checks, as in bind/module.cpp.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <set>

#include "bind/arrays.h"
#include "ops/ops.h"
#include "ops/states.h"

namespace dure {

namespace {

using Map = std::optional<In<int32_t, 1>>;
using Ints = In<int32_t, 1>;

const int32_t* checked(const Map& map, size_t columns, size_t width) {
  require(map ? map->shape(0) == columns : columns <= width,
          "one column of x a column of the result");
  uint32_t highest = 0;  // of negative ones it is above any width
  for (size_t i = 0; map && i < columns; ++i)
    highest = std::max(highest, static_cast<uint32_t>(map->data()[i]));
  require(!map || columns == 0 || highest < width, "a column that x does not have");
  return map ? map->data() : nullptr;
}

// The rows of each sequence, where its state comes from, and where it goes. `saves` are (row,
// slot), in any order.
StatesView states_view(InOut<float, 2>& states, const Ints& positions, const Ints& sequences,
                       const Ints& slots, const In<int32_t, 2>& saves, size_t rows) {
  require(positions.shape(0) == rows && sequences.shape(0) == rows,
          "positions and sequences must have one entry a row");
  require(saves.shape(1) == 2, "saves must be pairs of row and slot");
  std::set<int32_t> written;
  const auto slot = [&](int32_t s) {
    require(s >= 0 && static_cast<size_t>(s) < states.shape(0), "state slot out of range");
    require(written.insert(s).second, "a state slot is written twice");
    return states.data() + static_cast<size_t>(s) * states.shape(1);
  };
  std::vector<StateSave> extra;
  for (size_t i = 0; i < saves.shape(0); ++i) {
    const int32_t row = saves.data()[2 * i];
    require(row >= 0 && static_cast<size_t>(row) < rows, "a row to save that is not there");
    extra.push_back({row, slot(saves.data()[2 * i + 1])});
  }
  std::stable_sort(extra.begin(), extra.end(),
                   [](const StateSave& a, const StateSave& b) { return a.row < b.row; });
  StatesView view;
  view.rows = static_cast<int64_t>(rows);
  auto next = extra.begin();
  const int32_t *at = positions.data(), *of = sequences.data();
  for (int64_t first = 0, end; first < view.rows; first = end) {
    for (end = first + 1; end < view.rows && of[end] == of[first]; ++end)
      require(at[end] == at[end - 1] + 1, "rows of a sequence must follow each other");
    require(at[first] >= 0 && of[first] >= 0 && static_cast<size_t>(of[first]) < slots.shape(0),
            "sequence out of range");
    float* own = slot(slots.data()[of[first]]);
    StateRun run{first, end, at[first] ? own : nullptr, static_cast<int64_t>(view.saves.size()), 0};
    for (; next != extra.end() && next->row < end; ++next) view.saves.push_back(*next);
    view.saves.push_back({end - 1, own});
    run.end_save = static_cast<int64_t>(view.saves.size());
    view.runs.push_back(run);
  }
  return view;
}

Result<float> short_conv(const In<float, 2>& x, const In<float, 2>& weight, const Map& columns,
                         bool with_silu, InOut<float, 2> states, const Ints& positions,
                         const Ints& sequences, const Ints& slots, const In<int32_t, 2>& saves,
                         int threads) {
  check_threads(threads);
  const size_t kernel = weight.shape(0), channels = weight.shape(1);
  require(kernel >= 1 && channels >= 1, "a convolution needs a kernel and channels");
  require(states.shape(1) >= (kernel - 1) * channels,
          "a state slot is too small for the convolution");
  const int32_t* map = checked(columns, channels, x.shape(1));
  const StatesView view = states_view(states, positions, sequences, slots, saves, x.shape(0));
  auto out = fresh<float>({x.shape(0), channels});
  const GilReleased release;
  ops().states->short_conv(x.data(), static_cast<int64_t>(x.shape(1)), map, weight.data(),
                           static_cast<int64_t>(kernel), static_cast<int64_t>(channels), with_silu,
                           view, out.data(), threads);
  return out;
}

Result<float> delta_rule(const In<float, 2>& qkv, const In<float, 2>& a, const In<float, 2>& b,
                         const In<float, 1>& rate, const In<float, 1>& bias, int64_t key_heads,
                         int64_t key_dim, int64_t offset, float bound, InOut<float, 2> states,
                         const Ints& positions, const Ints& sequences, const Ints& slots,
                         const In<int32_t, 2>& saves, int threads) {
  check_threads(threads);
  const int64_t heads = static_cast<int64_t>(rate.shape(0)),
                cols = static_cast<int64_t>(qkv.shape(1));
  require(key_heads >= 1 && key_heads <= 65536 && heads >= 1 && heads % key_heads == 0,
          "value heads must be a multiple of the key heads");
  require(key_dim >= 1 && key_dim <= 65536, "key_dim must be between 1 and 65,536");
  const int64_t left = cols - 2 * key_heads * key_dim;
  require(left > 0 && left % heads == 0,
          "after queries and keys there must be a whole number of columns a value head");
  const DeltaShape shape{key_heads, heads, key_dim, left / heads};
  const size_t n = qkv.shape(0), each = static_cast<size_t>(heads);
  require(b.shape(0) == n && b.shape(1) == each, "b must have one entry a row and value head");
  const size_t decays = a.shape(1);
  require(a.shape(0) == n && (decays == each || decays == each * static_cast<size_t>(key_dim)),
          "a must have one entry a row and value head, or one for each channel of its key");
  require(bias.shape(0) == decays, "the bias must have one entry a column of a");
  require(bound <= 0, "the bound of the decays' logarithms must not be above 0");
  const bool by_channel = decays != each || (key_dim == 1 && bound < 0);
  require(by_channel || bound == 0, "decays of whole heads have no bound");
  require(offset >= 0 && offset + shape.floats() <= static_cast<int64_t>(states.shape(1)),
          "a state slot is too small for the heads");
  const StatesView view = states_view(states, positions, sequences, slots, saves, n);
  auto out = fresh<float>({n, static_cast<size_t>(left)});
  const GilReleased release;
  ops().states->delta_rule(
      {shape, qkv.data(), a.data(), b.data(), rate.data(), bias.data(), by_channel, bound, offset},
      view, out.data(), threads);
  return out;
}

Result<float> gated_norm(const In<float, 2>& x, const In<float, 1>& weight, float eps,
                         const In<float, 2>& gate, const Map& columns, bool with_silu,
                         int threads) {
  check_threads(threads);
  const size_t dim = weight.shape(0);
  require(dim > 0 && x.shape(1) % dim == 0, "the weight must have one entry a column of a head");
  require(gate.shape(0) == x.shape(0), "x and gate must have the same rows");
  const int32_t* map = checked(columns, x.shape(1), gate.shape(1));
  auto out = fresh<float>({x.shape(0), x.shape(1)});
  const GilReleased release;
  ops().states->gated_norm(x.data(), static_cast<int64_t>(x.shape(0)),
                           static_cast<int64_t>(x.shape(1) / dim), static_cast<int64_t>(dim),
                           weight.data(), eps, gate.data(), static_cast<int64_t>(gate.shape(1)),
                           map, with_silu, out.data(), threads);
  return out;
}

Result<float> sigmoid_mul(const In<float, 2>& x, const In<float, 2>& gate, const Map& columns,
                          int threads) {
  check_threads(threads);
  require(gate.shape(0) == x.shape(0), "x and gate must have the same rows");
  const int32_t* map = checked(columns, x.shape(1), gate.shape(1));
  auto out = fresh<float>({x.shape(0), x.shape(1)});
  const GilReleased release;
  ops().states->sigmoid_mul(x.data(), static_cast<int64_t>(x.shape(0)),
                            static_cast<int64_t>(x.shape(1)), gate.data(),
                            static_cast<int64_t>(gate.shape(1)), map, out.data(), threads);
  return out;
}

}  // namespace

void bind_states(nb::module_& m) {
  const auto maybe = nb::arg().noconvert().none();
  m.def("short_conv", &short_conv, strict, strict, maybe, any, strict, strict, strict, strict,
        strict, any);
  m.def("delta_rule", &delta_rule, strict, strict, strict, strict, strict, any, any, any, any,
        strict, strict, strict, strict, strict, any);
  m.def("gated_norm", &gated_norm, strict, strict, any, strict, maybe, any, any);
  m.def("sigmoid_mul", &sigmoid_mul, strict, strict, maybe, any);
}

}  // namespace dure
