"""Scheduled chunks as the arrays that a model's forward pass takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dure.batch import Batch, CacheOps, States
from dure.engine.scheduler import Chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray


def build_batch(
    chunks: Sequence[Chunk],
    cache_ops: CacheOps,
    interrupted: Callable[[], bool] | None = None,
) -> Batch:
    """Return one Batch with a sequence a chunk, in order, and the rows whose logits are wanted.

    cache_ops: what the runner does to its cache first. interrupted: whether to give the pass up.
    """
    # Lists first: most chunks are one token, and a call of numpy takes as long as fifty of those.
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    tables: list[int] = []
    width = max(len(chunk.request.block_table) for chunk in chunks)
    for index, chunk in enumerate(chunks):
        stop = chunk.start + chunk.count
        tokens += chunk.request.tokens[chunk.start : stop - len(chunk.drafts)]
        tokens += chunk.drafts
        positions += range(chunk.start, stop)
        sequences += [index] * chunk.count
        tables += chunk.request.block_table
        tables += [-1] * (width - len(chunk.request.block_table))
    return Batch(
        tokens=np.array(tokens, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        sequences=np.array(sequences, dtype=np.int32),
        block_tables=np.array(tables, dtype=np.int32).reshape(len(chunks), width),
        logit_rows=_rows([chunk.logit_rows for chunk in chunks], chunks),
        hidden_rows=_hidden_rows(chunks),
        window_tables=_window_tables(chunks, width),
        states=_states(chunks) if chunks[0].request.state_slot >= 0 else None,
        cache_ops=cache_ops,
        # A recurrent state that is left in the middle of a pass cannot be gone on from.
        interrupted=interrupted if chunks[0].request.state_slot < 0 else None,
    )


def _window_tables(chunks: Sequence[Chunk], width: int) -> NDArray[np.int32] | None:
    """Return the tables (chunks, width) of layers with a window; None if there are none."""
    if not chunks[0].request.window_blocks:
        return None
    tables = np.full((len(chunks), width), -1, dtype=np.int32)
    for table, chunk in zip(tables, chunks, strict=True):
        first, blocks = chunk.request.window_first, chunk.request.window_blocks
        table[first : first + len(blocks)] = blocks
    return tables


def _rows(of_each: Sequence[Sequence[int]], chunks: Sequence[Chunk]) -> NDArray[np.int32]:
    """Return rows of each chunk as rows of the batch, int32."""
    rows: list[int] = []
    first_row = 0
    for chunk, wanted in zip(chunks, of_each, strict=True):
        rows += [first_row + row for row in wanted]
        first_row += chunk.count
    return np.array(rows, dtype=np.int32)


def _hidden_rows(chunks: Sequence[Chunk]) -> NDArray[np.int32] | None:
    """Return each chunk's `hidden_rows` as rows of the batch; None if nobody wants one."""
    wanted = [chunk.hidden_rows for chunk in chunks]
    return _rows(wanted, chunks) if any(wanted) else None


def _states(chunks: Sequence[Chunk]) -> States:
    """Return each chunk's state slot, and the snapshots that fall into it."""
    snapshots, first_row = [], 0
    for chunk in chunks:
        for position, slot in chunk.request.snapshots:
            if chunk.start < position <= chunk.start + chunk.count:
                snapshots.append((first_row + position - chunk.start - 1, slot))
        first_row += chunk.count
        # A state after each row but the last, should the draft behind it be wrong.
        first_draft = first_row - len(chunk.drafts) - 1
        snapshots += [(first_draft + i, slot) for i, slot in enumerate(chunk.request.draft_slots)]
    return States(
        slots=np.array([chunk.request.state_slot for chunk in chunks], dtype=np.int32),
        snapshots=np.array(snapshots, dtype=np.int32).reshape(-1, 2),
    )
