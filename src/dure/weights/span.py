"""Which consecutive layers of a model are computed here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Span:
    """Layers `first` to `last` (excluded) of a model with `layers` of them; there may be none.

    Whoever begins at layer 0 has the embedding, and whoever ends with the last one has the last
    norm and the head, unless another span that may have no layer has these.
    """

    first: int
    last: int
    layers: int
    headless: bool = False

    def __bool__(self) -> bool:
        return self.first < self.last

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer < self.last

    @property
    def embeds(self) -> bool:
        """Whether tokens come in here."""
        return self.first == 0

    @property
    def ends(self) -> bool:
        """Whether logits come out here."""
        return self.last == self.layers and not self.headless

    @staticmethod
    def cut(layers: int, starts: tuple[int, ...]) -> tuple[Span, ...]:
        """Cut a model of so many layers before each of `starts`; the last has the head."""
        *before, (first, last) = pairwise((0, *starts, layers))
        spans = (Span(a, b, layers, headless=True) for a, b in before)
        return (*spans, Span(first, last, layers))
