"""Where an expert's record can be had from, when it is not in memory.

A record is an expert's gate, up and down, packed for the kernels. A checkpoint has it in one of
three forms, and whoever reads it needs to know no more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dure import kernels
    from dure.formats.source import SourceFile


@dataclass(frozen=True)
class Extent:
    """Some bytes of a file."""

    source: SourceFile
    offset: int
    size: int


@dataclass(frozen=True)
class PackedOnArrival:
    """Three extents of source blocks, in the types that memory has them in; rows in order."""

    gate: Extent
    up: Extent
    down: Extent

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.gate.size + self.up.size + self.down.size


@dataclass(frozen=True)
class Ready:
    """A record as memory has it, at a multiple of 4,096 bytes."""

    extent: Extent

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.extent.size


@dataclass(frozen=True)
class Converted:
    """Parts in any other form: converted in Python on a thread of its own.

    write: called with a set and the number of an expert that has been placed there; fills it with
    `Experts.fill`. It may run on several threads at once, for different experts. size: bytes to
    read, about.
    """

    size: int
    write: Callable[[kernels.Experts, int], None]


RecordSource = PackedOnArrival | Ready | Converted
