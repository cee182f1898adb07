"""Detokenizer: turns token ids into text as soon as it is safe to show."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.text.tokenizer import Tokenizer


class _StopFinder:
    """Follows one stop string through a text, a character at a time (Knuth, Morris and Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # how much of `stop` the text read so far ends with
        self._fallback = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._fallback[length - 1]
            length += stop[index] == stop[length]
            self._fallback[index] = length

    def read(self, character: str) -> bool:
        """Return True when `character` completes the stop string. Not to be called after that."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)


class Detokenizer:
    """Decodes one generation as it comes, in constant time per character.

    All that push and finish return, joined, is `tokenizer.decode` of all ids, cut before the first
    stop string to be completed (the longest, where several are completed at once). Half a
    character and the beginning of a stop string are held back until the text decides.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        skip_special: bool = True,
        shown: AbstractSet[int] = frozenset(),
        continues: bool = False,
    ) -> None:
        """shown: special tokens to be kept all the same. `continues` as in Tokenizer.decode.

        Raises InvalidRequestError for an empty stop string.
        """
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise InvalidRequestError(
                "stop must be a list of texts, none of them empty", hint='stop=["\\n\\n"]'
            )
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # Longest first: of stops completed by the same character, the longest began first.
        self._finders = [_StopFinder(text) for text in sorted(set(stop), key=len, reverse=True)]
        self._held = ""
        self._drop_space = tokenizer.strips_leading_space and not continues

    def push(self, token_id: int) -> str:
        """Return the text that is now safe to show; empty once a stop string was met."""
        if self.stopped is not None or token_id in self._skipped:
            return ""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return the rest of the text: what was held back, and U+FFFD for a character cut short."""
        if self.stopped is not None:
            return ""
        shown = self._emit(self._decoder.decode(b"", final=True))
        if self.stopped is None:
            shown, self._held = shown + self._held, ""
        return shown

    def _emit(self, text: str) -> str:
        """Return what of the held text and `text` can be shown."""
        if self._drop_space and text:
            text = text.removeprefix(" ")
            self._drop_space = False
        if not self._finders:
            return text
        start = len(self._held)
        self._held += text
        for index, character in enumerate(text):
            # Every finder reads every character: a list, not any(), which would stop at the first.
            done = [finder for finder in self._finders if finder.read(character)]
            if done:
                self.stopped = done[0].stop
                shown = self._held[: start + index + 1 - len(self.stopped)]
                self._held = ""
                return shown
        keep = max(finder.matched for finder in self._finders)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown
