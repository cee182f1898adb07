"""Where the end of a text has occurred before, for drafts of what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dure.kernels import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int32]


class SuffixMatch(NamedTuple):
    """The `length` tokens before `position` are the last ones; length 0: there is no such place."""

    length: int
    position: int


class SuffixAutomaton:
    """An index of token texts that grows token by token (Blumer et al. 1985).

    A token costs constant time, amortised, whatever the text; at most 80 bytes a token are taken,
    of up to `max_tokens`. Token ids are at least 0. To be used by one thread at a time.
    """

    def __init__(self, max_tokens: int) -> None:
        """max_tokens: that it may ever hold, separators counted, 1 to 2**28."""
        self.packed = _core.SuffixAutomaton(max_tokens)
        self.max_tokens = max_tokens

    def __len__(self) -> int:
        """Return the number of tokens held, separators counted."""
        return len(self.packed)

    @property
    def nbytes(self) -> int:
        """Bytes taken so far."""
        return self.packed.nbytes

    def append(self, token_id: int) -> None:
        """Append one token. Raises ValueError if it is below 0, or there is no room."""
        self.packed.append(token_id)

    def extend(self, token_ids: Ints) -> None:
        """Append tokens (n,). Raises ValueError, and appends none, as `append` does."""
        self.packed.extend(token_ids)

    def separate(self) -> None:
        """End the text: no match goes over the border. It takes the room of a token."""
        self.packed.separate()

    @property
    def match(self) -> SuffixMatch:
        """The longest suffix of the current text that had occurred before, in any text.

        Its length is exact. The position is behind its most recent known occurrence: a state learns
        a new one when it is the longest match, or one of the four next shorter states, so a later
        one is missed if it was only met inside much longer matches.
        """
        return SuffixMatch(*self.packed.match)

    def agreement(self, position: int, most: int) -> int:
        """Return how many of the last `most` tokens stand before `position`, too."""
        return self.packed.agreement(position, most)

    def nearest(self, position: int, *, before: int, after: int, most: int) -> SuffixMatch:
        """Find the place around `position`, in its text, that agrees with most of the last tokens.

        It is from `before` tokens before it to `after` behind it; `most` tokens are compared. Of
        equals the nearest is taken, and of two as near the later.
        """
        return SuffixMatch(*self.packed.nearest(position, before, after, most))

    def copy(self, position: int, limit: int) -> list[int]:
        """Return up to `limit` tokens from `position` on, to the end of its text.

        Those of the current text go on with themselves: "abcab" from 2 on is "cabcabc…".
        """
        return self.packed.copy(position, limit)


class SuffixReader:
    """Reads a text of its own and knows how much of its end occurs in an automaton's texts.

    The automaton may grow meanwhile; any number of readers may share it.
    """

    def __init__(self, automaton: SuffixAutomaton) -> None:
        self._packed = _core.SuffixReader(automaton.packed)

    def extend(self, token_ids: Ints) -> None:
        """Read tokens (n,). Raises ValueError, and reads none, if one is below 0."""
        self._packed.extend(token_ids)

    @property
    def match(self) -> SuffixMatch:
        """The longest suffix of what was read that occurs, and the place behind it."""
        return SuffixMatch(*self._packed.match)
