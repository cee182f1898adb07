"""Drafts from text: what followed when the end of an answer occurred before.

It is looked for in the text that the request brings (`prediction_ids`), its prompt, its answer so
far, and recent answers to the same tenant and model. Many answers copy a text and change some of
it; so the place that is copied from is remembered, and found again behind a change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.engine.spec_decode.draft import Draft
from dure.kernels import SuffixAutomaton, SuffixMatch, SuffixReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.engine.request import Request

# Tokens, at most 80 bytes each.
MAX_INDEX_TOKENS = 1 << 17  # of one request: prediction, prompt and answer
MAX_TOKENS = 1 << 19  # of all requests
MAX_RECENT_TOKENS = 1 << 15  # of the recent answers under one root
MAX_ROOTS = 4  # whose recent answers are kept

_BULK = 4096  # tokens indexed at once: other threads run between
_LONGEST = 64  # up to here the length of a match is counted
# Chosen by replaying edits of source files, renamed identifiers, JSON records and prose; none of
# them is worth more than 3 % between half and twice.
_SURE = 6  # tokens that agree where an answer is said to copy from
_FAR = 3  # a match elsewhere is followed if it is longer by so much
_BEFORE, _AFTER = 8, 24  # tokens around the last sure place, where the answer may go on
_GIVEN_UP = 256  # tokens written since then
_LENGTHS = (0, 1, 2, 3, 4, 6, 9, 16, 32)  # of matches, that are rated apart


@dataclass(frozen=True)
class Proposal:
    """Tokens that may follow, and what speaks for them.

    match_length: how many tokens before them are the same as at the end of the text, counted up to
    64. is_near: whether they are from where the answer copies; at the beginning of a prediction the
    length is 0.
    """

    token_ids: tuple[int, ...] = ()
    match_length: int = 0
    is_near: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each token, as in `Draft`: if one was right, the match is a token longer."""
        where = "near" if self.is_near else "far"
        lengths = range(self.match_length, self.match_length + len(self.token_ids))
        rated = (_LENGTHS[bisect_right(_LENGTHS, length) - 1] for length in lengths)
        return tuple(f"text:{where}:{length}" for length in rated)


class TextIndex:
    """The texts that one request may repeat, and the place that its answer copies from."""

    def __init__(
        self,
        prediction_ids: Sequence[int] = (),
        prompt_ids: Sequence[int] = (),
        *,
        max_tokens: int = MAX_INDEX_TOKENS,
        recent: RecentTexts | None = None,
    ) -> None:
        """prediction_ids: what the answer is expected to be, more or less, from its beginning.

        max_tokens: that are indexed, half of them of the answer or what it leaves. recent: answers
        that it may repeat, too.
        """
        self._automaton = SuffixAutomaton(max_tokens)
        self._recent = None if recent is None else _RecentReader(recent)
        self._place = -1  # where the next token is expected; -1: nowhere
        self._sure = -1  # the last place where it was, behind tokens that agreed
        self._since = 0  # tokens written since
        half = max_tokens // 2
        if prediction_ids:
            self._index(prediction_ids[: half - 1])
            self._automaton.separate()
            self._place = self._sure = 0
        prompt = prompt_ids[-max(1, half - len(self._automaton)) :]
        self._index(prompt)
        if self._recent is not None:
            self._recent.extend(prompt[-_LONGEST:])

    def __len__(self) -> int:
        """Return the number of tokens held."""
        return len(self._automaton)

    @property
    def is_full(self) -> bool:
        """Whether it has met its limit: from then on it proposes nothing."""
        return len(self._automaton) == self._automaton.max_tokens

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens of the answer."""
        room = self._automaton.max_tokens - len(self._automaton)
        for token_id in token_ids[:room]:
            self._automaton.append(token_id)
            self._follow()
        if self._recent is not None:
            self._recent.extend(token_ids)

    def propose(self, limit: int) -> Proposal:
        """Return up to `limit` tokens that may come next; none if nothing suggests any."""
        if self.is_full or limit < 1:
            return Proposal()
        limit = min(limit, self._automaton.max_tokens)
        match = self._automaton.match
        shared = SuffixMatch(0, 0) if self._recent is None else self._recent.match
        longest = min(max(match.length, shared.length), _LONGEST)
        if self._place >= 0:
            near = self._automaton.agreement(self._place, _LONGEST)
            if longest < near + _FAR:
                token_ids = self._automaton.copy(self._place, limit)
                return Proposal(tuple(token_ids), near, is_near=True)
        if longest == 0:
            return Proposal()
        if self._recent is not None and shared.length > match.length:
            return Proposal(tuple(self._recent.copy(limit)), longest)
        return Proposal(tuple(self._automaton.copy(match.position, limit)), longest)

    def _follow(self) -> None:
        """Find the place that is copied from after one more token."""
        self._since += 1
        agreed = 0
        if self._place >= 0:
            self._place += 1
            agreed = self._automaton.agreement(self._place, _LONGEST)
        match = self._automaton.match
        if match.length >= _SURE and min(match.length, _LONGEST) >= agreed + _FAR:
            self._place, agreed = match.position, match.length  # it copies from somewhere else
        if agreed >= _SURE or 0 < agreed == self._place:  # or it is the very beginning
            self._sure, self._since = self._place, 0
        elif self._since > _GIVEN_UP:
            self._place = self._sure = -1
        elif agreed == 0 and self._sure >= 0:
            length, place = self._automaton.nearest(
                self._sure, before=_BEFORE, after=_AFTER, most=_SURE
            )
            self._place = place if length > 0 else -1

    def _index(self, token_ids: Sequence[int]) -> None:
        """Append a text to the automaton."""
        tokens = np.asarray(token_ids, np.int32)
        for start in range(0, len(tokens), _BULK):
            self._automaton.extend(tokens[start : start + _BULK])


class RecentTexts:
    """Recent answers under one root, of which the oldest go when there are too many."""

    def __init__(self, max_tokens: int = MAX_RECENT_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.automaton = SuffixAutomaton(max_tokens)  # another one when texts have gone
        self._texts: deque[NDArray[np.int32]] = deque()

    def add(self, token_ids: Sequence[int]) -> None:
        """Add an answer; of a very long one the end."""
        text = np.asarray(token_ids[-(self.max_tokens // 4) :], np.int32)
        self._texts.append(text)
        if len(self.automaton) + len(text) + 1 > self.max_tokens:
            kept = sum(len(each) + 1 for each in self._texts)
            while kept > self.max_tokens // 2:  # so that it is not built anew each time
                kept -= len(self._texts.popleft()) + 1
            self.automaton = SuffixAutomaton(self.max_tokens)
            for each in self._texts:
                self._append(each)
        else:
            self._append(text)

    def _append(self, text: NDArray[np.int32]) -> None:
        self.automaton.extend(text)
        self.automaton.separate()


class _RecentReader:
    """Where the end of one request's text occurs in recent ones."""

    def __init__(self, texts: RecentTexts) -> None:
        self._texts = texts
        self._automaton = texts.automaton
        self._reader = SuffixReader(self._automaton)
        self._last: deque[int] = deque(maxlen=_LONGEST)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Read on."""
        self._last.extend(token_ids)
        if self._automaton is self._texts.automaton:
            self._reader.extend(np.asarray(token_ids, np.int32))
        else:
            self._automaton = self._texts.automaton
            self._reader = SuffixReader(self._automaton)
            self._reader.extend(np.asarray(self._last, np.int32))

    @property
    def match(self) -> SuffixMatch:
        """The longest suffix that occurs."""
        return self._reader.match

    def copy(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that followed it."""
        return self._automaton.copy(self.match.position, limit)


