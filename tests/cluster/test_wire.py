"""Passes as bytes: every bit comes out as it went in, and what is no frame is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dure.batch import Batch, CacheOps, States
from dure.cluster import wire


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


PLAIN = Batch(ints(1, 2, 3), ints(0, 1, 2), ints(0, 0, 0), ints([0, 5]), ints(2))
FULL = Batch(
    ints(7),
    ints(40),
    ints(0),
    ints([3, -1]),
    ints(),
    hidden_rows=ints(0),
    window_tables=ints([-1, 2]),
    states=States(ints(4), ints([0, 6])),
    cache_ops=CacheOps((1, 2), ((3, 4),), ((5, 6), (7, 8)), (9,), ((1, 0),)),
)
STATES = np.random.default_rng(0).integers(0, 2**32, (3, 8), np.uint32).view(np.float32)


def packed(batch: Batch, x: np.ndarray | None) -> bytes:
    return b"".join(bytes(piece) for piece in wire.pack(5, batch, x))


def frame_of(data: bytes) -> wire.Frame:
    kind, number, size = wire.read_head(data[: wire.HEAD.size])
    body = memoryview(bytearray(data[wire.HEAD.size :]))
    assert size == len(body)
    return wire.Frame(kind, number, body)


@pytest.mark.parametrize("batch", [PLAIN, FULL])
@pytest.mark.parametrize("x", [None, STATES, STATES[:, :5][:1], np.zeros((0, 8), np.float32)])
def test_a_pass_comes_out_as_it_went_in(batch: Batch, x: np.ndarray | None) -> None:
    frame = frame_of(packed(batch, x))
    found, states = wire.unpack(frame)
    assert (frame.kind, frame.number) == (wire.PASS, 5)
    assert found.cache_ops == batch.cache_ops
    for field in dataclasses.fields(Batch):
        one, other = getattr(batch, field.name), getattr(found, field.name)
        if isinstance(one, np.ndarray):
            assert other.dtype == one.dtype
            assert np.array_equal(one, other)
            assert one.shape == other.shape
        elif field.name == "states":
            assert (one is None) == (other is None)
            if one is not None:
                assert np.array_equal(one.slots, other.slots)
                assert np.array_equal(one.snapshots, other.snapshots)
    if x is None:
        assert states is None
    else:
        assert states.shape == x.shape
        assert states.tobytes() == x.tobytes()  # not-a-numbers and their payloads, too
        assert states.flags.aligned


def test_a_failure_keeps_its_words() -> None:
    pieces = wire.pack_failure(9, "a kernel failed: ü")
    frame = frame_of(b"".join(bytes(piece) for piece in pieces))
    assert (frame.kind, frame.number) == (wire.FAILURE, 9)
    assert str(frame.body, "utf-8") == "a kernel failed: ü"


def test_what_is_no_frame_is_refused() -> None:
    data = packed(FULL, STATES[:1])
    body = data[wire.HEAD.size :]
    for end in range(0, len(body), 7):
        with pytest.raises(wire.WireError):
            wire.unpack(wire.Frame(wire.PASS, 1, memoryview(body[:end])))
    with pytest.raises(wire.WireError):
        wire.unpack(wire.Frame(wire.PASS, 1, memoryview(body + b"x")))
    rng = np.random.default_rng(1)
    for _ in range(200):  # whatever comes: an answer, or this error, and no other
        changed = bytearray(body)
        changed[rng.integers(len(changed))] = rng.integers(256)
        try:
            wire.unpack(wire.Frame(wire.PASS, 1, memoryview(changed)))
        except wire.WireError:
            continue
    for head in (b"HTTP" + data[4:24], wire.HEAD.pack(b"dure", 3, 1, 1)):
        with pytest.raises(wire.WireError):
            wire.read_head(head)
    with pytest.raises(wire.WireError):
        wire.read_head(wire.HEAD.pack(b"dure", 1, 1, wire.MAX_FRAME + 1))
