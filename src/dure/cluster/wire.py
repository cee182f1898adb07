"""A pass between two stages as bytes: its batch and hidden states, or why a stage failed.

A frame is 24 bytes (what it is, its pass's number, the size of the rest), then the rest. Arrays
are written as they lie in memory, little-endian, each filled up to 8 bytes: hidden states keep
every bit. Nothing in a frame is executed, and whatever is not exactly a frame is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.batch import Batch, CacheOps, States
from dure.errors import DureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAD = struct.Struct("<4sIQQ")
_ARRAY = struct.Struct("<BB6xQQ")  # type, dimensions, and their sizes
_MAGIC = b"dure"
PASS, FAILURE = 1, 2
MAX_FRAME = 1 << 31
"""Bytes: far more than 4,096 rows of the widest hidden states there are."""

_TYPES = (np.dtype("<i4"), np.dtype("<f4"))
_ABSENT = 255
_ALIGNED = 8
_ARRAYS = 15  # of a pass


class WireError(DureError):
    """Bytes came that are no frame."""


@dataclass(frozen=True)
class Frame:
    """What comes over a link."""

    kind: int  # PASS or FAILURE
    number: int  # of the pass
    body: memoryview


def pack(number: int, batch: Batch, x: NDArray[np.float32] | None) -> list[bytes | memoryview]:
    """Write a pass as the pieces of a frame, which are not copied.

    x: hidden states (n, hidden), or None on the way to the first stage.
    """
    pieces: list[bytes | memoryview] = []
    for values in _arrays(batch, x):
        if values is None:
            pieces.append(_ARRAY.pack(_ABSENT, 0, 0, 0))
            continue
        rows, columns = values.shape[0], values.shape[1] if values.ndim == 2 else 1
        kind = 1 if values.dtype == np.float32 else 0
        pieces.append(_ARRAY.pack(kind, values.ndim, rows, columns))
        if values.size:
            pieces.append(np.ascontiguousarray(values).data.cast("B"))
            pieces.append(bytes(-values.nbytes % _ALIGNED))
    return [_head(PASS, number, sum(map(len, pieces))), *pieces]


def pack_failure(number: int, message: str) -> list[bytes | memoryview]:
    """Write that a stage could not compute a pass, and why."""
    text = message.encode("utf-8", "replace")[:10_000]
    return [_head(FAILURE, number, len(text)), text]


def unpack(frame: Frame) -> tuple[Batch, NDArray[np.float32] | None]:
    """Read a pass: its batch, and hidden states (n, hidden) if it has any. Raises WireError."""
    arrays: list[NDArray[Any] | None] = []
    rest = frame.body
    try:
        for _ in range(_ARRAYS):
            kind, dimensions, rows, columns = _ARRAY.unpack_from(rest)
            rest = rest[_ARRAY.size :]
            if kind == _ABSENT:
                arrays.append(None)
                continue
            dtype, count = _TYPES[kind], rows * columns
            if dimensions not in (1, 2) or count * dtype.itemsize > len(rest):
                raise WireError("A stage sent an array that is longer than its frame.")
            values: NDArray[Any] = np.frombuffer(rest, dtype, count)
            arrays.append(values.reshape(rows, columns) if dimensions == 2 else values)
            size = count * dtype.itemsize
            rest = rest[size + -size % _ALIGNED :]
    except (struct.error, IndexError) as error:
        raise WireError("A stage sent a frame that is no pass.") from error
    if len(rest):
        raise WireError("A stage sent a frame with something behind its pass.")
    return _batch(arrays)


def read_head(data: bytes) -> tuple[int, int, int]:
    """Read a frame's first bytes: kind, number, size of the rest. Raises WireError."""
    magic, kind, number, size = HEAD.unpack(data)
    if magic != _MAGIC or kind not in (PASS, FAILURE) or size > MAX_FRAME:
        raise WireError("What came from another stage is no frame.")
    return kind, number, size


def _head(kind: int, number: int, size: int) -> bytes:
    return HEAD.pack(_MAGIC, kind, number, size)


def _arrays(batch: Batch, x: NDArray[np.float32] | None) -> list[NDArray[Any] | None]:
    states, ops = batch.states, batch.cache_ops
    return [
        batch.tokens,
        batch.positions,
        batch.sequences,
        batch.block_tables,
        batch.logit_rows,
        batch.hidden_rows,
        batch.window_tables,
        None if states is None else states.slots,
        None if states is None else states.snapshots,
        np.array(ops.clear_blocks, np.int32),
        _pairs(ops.copy_blocks),
        _pairs(ops.copy_states),
        np.array(ops.clear_window_blocks, np.int32),
        _pairs(ops.copy_window_blocks),
        x,
    ]


def _batch(arrays: list[NDArray[Any] | None]) -> tuple[Batch, NDArray[np.float32] | None]:
    needed = [each for i, each in enumerate(arrays) if i in (0, 1, 2, 3, 4, 9, 10, 11, 12, 13)]
    if any(each is None or each.dtype != np.int32 for each in needed):
        raise WireError("A stage sent a pass that lacks a part.")
    tokens, positions, sequences, tables, logit_rows, clear, blocks, moved, near, copied = needed
    hidden_rows, window_tables, slots, snapshots, x = (arrays[i] for i in (5, 6, 7, 8, 14))
    states = None
    if slots is not None and snapshots is not None:
        states = States(slots, snapshots)
    assert tokens is not None and positions is not None and sequences is not None
    assert tables is not None and logit_rows is not None
    ops = CacheOps(_whole(clear), _tuples(blocks), _tuples(moved), _whole(near), _tuples(copied))
    batch = Batch(
        tokens=tokens,
        positions=positions,
        sequences=sequences,
        block_tables=tables,
        logit_rows=logit_rows,
        hidden_rows=hidden_rows,
        window_tables=window_tables,
        states=states,
        cache_ops=ops,
    )
    return batch, x


def _pairs(pairs: tuple[tuple[int, int], ...]) -> NDArray[np.int32]:
    return np.array(pairs, np.int32).reshape(-1, 2)


def _whole(values: NDArray[Any] | None) -> tuple[int, ...]:
    return () if values is None else tuple(values.tolist())


def _tuples(values: NDArray[Any] | None) -> tuple[tuple[int, int], ...]:
    return () if values is None else tuple((a, b) for a, b in values.tolist())
