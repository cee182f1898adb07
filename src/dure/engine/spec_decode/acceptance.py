"""Acceptance: how often are guesses of a kind right? Of one request, and of all so far."""

from __future__ import annotations

# Before anything was seen: how often a guess is right, by the first word of its kind. Measured on
# code, JSON and prose with a 1.5B model; what is seen soon outweighs it.
_FIRST_RATES = {"forced": 1.0, "grammar": 0.9, "text": 0.5, "model": 0.7, "heads": 0.7}
_FIRST_WEIGHT = 4.0
_REQUEST_WEIGHT = 3.0  # how many guesses of its own outweigh what other requests saw
_KEPT = 0.9  # of a count when one more comes: texts change
_KEPT_GLOBAL = 0.995
_FADED = 0.99  # of a count when it may be out of date
_MAX_KINDS = 64


class Rates:
    """The share of right guesses of each kind, where the newest count most."""

    def __init__(self, parent: Rates | None = None) -> None:
        """parent: what is believed before there is anything of one's own."""
        self._parent = parent
        self._counts: dict[str, tuple[float, float]] = {}  # kind -> (right, all), fading

    def add(self, kind: str, is_right: bool) -> None:
        """Count one guess."""
        kept = _KEPT_GLOBAL if self._parent is None else _KEPT
        right, total = self._counts.get(kind, (0.0, 0.0))
        if len(self._counts) < _MAX_KINDS or kind in self._counts:
            self._counts[kind] = kept * right + is_right, kept * total + 1
        if self._parent is not None:
            self._parent.add(kind, is_right)

    def fade(self, kind: str) -> None:
        """Believe a little less what was seen of a kind, as there is nothing new of it."""
        if kind in self._counts:
            right, total = self._counts[kind]
            self._counts[kind] = _FADED * right, _FADED * total

    def __call__(self, kind: str) -> float:
        """Return the chance that the next guess of `kind` is right, if all before it are."""
        right, total = self._counts.get(kind, (0.0, 0.0))
        if self._parent is None:
            weight, before = _FIRST_WEIGHT, _FIRST_RATES.get(kind.partition(":")[0], 0.5)
        else:
            weight, before = _REQUEST_WEIGHT, self._parent(kind)
        return (right + weight * before) / (total + weight)
