"""Memory for records: what other things do not fill yet is lent, and comes back before they do."""

from __future__ import annotations

import pytest

from dure import kernels, machine
from dure.weights.record_memory import LENT_MARGIN, MARGIN_BYTES, FreeOne, RecordMemory

MB = 1 << 20
RECORD = 4 * MB
LIMIT = 640 * MB
PLANNED = 200 * MB
OTHERS = 100 * MB  # of the process, besides records


class Process:
    """A process whose size is what it holds of records and of other things."""

    def __init__(self, memory: RecordMemory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory, self.others = memory, OTHERS
        self.used = []  # buffers of records
        monkeypatch.setattr(machine, "process_bytes", lambda: self.others + memory.taken)
        monkeypatch.setattr(machine, "memory_available", lambda: 10 * LIMIT)

    def free_one(self) -> bool:
        if not self.used:
            return False
        self.memory.give(self.used.pop())
        return True

    def step(self, *, beyond: int = 0, expected: int = 0) -> int:
        """Begin a step and take all records that there is room for; return their bytes."""
        free: FreeOne = self.free_one
        self.memory.begin_step(beyond, expected, 0, free)
        while (buffer := self.memory.take(RECORD, lambda: False)) is not None:
            self.used.append(buffer)
        return self.memory.taken


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(RecordMemory(PLANNED, least=RECORD, limit=LIMIT), monkeypatch)


def most(others: int, expected: int = 0) -> int:
    """Bytes of whole records below the limit, beside other things and the margins."""
    room = LIMIT - LIMIT // LENT_MARGIN - MARGIN_BYTES - others - expected
    return room // RECORD * RECORD


def test_records_get_what_is_planned_for_others_and_not_filled(process: Process) -> None:
    assert PLANNED < process.step() == most(OTHERS)


def test_what_was_lent_comes_back_as_others_fill_it(process: Process) -> None:
    process.step()
    process.others += 60 * MB
    assert process.step() == most(OTHERS + 60 * MB)
    process.others = LIMIT - MARGIN_BYTES - PLANNED  # all that was planned for them
    assert process.step() == PLANNED


def test_a_step_that_will_take_much_gets_it_before_it_begins(process: Process) -> None:
    process.step()
    assert process.step(expected=90 * MB) == most(OTHERS, 90 * MB)
    assert process.step(expected=LIMIT) == PLANNED  # nothing is lent
    assert process.step(expected=LIMIT, beyond=60 * MB) == PLANNED - 60 * MB
    assert process.step() == most(OTHERS)


def test_nothing_is_lent_while_the_machine_has_less_than_was_planned(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_available", lambda: 0)
    assert process.step() <= PLANNED


def test_where_the_machine_has_no_more_to_lend_what_was_planned_stays(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, there = kernels.ExpertBuffer, PLANNED + 10 * RECORD

    def buffer(count: int, size: int) -> kernels.ExpertBuffer:
        if process.memory.taken + size > there:
            raise MemoryError
        return make(count, size)

    monkeypatch.setattr(kernels, "ExpertBuffer", buffer)
    assert process.step() == there
    assert process.step() == there
    there = PLANNED // 2
    process.memory.stay_below_limit(LIMIT, process.free_one)
    assert process.step() <= there


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_nothing_is_lent_where_nobody_counts(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(RecordMemory(PLANNED, least=RECORD, limit=limit), monkeypatch)
    monkeypatch.setattr(machine, "process_bytes", lambda: None)
    assert process.step() == PLANNED
