"""Memory for records that come and go: how much may they take now, and what of it is free?

Three bounds hold: what was planned, what the machine still has, and the limit of the process, which
holds whatever else it takes. What was planned for something else and is not filled yet, as a cache
of conversations that are still short, is lent to records until then.
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

LENT_MARGIN = 64
"""Part of the limit that stays free where memory is lent: for what nobody foresees in a step."""

LARGE_STEP_BYTES = 16 << 20
"""What a step may take before the allocator is told to give it back after."""

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
        self._was_large = False  # whether the last step took much besides records
        self._checked = 0.0

    @property
    def free_bytes(self) -> int:
        """Bytes of the buffers that are free."""
        return sum(size * len(buffers) for size, buffers in self._free.items())

    @property
    def ceiling(self) -> int:
        """Bytes that all buffers may take in this step."""
        return self._ceiling

    def begin_step(self, beyond: int, expected: int, coming: int, free_one: FreeOne) -> None:
        """Say what a step takes besides records; give back what records may no longer have.

        beyond: bytes beyond those that every step was planned with; expected: all bytes that the
        process may not have yet; coming: of buffers that are being filled.
        What the machine was given is taken again when it has memory, up to what was planned.
        """
        now = time.monotonic()
        if now - self._checked > CHECK_SECONDS:
            self._checked = now
            free = machine.memory_available() - LEAST_FREE_BYTES
            if free < 0:
                self.capacity = max(self._least, self.taken + free)
            else:  # half of what is free again, so that two programs do not take turns
                grown = min(self._planned, self.taken + free // 2)
                self.capacity = max(self.capacity, grown)
        large = beyond > 0 or expected >= LARGE_STEP_BYTES
        if self._was_large and not large:
            kernels.release_free_memory()  # what its buffers took, and the allocator still has
        self._was_large = large
        ceiling, room = self.capacity - beyond, self._room(coming)
        if room is not None:
            assert self._limit is not None
            if self.capacity == self._planned:
                spare = room - expected - self._limit // LENT_MARGIN
                ceiling = max(ceiling, self.taken + spare)
            ceiling = min(ceiling, self.taken + room)
        self._keep_below(ceiling, free_one)

    def stay_below_limit(self, coming: int, free_one: FreeOne) -> None:
        """Lower the ceiling of this step to what the process's limit leaves.

        coming: bytes that the process will take soon, besides new buffers.
        """
        room = self._room(coming)
        if room is not None:
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
                # The machine has no more: of what was lent nothing is missed, of what was planned
                # what is not there.
                missed = max(0, min(self._ceiling, self.capacity) - self.taken)
                self.capacity = max(self._least, self.capacity - missed)
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

    def _room(self, coming: int) -> int | None:
        """Return the bytes below the process's limit; None where there is none, or none counted."""
        if self._limit is None:
            return None
        filled = machine.process_bytes()
        return None if filled is None else self._limit - filled - coming - MARGIN_BYTES

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
