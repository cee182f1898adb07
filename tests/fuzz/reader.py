"""Reader: one edge of dure that takes what comes from outside, and how its inputs are drawn."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Fault(Exception):  # noqa: N818 - it is what the driver calls it
    """An answer that nobody should ever get, found by looking at it."""


class Reader(ABC):
    """Draws inputs and reads them.

    A reader is made once per process and used for many inputs. What an input leaves behind must
    not matter for the next: each can be drawn and read again by its number alone.
    """

    name: str
    weight: float = 1  # its share of all inputs
    spare_mb: int = 400  # memory that one input may take

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        """folder: where it may write; small: seconds matter more than variety."""
        self.folder = folder
        self.small = small

    @abstractmethod
    def draw(self, rng: random.Random) -> Any:
        """Return an input; the same for the same state of `rng`."""

    @abstractmethod
    def read(self, drawn: Any) -> bool:
        """Read an input; return whether it was accepted. Raise anything for a fault."""

    def close(self) -> None:  # noqa: B027 - most have begun nothing
        """End what the reader has begun."""
