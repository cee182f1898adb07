"""Byte-level BPE straight from a GGUF file's lists of tokens and merges.

The tokenizers library does the same from tables of its own, which take it 0.3 s to build for
150,000 tokens: a third of what lies between starting a 1.5B model and its first token. Here the
file's own strings are the tables; the library still cuts text into words. Long texts are left to
the library, which is faster from there on and lets other threads run meanwhile.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers

# A text has far fewer different words than words; no more of them are remembered than this.
_MOST_REMEMBERED = 1 << 15
_LONGEST_REMEMBERED = 64  # characters
_LONG = 32_000  # characters, above which a text is the library's: a tenth of a second of ours


class Ranks(Protocol):
    """Looks up a merge's rank: its place in the list of merges."""

    def get(self, merge: str, /) -> int | None:
        """Return the rank of the merge "left right", or None if there is no such merge."""


class RanksOfTokens:
    """The ranks of merges whose results are the tokens from `first` on, in the same order.

    Training leaves them so. A merge's rank then follows from its result's id, without a table.
    """

    def __init__(self, merges: Sequence[str], ids: Mapping[str, int], first: int) -> None:
        self._merges, self._ids, self._first = merges, ids, first

    def get(self, merge: str, /) -> int | None:
        """Return the rank of the merge "left right", or None if there is no such merge."""
        place = self._ids.get(merge.replace(" ", ""), -1) - self._first
        known = 0 <= place < len(self._merges) and self._merges[place] == merge
        return place if known else None


class Merges:
    """Byte-pair encoding of words (Sennrich et al. 2016, arXiv 1508.07909).

    The pair that comes first in the list of merges is merged first; of equal ones, the leftmost.
    """

    def __init__(self, ids: Mapping[str, int], ranks: Ranks, *, takes_whole: bool) -> None:
        """Take the vocabulary and the merges' ranks; every merge's result must have an id.

        takes_whole: a word that is itself a token is not split, whatever the merges say.
        """
        self._ids, self._ranks, self._takes_whole = ids, ranks, takes_whole
        self._known: dict[str, list[int]] = {}

    def ids_of(self, word: str) -> list[int]:
        """Return the ids of one word; letters that are no tokens have none."""
        known = self._known.get(word)
        if known is not None:
            return known
        if self._takes_whole and word in self._ids:
            found = [self._ids[word]]
        else:
            found = [self._ids[part] for part in self._joined([c for c in word if c in self._ids])]
        if len(word) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[word] = found
        return found

    def _joined(self, letters: list[str]) -> Iterator[str]:
        """Return what the letters become."""
        parts: list[str] = [*letters, ""]  # the empty part ends the word and joins nothing
        after = list(range(1, len(letters) + 1))
        before = list(range(-1, len(letters)))
        waiting = [
            (rank, at, left + right)
            for at, (left, right) in enumerate(pairwise(letters))
            if (rank := self._ranks.get(f"{left} {right}")) is not None
        ]
        heapify(waiting)
        while waiting:
            _, at, union = heappop(waiting)
            # Neighbours that have changed since wait no more, unless they still make the same.
            if not parts[at] or parts[at] + parts[after[at]] != union:
                continue
            if self._ranks.get(f"{parts[at]} {parts[after[at]]}") is None:
                continue
            gone = after[at]
            parts[at], parts[gone] = union, ""
            after[at] = following = after[gone]
            before[following] = at
            for first in (before[at], at):
                if first >= 0 and after[first] < len(letters):
                    left, right = parts[first], parts[after[first]]
                    rank = self._ranks.get(f"{left} {right}")
                    if rank is not None:
                        heappush(waiting, (rank, first, left + right))
        return filter(None, parts)


class LongTexts(Protocol):
    """An encoder that long texts are left to."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""


class WordEncoder:
    """Encodes texts: splits off added tokens, and encodes the words between them. Thread-safe.

    Of added tokens that begin at one place, the longest counts.
    """

    def __init__(
        self,
        merges: Merges,
        cutter: pre_tokenizers.PreTokenizer,
        ids: Mapping[str, int],
        added: Iterable[str],
        *,
        for_long: Callable[[], LongTexts] | None = None,
    ) -> None:
        """for_long: makes the encoder that long texts are left to, when the first one comes."""
        self.cutter, self._merges, self._ids = cutter, merges, ids
        self._for_long, self._making = for_long, threading.Lock()
        self._long: LongTexts | None = None
        names = sorted(filter(None, added), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        long_texts = self.long_texts() if len(text) > _LONG else None
        if long_texts is not None:
            return long_texts.encode(text)
        ids: list[int] = []
        pieces = [text] if self._added is None else self._added.split(text)
        for index, piece in enumerate(pieces):  # every second one is an added token
            if index % 2:
                ids.append(self._ids[piece])
            elif piece:
                for word, _ in self.cutter.pre_tokenize_str(piece):
                    ids += self._merges.ids_of(word)
        return ids

    def prepare_long(self) -> None:
        """Build the encoder that long texts are left to."""
        self.long_texts()

    def long_texts(self) -> LongTexts | None:
        """Return the encoder that long texts are left to, if there is one; it is built once."""
        if self._for_long is not None and self._long is None:
            with self._making:
                self._long = self._long or self._for_long()
        return self._long

    def token_to_id(self, text: str) -> int | None:
        """Return the id of the token written exactly so, or None."""
        return self._ids.get(text)
