"""A model that does not fit in memory whole: what of it stays on disk?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dure import hub
from dure.errors import DureError, NotEnoughMemoryError
from dure.loading.cache_size import ROWS
from dure.loading.expectation import expected_tps
from dure.weights.expert_history import ExpertHistory
from dure.weights.expert_pool import ExpertPool
from dure.weights.streaming_pool import StreamingExpertPool

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.loading.memory import MemoryUse
    from dure.loading.planner import Plan, Planner
    from dure.models import Model

_LOG = logging.getLogger(__name__)


def read_what_fits(
    read: Callable[[ExpertPool | None], Model],
    planner: Planner,
    *,
    probe: Callable[[], Model],
    may_leave: bool,
) -> tuple[Model, ExpertPool | None]:
    """Read a model whole; if that is too much, leave its experts or its embeddings on disk.

    read: reads it with a pool, or whole with None. probe: builds it without reading its matrices,
    so that it says what it caches. may_leave: whether anything may stay on disk. Returns the model
    and its pool, which is None of a whole one. Raises what `read` does.
    """
    if not may_leave:
        return read(None), None
    if planner.may_stream and not planner.fits(probe()):
        streaming = StreamingExpertPool(on_slow=_tell_slow)
        return read(streaming), streaming
    with suppress(NotEnoughMemoryError):
        return read(None), None
    pool = ExpertPool(leaves_rows=True)
    return read(pool), pool


def open_pool(
    pool: StreamingExpertPool,
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    threads: int,
    limit: int | None,
) -> MemoryUse:
    """Give the pool the cache that is planned. Returns the plan's memory, and the speed expected.

    limit: bytes that the process must stay below, whatever was planned.
    """
    use = plan.memory
    expected = expected_tps(
        pool,
        resident_bytes=use.resident_bytes,
        kept_bytes=use.expert_cache_bytes,
        threads=threads,
    )
    pool.open(
        use.expert_cache_bytes,
        rows=ROWS,
        row_bytes=plan.row_bytes,
        sequence_bytes=plan.sequence_bytes,
        limit=limit,
        history=_history(checkpoint),
    )
    return replace(use, expected_tps=expected)


def _history(checkpoint: Checkpoint) -> ExpertHistory | None:
    """Return where the use of this model's experts is remembered; None without a home folder."""
    try:
        folder = hub.state_folder("experts")
    except DureError:
        return None
    sources = {tensor.source for tensor in checkpoint.tensors.values()}
    return ExpertHistory(folder, [(source.path, source.size_bytes) for source in sources])


def _tell_slow(seconds: float) -> None:
    _LOG.warning("waiting for the disk: %.0f s for experts of one layer", seconds)