class TextDrafter:
    """Guesses from texts for any number of requests; keeps an index of each that it is asked for.

    Its memory is bounded: a request for which there is no room is not guessed for any more.
    """

    def __init__(self, *, max_tokens: int = MAX_TOKENS) -> None:
        """max_tokens: of all requests at once; recent answers come beside them."""
        self._max_tokens = max_tokens
        self._held = 0
        self._indices: dict[Request, tuple[TextIndex | None, int]] = {}  # and tokens it has seen
        self._recent: OrderedDict[bytes, RecentTexts] = OrderedDict()

    def propose(self, request: Request, limit: int) -> Draft:
        """Return up to `limit` tokens that may follow `request.tokens`."""
        index = self._index(request)
        if index is None:
            return Draft()
        proposal = index.propose(limit)
        return Draft(proposal.token_ids, proposal.kinds)

    def forget(self, request: Request) -> None:
        """Free the request's index; what it answered may be repeated by later ones."""
        index, _ = self._indices.pop(request, (None, 0))
        self._held -= len(index or ())
        if index is not None and len(request.output_ids) > _SURE:
            self._recent_of(request).add(request.output_ids)

    def _index(self, request: Request) -> TextIndex | None:
        """Return the request's index, in step with its tokens; None if there was no room."""
        index, seen = self._indices.get(request, (None, 0))
        size = len(request.tokens)
        if seen == 0:
            index = self._new_index(request)
            seen = len(request.prompt_ids)
        if index is not None:
            before = len(index)
            index.extend(request.tokens[seen:])
            self._held += len(index) - before
            if index.is_full or self._held > self._max_tokens:
                self._held -= len(index)
                index = None
        self._indices[request] = index, size
        return index

    def _new_index(self, request: Request) -> TextIndex | None:
        size = len(request.prediction_ids) + len(request.prompt_ids)
        if min(size, MAX_INDEX_TOKENS // 2) > self._max_tokens - self._held:
            return None
        recent = self._recent_of(request)
        index = TextIndex(request.prediction_ids, request.prompt_ids, recent=recent)
        self._held += len(index)
        return index

    def _recent_of(self, request: Request) -> RecentTexts:
        """Return the recent answers of the request's tenant and model."""
        texts = self._recent.pop(request.root, None) or RecentTexts()
        self._recent[request.root] = texts  # the newest
        while len(self._recent) > MAX_ROOTS:
            self._recent.popitem(last=False)
        return texts
