"""Slots of recurrent state: whose they are, and how a state that was passed is found again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class StatePool:
    """Slots that are each held by a sequence, or a snapshot that can be found, or empty.

    A state belongs to one position, so a prefix can be gone on from only where a snapshot of it was
    kept. Snapshots take the slots that nobody holds, and the least recently used one goes first.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._copies: list[tuple[int, int]] = []
        self._held: set[int] = set()
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_slots))
        # The digest of a prefix's full blocks -> the tokens after them -> the slot of that state.
        self._by_parent: dict[bytes, dict[tuple[int, ...], int]] = {}
        self._names: dict[int, tuple[bytes, tuple[int, ...]]] = {}  # slot -> its two keys above

    def __bool__(self) -> bool:
        """Return whether the model has recurrent states at all."""
        return self.num_slots > 0

    @property
    def num_free(self) -> int:
        """Slots that no sequence holds: empty ones and snapshots."""
        return len(self._free)

    def find(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """Find the snapshot after `parent` and the most of `tokens`: (slot, count), or (-1, 0).

        A slot with a count of 0 holds the state after `parent` itself.
        """
        slot, longest = -1, -1
        for tail, candidate in self._by_parent.get(parent, {}).items():
            if len(tail) > longest and tuple(tokens[: len(tail)]) == tail:
                slot, longest = candidate, len(tail)
        return slot, max(longest, 0)

    def allocate(self, source: int = -1) -> int:
        """Take a slot; the next pass copies the snapshot `source` there, if one is given.

        An empty slot, else the least recently used snapshot's. There must be one free.
        """
        if source >= 0:
            self._free.move_to_end(source)
        slot, _ = self._free.popitem(last=False)
        if source >= 0 and slot != source:
            self._copies.append((source, slot))
        self._forget(slot)
        self._held.add(slot)
        return slot

    def publish(self, slot: int, parent: bytes, tokens: Sequence[int]) -> None:
        """Turn the slot, so far held, into the snapshot after `parent` and `tokens`."""
        tail = tuple(tokens)
        existing = self._by_parent.get(parent, {}).get(tail)
        if existing is not None:
            self._free.move_to_end(existing)
            self.release(slot)
            return
        self._held.remove(slot)
        self._free[slot] = None
        self._by_parent.setdefault(parent, {})[tail] = slot
        self._names[slot] = parent, tail

    def release(self, slot: int) -> None:
        """Give the slot back: it is empty, and the first to be used again."""
        self._held.remove(slot)
        self._free[slot] = None
        self._free.move_to_end(slot, last=False)

    def forget(self, parents: Iterable[bytes]) -> None:
        """Make snapshots after these, which may be wrong, unfindable."""
        for parent in parents:
            for slot in list(self._by_parent.get(parent, {}).values()):
                self._forget(slot)
                self._free.move_to_end(slot, last=False)

    def forget_all(self) -> None:
        """Make all snapshots unfindable, and copy nothing: the contents are lost. None is held."""
        for slot in list(self._names):
            self._forget(slot)
        self._copies = []

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """Return the (source, target) slots to copy since the last call."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def check(self, slots: Sequence[int]) -> None:
        """Raise RuntimeError unless exactly these slots are held."""
        if sorted(self._held) != sorted(slots):
            raise RuntimeError(
                f"{len(self._held)} recurrent states leaked or shared: {len(slots)} are in use"
            )

    def _forget(self, slot: int) -> None:
        parent, tokens = self._names.pop(slot, (b"", ()))
        siblings = self._by_parent.get(parent)
        if siblings is None:
            return
        del siblings[tokens]
        if not siblings:
            del self._by_parent[parent]
