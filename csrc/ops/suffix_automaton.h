// Where the end of a text has occurred before: a suffix automaton that grows token by token.
#pragma once

#include <cstdint>
#include <vector>

namespace dure {

// The suffix automaton (Blumer et al. 1985) of one or more texts of token ids, built online. A
// state is a set of substrings with the same occurrences; its link is the longest suffix of them
// that has more. The longest suffix that has occurred before is therefore what the last state links
// to.
//
// n tokens, separators counted, make at most 2n states, and transitions that are at most n more
// than states. So each state holds one transition itself, and one flat hash table the rest: 24
// bytes a state, 16 an entry and a quarter of the table free are 73 bytes a token at most.
// Appending costs amortised constant time, whatever the text; nothing is ever removed.
//
// It is to be used by one thread at a time.
class SuffixAutomaton {
 public:
  static constexpr int32_t kSeparator = -1;
  static constexpr int64_t kMaxTokens = int64_t{1} << 28;

  // A place in a text: `length` tokens before `position` are those that were looked for.
  struct Match {
    int64_t length, position;
  };

  // How far a text of somebody else's, read token by token, occurs in this one.
  struct Reader {
    uint32_t state = 0;
    int32_t length = 0;
  };

  explicit SuffixAutomaton(int64_t max_tokens);

  int64_t size() const { return static_cast<int64_t>(text_.size()); }
  int64_t max_tokens() const { return max_tokens_; }
  const int32_t* text() const { return text_.data(); }
  int64_t nbytes() const;

  // One more token of the text, at least 0; there must be room.
  void append(int32_t token);
  // Ends the text: what follows is another, and no match goes over the border. Takes the room of a
  // token.
  void separate();

  // The longest suffix of the text so far that had occurred before its end, and the place behind
  // its most recent known occurrence. Length and occurrence are exact; a later occurrence may be
  // missed that was only met inside longer matches.
  const Match& match() const { return match_; }

  // How many of the last tokens, at most `most`, stand before `position`, too.
  int64_t agreement(int64_t position, int64_t most) const;
  // The place from `before` tokens before `position` to `after` behind it with the greatest
  // agreement, the nearest of equals, and of two as near the later. Length 0 if there is none.
  Match nearest(int64_t position, int64_t before, int64_t after, int64_t most) const;
  // Copies up to `limit` tokens from `position` on to `out`, as if the text went on with them (a
  // period is repeated); returns how many came before a separator.
  int64_t copy(int64_t position, int64_t limit, int32_t* out) const;

  void read(Reader& reader, int32_t token) const;
  Match match(const Reader& reader) const;

 private:
  static constexpr uint32_t kRoot = 0;
  static constexpr uint32_t kNone = UINT32_MAX;
  // States above the match that learn where it is now; all of them would not be constant time.
  static constexpr int kTouched = 4;

  struct State {
    int32_t length;   // of its longest substring
    uint32_t link;    // of the root: itself
    int32_t end;      // its most recent known occurrence ends before this place
    int32_t token;    // of the transition that it holds itself; kSeparator: it has none
    uint32_t target;  // of that transition
    uint32_t more;    // the first of its entries in the table
  };
  struct Entry {
    uint32_t source;  // kNone: the entry is free
    int32_t token;
    uint32_t target;
    uint32_t next;  // of the same source
  };

  uint32_t* find(uint32_t source, int32_t token);
  const uint32_t* find(uint32_t source, int32_t token) const {
    return const_cast<SuffixAutomaton*>(this)->find(source, token);
  }
  uint64_t slot(uint32_t source, int32_t token) const;
  void add(uint32_t source, int32_t token, uint32_t target);
  void insert(uint32_t source, int32_t token, uint32_t target);
  void make_room(uint64_t entries);
  uint32_t new_state(const State& state);
  // The state of the suffix that `from` and the token make, which its transition to `target` may
  // share with longer substrings: then it is split off.
  uint32_t split(uint32_t from, int32_t token, uint32_t target);

  int64_t max_tokens_;
  uint64_t seed_;
  std::vector<int32_t> text_;
  std::vector<State> states_;
  std::vector<Entry> table_;
  uint64_t entries_ = 0;
  uint32_t last_ = kRoot;
  Match match_{0, 0};
};

}  // namespace dure
