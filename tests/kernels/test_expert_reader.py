"""Experts that are read from disk are those in memory, in whatever order they come."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_inputs import bits, random_activations, random_raw

from dure import kernels
from dure.kernels.streaming import (
    CHANGED,
    ENDED,
    GUESSED,
    NEEDED,
    NOT_FINITE,
    WARMING,
    describe_error,
)

COUNT, HIDDEN, INTERMEDIATE = 6, 64, 96
SHAPES = {
    "gate": (INTERMEDIATE, HIDDEN),
    "up": (INTERMEDIATE, HIDDEN),
    "down": (HIDDEN, INTERMEDIATE),
}
TYPES = ("Q4_0", "Q4_0", "Q8_0")


class OnDisk:
    """Experts in a file, each matrix at an odd offset, and the same in memory."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        self.whole = kernels.Experts(COUNT, HIDDEN, INTERMEDIATE, *TYPES)
        self.path, data = folder / "experts", b"before"
        self.offsets: list[list[int]] = []
        for expert in range(COUNT):
            offsets = []
            for (part, (rows, cols)), dtype in zip(SHAPES.items(), TYPES, strict=True):
                raw = random_raw(rng, dtype, rows, cols)
                self.whole.fill(part, expert, raw)
                offsets.append(len(data))
                data += raw.tobytes() + b"between"
            self.offsets.append(offsets)
        self.path.write_bytes(data)
        self.experts = kernels.Experts(COUNT, HIDDEN, INTERMEDIATE, *TYPES, resident=False)
        self.buffer = kernels.ExpertBuffer(COUNT, self.experts.record_bytes)
        self.file = opened(self.path)

    def ask(self, reader: kernels.ExpertReader, expert: int, priority: int = NEEDED) -> None:
        """Place an expert and have it read, under the tag 1 + expert."""
        self.experts.place(expert, self.buffer, expert)
        parts = [(self.file, offset) for offset in self.offsets[expert]]
        reader.submit_parts(1 + expert, self.experts, expert, parts, priority)


def opened(path: Path) -> kernels.DirectFile:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return kernels.DirectFile(descriptor)
    finally:
        os.close(descriptor)


