#include "ops/suffix_automaton.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <random>

namespace dure {

namespace {

// A vector's own growth may take twice what the cap needs.
template <class T>
void reserve_more(std::vector<T>& v, int64_t highest) {
  if (v.size() < v.capacity()) return;
  const auto most = static_cast<size_t>(highest);
  v.reserve(std::max(v.size() + 1, std::min(most, std::max<size_t>(64, 2 * v.size()))));
}

}  // namespace

SuffixAutomaton::SuffixAutomaton(int64_t max_tokens) : max_tokens_(max_tokens) {
  // No order depends on it: whoever chooses the tokens cannot choose which of them collide.
  std::random_device device;
  seed_ = (static_cast<uint64_t>(device()) << 32) | device();
  new_state({0, kRoot, 0, kSeparator, kNone, kNone});
}

int64_t SuffixAutomaton::nbytes() const {
  return static_cast<int64_t>(text_.capacity() * sizeof(int32_t) +
                              states_.capacity() * sizeof(State) +
                              table_.capacity() * sizeof(Entry));
}

uint32_t SuffixAutomaton::new_state(const State& state) {
  reserve_more(states_, 2 * max_tokens_);
  states_.push_back(state);
  return static_cast<uint32_t>(states_.size() - 1);
}

uint64_t SuffixAutomaton::slot(uint32_t source, int32_t token) const {
  uint64_t h = ((static_cast<uint64_t>(source) << 32) | static_cast<uint32_t>(token)) ^ seed_;
  h = (h ^ (h >> 32)) * 0x9E3779B97F4A7C15u;
  h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9u;
  return ((h >> 32) * table_.size()) >> 32;  // any size, not powers of two alone
}

uint32_t* SuffixAutomaton::find(uint32_t source, int32_t token) {
  State& state = states_[source];
  if (state.token == token) return &state.target;
  if (state.more == kNone) return nullptr;
  for (uint64_t i = slot(source, token);; i = i + 1 == table_.size() ? 0 : i + 1) {
    Entry& entry = table_[i];
    if (entry.source == kNone) return nullptr;
    if (entry.source == source && entry.token == token) return &entry.target;
  }
}

void SuffixAutomaton::insert(uint32_t source, int32_t token, uint32_t target) {
  uint64_t i = slot(source, token);
  while (table_[i].source != kNone) i = i + 1 == table_.size() ? 0 : i + 1;
  table_[i] = {source, token, target, states_[source].more};
  states_[source].more = static_cast<uint32_t>(i);
}

// Room for so many entries more, a quarter of the table left free. Entries move.
void SuffixAutomaton::make_room(uint64_t entries) {
  const auto fits = [](uint64_t n) { return n + n / 3 + 2; };
  const uint64_t needed = entries_ + entries;
  if (fits(needed) <= table_.size()) return;
  const uint64_t most = static_cast<uint64_t>(max_tokens_);
  const uint64_t wanted = std::max(needed, std::min(most, std::max<uint64_t>(64, 2 * needed)));
  std::vector<Entry> old(fits(wanted), Entry{kNone, 0, 0, kNone});
  old.swap(table_);
  for (const Entry& each : old)
    if (each.source != kNone) states_[each.source].more = kNone;
  for (const Entry& each : old)
    if (each.source != kNone) insert(each.source, each.token, each.target);
}

void SuffixAutomaton::add(uint32_t source, int32_t token, uint32_t target) {
  State& state = states_[source];
  if (state.token == kSeparator) {
    state.token = token;
    state.target = target;
    return;
  }
  make_room(1);
  insert(source, token, target);
  ++entries_;
}

uint32_t SuffixAutomaton::split(uint32_t from, int32_t token, uint32_t target) {
  const int32_t length = states_[from].length + 1;
  if (states_[target].length == length) return target;
  const State whole = states_[target];
  const uint32_t made =
      new_state({length, whole.link, whole.end, whole.token, whole.target, kNone});
  uint64_t entries = 0;
  for (uint32_t i = whole.more; i != kNone; i = table_[i].next) ++entries;
  make_room(entries);
  for (uint32_t i = states_[target].more; i != kNone; i = table_[i].next)
    insert(made, table_[i].token, table_[i].target);
  entries_ += entries;
  states_[target].link = made;
  for (uint32_t state = from;; state = states_[state].link) {
    uint32_t* next = find(state, token);
    if (next == nullptr || *next != target) break;
    *next = made;
    if (state == kRoot) break;
  }
  return made;
}

void SuffixAutomaton::append(int32_t token) {
  assert(token >= 0 && size() < max_tokens_);
  reserve_more(text_, max_tokens_);
  text_.push_back(token);
  const auto end = static_cast<int32_t>(text_.size());
  uint32_t repeated = kRoot;  // the longest suffix that has occurred before
  if (const uint32_t* next = find(last_, token)) {
    // The whole text so far stands in an earlier one.
    last_ = repeated = split(last_, token, *next);
  } else {
    const uint32_t made =
        new_state({states_[last_].length + 1, kRoot, end, kSeparator, kNone, kNone});
    uint32_t state = last_;
    const uint32_t* known = nullptr;
    for (;; state = states_[state].link) {
      known = find(state, token);
      if (known != nullptr) break;
      add(state, token, made);
      if (state == kRoot) break;
    }
    if (known != nullptr) repeated = split(state, token, *known);
    states_[made].link = repeated;
    last_ = made;
  }
  match_ = {states_[repeated].length, states_[repeated].end};
  for (int i = 0; i < kTouched && repeated != kRoot; ++i, repeated = states_[repeated].link)
    states_[repeated].end = end;
}

void SuffixAutomaton::separate() {
  assert(size() < max_tokens_);
  reserve_more(text_, max_tokens_);
  text_.push_back(kSeparator);
  last_ = kRoot;
  match_ = {0, 0};
}

int64_t SuffixAutomaton::agreement(int64_t position, int64_t most) const {
  const int64_t longest = std::min(position, most);
  const int32_t* end = text_.data() + text_.size();
  const int32_t* place = text_.data() + position;
  int64_t length = 0;
  while (length < longest && place[-length - 1] == end[-length - 1] &&
         end[-length - 1] != kSeparator)
    ++length;
  return length;
}

SuffixAutomaton::Match SuffixAutomaton::nearest(int64_t position, int64_t before, int64_t after,
                                                int64_t most) const {
  // Not the end itself, which agrees with all of the text and goes on with nothing.
  const int64_t low = std::max<int64_t>(0, position - before);
  const int64_t high = std::min(size() - 1, position + after);
  Match best{0, position};
  const auto look = [&](int64_t place) {
    const int64_t length = agreement(place, most);
    const int64_t near = std::abs(place - position), best_near = std::abs(best.position - position);
    if (length > best.length || (length > 0 && length == best.length && near < best_near))
      best = {length, place};
  };
  for (int64_t place = position; place <= high; ++place) {
    look(place);
    if (text_[place] == kSeparator) break;
  }
  for (int64_t place = std::min(position, size()) - 1; place >= low; --place) {
    if (text_[place] == kSeparator) break;
    if (place <= high) look(place);
  }
  return best;
}

int64_t SuffixAutomaton::copy(int64_t position, int64_t limit, int32_t* out) const {
  for (int64_t i = 0; i < limit; ++i) {
    const int64_t place = position + i;
    const int32_t token = place < size() ? text_[place] : out[place - size()];
    if (token == kSeparator) return i;
    out[i] = token;
  }
  return limit;
}

void SuffixAutomaton::read(Reader& reader, int32_t token) const {
  const uint32_t* next = nullptr;
  for (;;) {
    // A state may have been split since: what was read belongs to the part that is as short.
    while (reader.state != kRoot && states_[states_[reader.state].link].length >= reader.length)
      reader.state = states_[reader.state].link;
    next = find(reader.state, token);
    if (next != nullptr || reader.state == kRoot) break;
    reader.state = states_[reader.state].link;
    reader.length = states_[reader.state].length;
  }
  reader = next == nullptr ? Reader{} : Reader{*next, reader.length + 1};
}

SuffixAutomaton::Match SuffixAutomaton::match(const Reader& reader) const {
  if (reader.length == 0) return {0, 0};
  return {reader.length, states_[reader.state].end};
}

}  // namespace dure
