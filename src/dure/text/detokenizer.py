"""Detokenizer: turns token ids into text as soon as it is safe to show."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from dure.text.stop import StopSearch

if TYPE_CHECKING:
    from dure.text.tokenizer import Tokenizer


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
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopSearch(stop)
        self._drop_space = tokenizer.strips_leading_space and not continues

    @property
    def stopped(self) -> str | None:
        """The stop string that was met."""
        return self._stops.stopped

    def push(self, token_id: int) -> str:
        """Return the text that is now safe to show; empty once a stop string was met."""
        if self.stopped is not None or token_id in self._skipped:
            return ""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return the text held back, with U+FFFD for a character cut short."""
        shown = self._emit(self._decoder.decode(b"", final=True))
        return shown if self.stopped is not None else shown + self._stops.flush()

    def _emit(self, text: str) -> str:
        """Return what of the held text and `text` can be shown."""
        if self._drop_space and text:
            text = text.removeprefix(" ")
            self._drop_space = False
        return self._stops.push(text)
