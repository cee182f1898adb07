// What Python sees of the suffix automaton: checks, as in bind/module.cpp.
#include "ops/suffix_automaton.h"

#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bind/arrays.h"

namespace dure {

namespace {

// A text that is read against an automaton, which it keeps.
struct SuffixReader {
  const SuffixAutomaton& automaton;
  SuffixAutomaton::Reader at;
};

void check_tokens(const In<int32_t, 1>& tokens) {
  const int32_t *first = tokens.data(), *end = first + tokens.shape(0);
  require(std::all_of(first, end, [](int32_t token) { return token >= 0; }),
          "a token id is below 0");
}

void check_room(const SuffixAutomaton& a, size_t tokens) {
  require(tokens <= static_cast<size_t>(a.max_tokens() - a.size()),
          "the automaton has no room for so many tokens");
}

void check_place(const SuffixAutomaton& a, int64_t position) {
  require(position >= 0 && position <= a.size(), "a position outside the text");
}

nb::tuple pair(const SuffixAutomaton::Match& match) {
  return nb::make_tuple(match.length, match.position);
}

void bind_reader(nb::module_& m) {
  nb::class_<SuffixReader>(m, "SuffixReader")
      .def(
          "__init__",
          [](SuffixReader* self, const SuffixAutomaton& automaton) {
            new (self) SuffixReader{automaton, {}};
          },
          nb::keep_alive<1, 2>(), strict)
      .def(
          "extend",
          [](SuffixReader& r, const In<int32_t, 1>& tokens) {
            check_tokens(tokens);
            for (size_t i = 0; i < tokens.shape(0); ++i) r.automaton.read(r.at, tokens.data()[i]);
          },
          strict)
      .def_prop_ro("match", [](const SuffixReader& r) { return pair(r.automaton.match(r.at)); });
}

}  // namespace

void bind_suffix_automaton(nb::module_& m) {
  nb::class_<SuffixAutomaton>(m, "SuffixAutomaton")
      .def(
          "__init__",
          [](SuffixAutomaton* self, int64_t max_tokens) {
            require(max_tokens >= 1 && max_tokens <= SuffixAutomaton::kMaxTokens,
                    "max_tokens must be between 1 and 2^28");
            new (self) SuffixAutomaton(max_tokens);
          },
          any)
      .def("__len__", [](const SuffixAutomaton& a) { return a.size(); })
      .def_prop_ro("max_tokens", &SuffixAutomaton::max_tokens)
      .def_prop_ro("nbytes", &SuffixAutomaton::nbytes)
      .def(
          "append",
          [](SuffixAutomaton& a, int32_t token) {
            require(token >= 0, "a token id is below 0");
            check_room(a, 1);
            a.append(token);
          },
          any)
      .def(
          "extend",
          [](SuffixAutomaton& a, const In<int32_t, 1>& tokens) {
            check_tokens(tokens);
            check_room(a, tokens.shape(0));
            for (size_t i = 0; i < tokens.shape(0); ++i) a.append(tokens.data()[i]);
          },
          strict)
      .def("separate",
           [](SuffixAutomaton& a) {
             check_room(a, 1);
             a.separate();
           })
      .def_prop_ro("match", [](const SuffixAutomaton& a) { return pair(a.match()); })
      .def(
          "agreement",
          [](const SuffixAutomaton& a, int64_t position, int64_t most) {
            check_place(a, position);
            require(most >= 0, "a negative number of tokens");
            return a.agreement(position, most);
          },
          any, any)
      .def(
          "nearest",
          [](const SuffixAutomaton& a, int64_t position, int64_t before, int64_t after,
             int64_t most) {
            check_place(a, position);
            const auto is_count = [&](int64_t n) { return n >= 0 && n <= a.max_tokens(); };
            require(is_count(before) && is_count(after) && is_count(most),
                    "a number of tokens that is negative, or above max_tokens");
            return pair(a.nearest(position, before, after, most));
          },
          any, any, any, any)
      .def(
          "copy",
          [](const SuffixAutomaton& a, int64_t position, int64_t limit) {
            check_place(a, position);
            require(limit >= 0 && limit <= a.max_tokens(),
                    "a number of tokens that is negative, or above max_tokens");
            // At the end there is no token to begin with.
            std::vector<int32_t> tokens(position == a.size() ? 0 : static_cast<size_t>(limit));
            const int64_t room = static_cast<int64_t>(tokens.size());
            tokens.resize(static_cast<size_t>(a.copy(position, room, tokens.data())));
            return tokens;
          },
          any, any);
  bind_reader(m);
}

}  // namespace dure
