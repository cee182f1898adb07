"""The twin of `suffix.SuffixAutomaton` that looks at every place. For tests."""

from __future__ import annotations

from collections.abc import Sequence

from dure.kernels.suffix import SuffixMatch

SEPARATOR = -1


class SuffixAutomaton:
    """The same by search: its match is the most recent of all, its time quadratic."""

    def __init__(self) -> None:
        self.text: list[int] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens."""
        self.text.extend(token_ids)

    def separate(self) -> None:
        """End the text."""
        self.text.append(SEPARATOR)

    @property
    def match(self) -> SuffixMatch:
        """The longest suffix that had occurred before, and its most recent occurrence."""
        return longest_match(self.text, self.text, range(len(self.text)))

    def agreement(self, position: int, most: int) -> int:
        """Return how many of the last `most` tokens stand before `position`, too."""
        return _agreement(self.text, self.text, position, most)

    def nearest(self, position: int, *, before: int, after: int, most: int) -> SuffixMatch:
        """Find the place around `position`, in its text, that agrees with most of the last."""
        places = [
            place
            for place in range(max(0, position - before), min(len(self.text), position + after + 1))
            if place < len(self.text)
            if SEPARATOR not in self.text[min(place, position) : max(place, position)]
        ]
        lengths = {place: _agreement(self.text, self.text, place, most) for place in places}
        longest = max(lengths.values(), default=0)
        if longest == 0:
            return SuffixMatch(0, position)
        equals = [place for place, length in lengths.items() if length == longest]
        return SuffixMatch(longest, min(equals, key=lambda p: (abs(p - position), p < position)))

    def copy(self, position: int, limit: int) -> list[int]:
        """Return up to `limit` tokens from `position` on, to the end of its text."""
        if position == len(self.text):
            return []
        longer = list(self.text)
        while len(longer) < position + limit:
            longer.append(longer[position + len(longer) - len(self.text)])
        tokens = longer[position : position + limit]
        return tokens[: tokens.index(SEPARATOR)] if SEPARATOR in tokens else tokens


def longest_match(read: Sequence[int], text: Sequence[int], places: Sequence[int]) -> SuffixMatch:
    """Return the longest suffix of `read` that stands before a place; of equals the last one."""
    best = SuffixMatch(0, 0)
    for place in places:
        length = _agreement(read, text, place, len(read))
        if length and length >= best.length:
            best = SuffixMatch(length, place)
    return best


def _agreement(read: Sequence[int], text: Sequence[int], position: int, most: int) -> int:
    length = 0
    for one, other in zip(reversed(read), reversed(text[:position]), strict=False):
        if one != other or one == SEPARATOR or length == most:
            break
        length += 1
    return length
