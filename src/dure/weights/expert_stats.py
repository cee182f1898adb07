"""How often experts were in memory when a step needed them, and what reading the others took."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ExpertUse:
    """What steps took of experts that are read from disk. Everyone in a step has all of it.

    An expert that several rows of a step need in one layer counts once.
    """

    hits: int = 0  # needed experts that were in memory
    misses: int = 0  # needed experts that were not
    read_bytes: int = 0  # read from disk, for guesses too
    wait_s: float = 0.0  # seconds in which steps stood still for the disk
    guessed_right: int = 0  # experts read ahead of their need that were needed
    guessed_wrong: int = 0  # and those that were not

    @property
    def needed(self) -> int:
        """Experts that steps needed."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of needed experts that were in memory, 0 to 1; 1 if none was needed."""
        return self.hits / self.needed if self.needed else 1.0

    def __add__(self, other: ExpertUse) -> ExpertUse:
        return ExpertUse(*(a + b for a, b in zip(_counts(self), _counts(other), strict=True)))

    def __sub__(self, before: ExpertUse) -> ExpertUse:
        return ExpertUse(*(a - b for a, b in zip(_counts(self), _counts(before), strict=True)))


@dataclass
class ExpertStats:
    """What a pool of experts has counted since loading, and what it holds now.

    The first six only grow. Written by the thread that steps the model; read by any.
    """

    hits: int = 0  # experts that a layer's rows needed, and that were in memory
    misses: int = 0  # and that were not
    read_bytes: int = 0
    waited_seconds: float = 0.0  # for which steps stood still
    guessed_right: int = 0  # experts that were read because a layer was expected to need them
    guessed_wrong: int = 0
    experts: int = 0  # of all layers
    resident: int = 0  # of them, in memory
    resident_bytes: int = 0
    capacity_bytes: int = 0

    @property
    def use(self) -> ExpertUse:
        """The counts at this moment."""
        return ExpertUse(
            self.hits,
            self.misses,
            self.read_bytes,
            self.waited_seconds,
            self.guessed_right,
            self.guessed_wrong,
        )


def _counts(use: ExpertUse) -> list[int]:
    """List the counts in the order of the fields; one of them is a float."""
    return [getattr(use, each.name) for each in fields(use)]
