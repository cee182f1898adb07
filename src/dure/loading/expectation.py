"""How fast a model will be whose experts are read from disk: said before the first token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.errors import DureError
from dure.weights.expert_records import PackedOnArrival, Ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dure.weights.expert_records import Extent
    from dure.weights.streaming_pool import StreamingExpertPool

SAMPLE_BYTES = 32 << 20
"""What is read to know the disk: a tenth of a second of a slow one."""

MEMORY_BYTES_PER_SECOND = 5e9
"""What a thread reads of packed weights, about: of processors of 2019 to 2025, 4 to 10."""

HITS_BY_SHARE = ((0.0, 0.0), (0.115, 0.53), (0.23, 0.76), (0.5, 0.93), (1.0, 1.0))
"""Share of experts in memory -> share of those that a token needs: Qwen3-30B-A3B, published."""


def expected_tps(
    pool: StreamingExpertPool, *, resident_bytes: int, kept_bytes: int, threads: int
) -> float | None:
    """Estimate tokens per second of one sequence that decodes; None if nothing can be measured.

    resident_bytes: of the weights that every token needs; kept_bytes: of experts in memory.
    """
    speed = _disk_speed(pool)
    if speed is None:
        return None
    shares, hit_rates = zip(*HITS_BY_SHARE, strict=True)
    hits = float(np.interp(kept_bytes / max(1, pool.nbytes), shares, hit_rates))
    active = pool.token_bytes
    computing = (resident_bytes + active) / (threads * MEMORY_BYTES_PER_SECOND)
    reading = (1 - hits) * active / speed
    return 1 / (computing + reading)


def _disk_speed(pool: StreamingExpertPool) -> float | None:
    """Return bytes a second of reads as large as experts; None if they are converted."""
    done, start = 0, time.perf_counter()
    for extent in _sample(pool):
        try:
            with extent.source.reading() as descriptor:
                kernels.DirectFile(descriptor).read(extent.offset, extent.size)
        except (DureError, OSError, EOFError):
            return None
        done += extent.size
        if done >= SAMPLE_BYTES:
            break
    return done / (time.perf_counter() - start) if done else None


def _sample(pool: StreamingExpertPool) -> Sequence[Extent]:
    """List extents of experts all over the files, far from each other."""
    found: list[Extent] = []
    for count, source in pool.all_sources():
        for expert in (0, count // 2, count - 1):
            record = source(expert)
            if isinstance(record, PackedOnArrival):
                found += [record.gate, record.up, record.down]
            elif isinstance(record, Ready):
                found.append(record.extent)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[each] for each in order]
