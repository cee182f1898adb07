"""What a model's guesses have in common: their batches, their draws, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.batch import Batch

if TYPE_CHECKING:
    from dure.engine.request import Request

_SURE = (0.3, 0.6, 0.8, 0.95)
"""Guesses with probabilities between two of these are counted as one kind."""


@dataclass(frozen=True)
class Rows:
    """Rows of one request in a pass of what guesses."""

    request: Request
    start: int  # the first row's position
    token_ids: Sequence[int]
    is_wanted: bool  # the logits of the last row


def rows_batch(rows: Sequence[Rows]) -> Batch:
    """Return the rows as one batch, whose logit rows are the last of each that is wanted."""
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    wanted: list[int] = []
    width = max(len(each.request.block_table) for each in rows)
    tables = np.full((len(rows), width), -1, dtype=np.int32)
    for index, each in enumerate(rows):
        tokens += each.token_ids
        positions += range(each.start, each.start + len(each.token_ids))
        sequences += [index] * len(each.token_ids)
        tables[index, : len(each.request.block_table)] = each.request.block_table
        if each.is_wanted:
            wanted.append(len(tokens) - 1)
    return Batch(
        tokens=np.array(tokens, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        sequences=np.array(sequences, dtype=np.int32),
        block_tables=tables,
        logit_rows=np.array(wanted, dtype=np.int32),
    )


def kind_of(name: str, probability: float) -> str:
    """Return the kind of a guess that has this probability for what guesses."""
    return f"{name}:{sum(probability >= bound for bound in _SURE)}"
