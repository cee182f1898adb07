"""StopSearch: finds stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from dure.errors import InvalidRequestError


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
        """Return whether `character` completes the stop string. Not to be called after that."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)


class StopSearch:
    """Cuts a text before the first stop string to be completed, in constant time per character.

    Of several that are completed at once the longest counts. What may yet become a stop string is
    held back. stopped: the stop string that was found. held: the text held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raise InvalidRequestError for an empty stop string."""
        if isinstance(stops, str) or not all(isinstance(text, str) and text for text in stops):
            raise InvalidRequestError(
                "stop must be a list of texts, none of them empty", hint='stop=["\\n\\n"]'
            )
        self.stopped: str | None = None
        self.held = ""
        # Longest first: of stops completed by the same character, the longest began first.
        self._finders = [_StopFinder(text) for text in sorted(set(stops), key=len, reverse=True)]

    def __bool__(self) -> bool:
        return bool(self._finders)

    def push(self, text: str) -> str:
        """Return what of the held text and `text` can be shown; empty once a stop was found."""
        if self.stopped is not None:
            return ""
        if not self._finders:
            return text
        start = len(self.held)
        self.held += text
        for index, character in enumerate(text):
            # Every finder reads every character: a list, not any(), which would stop at the first.
            done = [finder for finder in self._finders if finder.read(character)]
            if done:
                self.stopped = done[0].stop
                shown = self.held[: start + index + 1 - len(self.stopped)]
                self.held = ""
                return shown
        cut = len(self.held) - max(finder.matched for finder in self._finders)
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def flush(self) -> str:
        """Return the text held back; no stop string goes on from it."""
        shown, self.held = self.held, ""
        for finder in self._finders:
            finder.matched = 0
        return shown