def taken(reader: kernels.ExpertReader, count: int) -> dict[int, int]:
    """The errors of so many records, by tag."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        found |= {tag: error for tag, error, _ in reader.take(1.0)}
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[OnDisk]:
    yield OnDisk(tmp_path)


@pytest.mark.parametrize("threads", [1, 4])
def test_records_that_are_read_have_the_bits_of_those_in_memory(disk: OnDisk, threads: int) -> None:
    reader = kernels.ExpertReader(threads)
    for expert, priority in zip(range(COUNT), [NEEDED, GUESSED, WARMING] * 2, strict=True):
        disk.ask(reader, expert, priority)
    assert taken(reader, COUNT) == dict.fromkeys(range(1, COUNT + 1), 0)
    for expert in range(COUNT):
        assert disk.experts.record(expert).tobytes() == disk.whole.record(expert).tobytes()
    assert 0 < reader.read_bytes < disk.path.stat().st_size


def test_a_ready_record_is_taken_as_it_is(disk: OnDisk, tmp_path: Path) -> None:
    records = tmp_path / "records"
    pages = b"".join(disk.whole.record(expert).tobytes() for expert in range(COUNT))
    records.write_bytes(bytes(4096) + pages)
    reader, file = kernels.ExpertReader(2), opened(records)
    size = disk.experts.record_bytes
    for expert in range(COUNT):
        disk.experts.place(expert, disk.buffer, expert)
        reader.submit_record(1 + expert, disk.experts, expert, file, 4096 + expert * size, NEEDED)
    assert set(taken(reader, COUNT).values()) == {0}
    for expert in range(COUNT):
        assert disk.experts.record(expert).tobytes() == disk.whole.record(expert).tobytes()
    with pytest.raises(ValueError, match="whole pages"):
        reader.submit_record(9, disk.experts, 0, file, 7, NEEDED)


def test_a_file_that_ends_or_changed_or_holds_a_nan_is_said_to(disk: OnDisk) -> None:
    reader = kernels.ExpertReader(2)
    disk.offsets[0][2] = disk.path.stat().st_size - 100
    disk.ask(reader, 0)
    assert taken(reader, 1) == {1: ENDED}
    with disk.path.open("r+b") as file:  # the scale of the first block
        file.seek(disk.offsets[1][0])
        file.write(np.float16(np.nan).tobytes())
    os.utime(disk.path, ns=(1, 1))
    disk.ask(reader, 1)
    assert taken(reader, 1) == {2: CHANGED}
    assert not disk.file.unchanged()
    disk.file = opened(disk.path)
    disk.ask(reader, 1)
    disk.ask(reader, 2)
    assert taken(reader, 2) == {2: NOT_FINITE, 3: 0}
    assert "shorter" in describe_error(ENDED)
    assert describe_error(errno.EIO) == os.strerror(errno.EIO)


def test_what_has_not_begun_can_be_dropped_and_what_others_made_comes_too(disk: OnDisk) -> None:
    reader = kernels.ExpertReader(1)
    for expert in range(COUNT):
        disk.ask(reader, expert, WARMING)
    reader.raise_to(COUNT, NEEDED)
    dropped = reader.cancel(COUNT - 1)
    assert not reader.cancel(77)
    reader.finish(99, 5)
    found = taken(reader, COUNT + 1 - dropped)
    assert found.pop(99) == 5
    assert set(found.values()) == {0}
    assert ((COUNT - 1) in found) != dropped


def test_rows_of_a_file_are_read_past_the_page_cache(disk: OnDisk) -> None:
    data = disk.path.read_bytes()
    for offset, size in ((0, 1), (5, 5000), (4096, 4096), (len(data) - 3, 3)):
        assert disk.file.read(offset, size).tobytes() == data[offset : offset + size]
    with pytest.raises(EOFError):
        disk.file.read(len(data) - 3, 4)
    assert disk.file.is_direct in (True, False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernels.DirectFile(-1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_pass_in_parts_has_the_bits_of_one_in_any_order(
    disk: OnDisk, rows: int, exact: bool
) -> None:
    rng = np.random.default_rng(rows)
    x = random_activations(rng, rows, HIDDEN)
    ids = np.array([rng.permutation(COUNT)[:3] for _ in range(rows)], np.int32)
    shares = rng.random((rows, 3), np.float32)
    add = random_activations(rng, rows, HIDDEN)
    expected = kernels.experts_mlp(x, ids, shares, disk.whole, add=add, exact=exact)
    product = kernels.experts_pass(x, ids, shares, disk.whole, exact=exact, threads=2)
    needed = rng.permutation(np.unique(ids)).tolist()
    for part in (needed[:1], needed[1:3], needed[3:]):
        product.run(part)
    np.testing.assert_array_equal(bits(product.sum(add)), bits(expected))


def test_rows_of_an_expert_that_is_left_out_spoil_no_others(disk: OnDisk) -> None:
    rng = np.random.default_rng(1)
    x = random_activations(rng, 12, HIDDEN)
    ids = np.array([[0, 1]] * 6 + [[2, 3]] * 6, np.int32)
    shares = np.ones((12, 2), np.float32)
    expected = kernels.experts_mlp(x, ids, shares, disk.whole)
    product = kernels.experts_pass(x, ids, shares, disk.whole, threads=1)
    product.leave_out([3])
    product.run([0, 1, 2])
    actual = product.sum(None)
    np.testing.assert_array_equal(bits(actual[:6]), bits(expected[:6]))
    assert np.isfinite(actual[6:]).all()
    assert not np.array_equal(actual[6:], expected[6:])
    with pytest.raises(ValueError, match="out of range"):
        product.run([COUNT])
    with pytest.raises(ValueError, match="not in memory"):
        kernels.experts_pass(x, ids, shares, disk.experts, threads=1).run([0])


def test_one_choice_of_several_experts_in_parts_is_the_same_as_at_once(disk: OnDisk) -> None:
    """With one expert a row, a part of the rows is not all of them."""
    rng = np.random.default_rng(2)
    x = random_activations(rng, 9, HIDDEN)
    ids = np.array([[0]] * 4 + [[5]] * 5, np.int32)
    shares = np.ones((9, 1), np.float32)
    expected = kernels.experts_mlp(x, ids, shares, disk.whole)
    product = kernels.experts_pass(x, ids, shares, disk.whole, threads=2)
    product.run([5])
    product.run([0])
    np.testing.assert_array_equal(bits(product.sum(None)), bits(expected))
