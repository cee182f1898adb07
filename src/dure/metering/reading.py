"""What a source of energy says at one look, and what looking for a source found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Reading:
    """Joules since the last look, and how they were found: a word of dure.metering.cost."""

    joules: float
    how: str


class EnergySource(Protocol):
    """Something that knows, or estimates, what the machine takes."""

    def read(self, seconds: float, cpu_s: float) -> Reading | None:
        """Return the joules since the last call; None if it cannot say for this time.

        seconds: since the last call. cpu_s: processor seconds of this process in them.
        """


@dataclass(frozen=True)
class Found:
    """A source that was found, or why there is none."""

    source: EnergySource | None = None
    said: str = ""  # the source in a few words
    remark: str = ""  # why there is none, where a person can change that


class Source:
    """A source that is a function of (seconds, processor seconds) since the last look."""

    def __init__(self, read: Callable[[float, float], Reading | None]) -> None:
        self._read = read

    def read(self, seconds: float, cpu_s: float) -> Reading | None:
        """Return the joules since the last call, or None."""
        return self._read(seconds, cpu_s)
