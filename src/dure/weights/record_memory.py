"""Memory for records that come and go: how much may they take now, and what of it is free?

Three bounds hold: what was planned, what the machine still has, and the limit of the process, which
holds whatever else it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from dure import kernels, machine

CHECK_SECONDS = 1.0
"""How often the machine is asked whether it still has memory."""

MARGIN_BYTES = 48 << 20
"""Below the limit of the process: records on their way, and what the kernel counts beside it."""

LEAST_FREE_BYTES = 64 << 20
"""Memory that the machine keeps: below it records give some back."""

FreeOne: TypeAlias = Callable[[], bool]
"""Gives the buffer of some record to the free ones; returns whether there was one to give."""


class RecordMemory:
    """Buffers of records, in use and free; in each step they stay below a ceiling."""

    def __init__(self, capacity: int, *, least: int, limit: int | None = None) -> None:
        """capacity: bytes that were planned; least: bytes to work with in any case.

        limit: bytes that the process must stay below, whatever was planned.
        """
        self.capacity = capacity
        self.taken = 0  # bytes of all buffers
        self._planned, self._least, self._limit = capacity, least, limit
        self._ceiling = capacity  # bytes that all buffers may take in this step
        self._free: dict[int, list[kernels.ExpertBuffer]] = {}  # by size
        self._gave_way = False  # whether the last step needed some of the capacity
        self._checked = 0.0

    @property
    def free_bytes(self) -> int:
        """Bytes of the buffers that are free."""
        return sum(size * len(buffers) for size, buffers in self._free.items())

    def begin_step(self, reserved: int, free_one: FreeOne) -> None:
        """Leave `reserved` bytes of the capacity to a step, and give back what there is no more.

        What the machine was given is taken again when it has memory, up to what was planned.
        """
        now = time.monotonic()
        if now - self._checked > CHECK_SECONDS:
            self._checked = now
            room = machine.memory_available() - LEAST_FREE_BYTES
            if room < 0:
                self.capacity = max(self._least, self.taken + room)
            else:  # half of what is free again, so that two programs do not take turns
                grown = min(self._planned, self.taken + room // 2)
                self.capacity = max(self.capacity, grown)
        if self._gave_way and not reserved:
            kernels.release_free_memory()  # what its buffers took, and the allocator still has
        self._gave_way = reserved > 0
        self._keep_below(self.capacity - reserved, free_one)

    def stay_below_limit(self, coming: int, free_one: FreeOne) -> None:
        """Lower the ceiling of this step to what the process's limit leaves.

        coming: bytes that the process will take soon, besides new buffers.
        """
        filled = None if self._limit is None else machine.process_bytes()
        if self._limit is None or filled is None:
            return
        room = self._limit - filled - coming - MARGIN_BYTES
        self._keep_below(min(self._ceiling, self.taken + room), free_one)

    def take(self, size: int, free_one: FreeOne) -> kernels.ExpertBuffer | None:
        """Return memory for a record, that of another if need be; None without."""
        while True:
            if self._free.get(size):
                return self._free[size].pop()
            if self.taken + size <= self._ceiling:
                with suppress(MemoryError):
                    buffer = kernels.ExpertBuffer(1, size)
                    self.taken += size
                    return buffer
                self.capacity -= self._ceiling - self.taken  # the machine has no more
                self._ceiling = self.taken
            other = self._spare()
            if other is None:
                if not free_one():
                    return None
                continue
            self.taken -= other.record_bytes
            if self.taken + size <= self._ceiling:
                with suppress(MemoryError):
                    other.resize(size)
                    self.taken += size
                    return other

    def give(self, buffer: kernels.ExpertBuffer) -> None:
        """Take back the memory of a record, for the next."""
        self._free.setdefault(buffer.record_bytes, []).append(buffer)

    def _spare(self) -> kernels.ExpertBuffer | None:
        """Return a buffer that is free, of any size."""
        return next((buffers.pop() for buffers in self._free.values() if buffers), None)

    def _keep_below(self, ceiling: int, free_one: FreeOne) -> None:
        """Give back what buffers take above the ceiling of this step, which leaves the least."""
        self._ceiling = max(ceiling, self._least)
        while self.taken > self._ceiling:
            spare = self._spare()
            if spare is not None:
                self.taken -= spare.record_bytes
            elif not free_one():
                return
