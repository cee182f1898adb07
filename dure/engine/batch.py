"""Scheduled chunks as the arrays that a model's forward pass takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.batch import Batch, States
from dure.engine.scheduler import Chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray


def build_batch(chunks: Sequence[Chunk], cache: tuple[NDArray[Any], ...]) -> Batch:
    """One Batch with a sequence a chunk, in order; of each the rows whose logits are wanted."""
    counts = np.array([chunk.count for chunk in chunks])
    tables = [chunk.request.block_table for chunk in chunks]
    block_tables = np.full((len(chunks), max(map(len, tables))), -1, dtype=np.int32)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    spans = [(chunk.start, chunk.start + chunk.count) for chunk in chunks]
    return Batch(
        tokens=np.concatenate(
            [
                np.array(chunk.request.tokens[start:stop], dtype=np.int32)
                for chunk, (start, stop) in zip(chunks, spans, strict=True)
            ]
        ),
        positions=np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in spans]),
        sequences=np.repeat(np.arange(len(chunks), dtype=np.int32), counts),
        block_tables=block_tables,
        logit_rows=_logit_rows(chunks),
        cache=cache,
        states=_states(chunks) if chunks[0].request.state_slot >= 0 else None,
    )


def _logit_rows(chunks: Sequence[Chunk]) -> NDArray[np.int32]:
    """The rows that score prompt tokens, and the last of each chunk that `wants_logits`, int32."""
    rows: list[int] = []
    first_row = 0
    for chunk in chunks:
        rows += range(first_row, first_row + chunk.scored)
        first_row += chunk.count
        if chunk.wants_logits:
            rows.append(first_row - 1)
    return np.array(rows, dtype=np.int32)


def _states(chunks: Sequence[Chunk]) -> States:
    """Each chunk's slot, and the snapshots that fall into it."""
    saves, first_row = [], 0
    for chunk in chunks:
        for position, slot in chunk.request.saves:
            if chunk.start < position <= chunk.start + chunk.count:
                saves.append((first_row + position - chunk.start - 1, slot))
        first_row += chunk.count
    return States(
        slots=np.array([chunk.request.state_slot for chunk in chunks], dtype=np.int32),
        saves=np.array(saves, dtype=np.int32).reshape(-1, 2),
    )
