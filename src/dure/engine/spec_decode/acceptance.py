"""Acceptance: how often are guesses of a kind right? Of one request, and of all so far."""

from __future__ import annotations

# Before anything was seen: how often a guess is right, by its kind or else the kind's first word.
# Measured on code, JSON and prose with a 1.5B model; what is seen soon outweighs it.
_FIRST_RATES = {
    "forced": 1.0,
    "grammar": 0.9,
    "text": 0.5,
    "text:far:1": 0.2,  # a word that was there before: prose is full of them
    "text:far:2": 0.2,
    "text:near:1": 0.2,
    **{f"text:{where}:{length}": 0.9 for where in ("near", "far") for length in (6, 9, 16, 32)},
    "model": 0.7,
    "heads": 0.7,
}
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
        """Return the chance that the next guess of `kind` is right, if all before it are.

        What was seen of the kind's family counts for kinds of which little was seen: where texts
        mislead, those with longer matches do, too.
        """
        before, weight = self._before(kind), self._weight
        family, _, finer = kind.partition(":")
        if finer:
            usual = self._before(family)
            before *= min(1.0, self._blend(family, usual, weight) / usual)
        return self._blend(kind, before, weight)

    @property
    def _weight(self) -> float:
        """How many guesses what is believed before is worth."""
        return _FIRST_WEIGHT if self._parent is None else _REQUEST_WEIGHT

    def _before(self, kind: str) -> float:
        """Return what is believed of a kind before anything was seen here."""
        if self._parent is not None:
            return self._parent(kind)
        return _FIRST_RATES.get(kind, _FIRST_RATES.get(kind.partition(":")[0], 0.5))

    def _blend(self, kind: str, before: float, weight: float) -> float:
        right, total = self._counts.get(kind, (0.0, 0.0))
        return (right + weight * before) / (total + weight)
