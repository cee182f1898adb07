"""The memory of the KV cache: one array a layer, and what is done to it between passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dure.batch import CacheDtype, CacheOps, KVCacheSpec, StateSpec

if TYPE_CHECKING:
    from dure.batch import LayerArray


class KVStorage:
    """The arrays of every layer: blocks (blocks, *block_shape), or states float32 (slots, size).

    `arrays` has them in the order of the specs. Layers with a window have blocks of their own.
    Which block belongs to whom is `BlockPool`'s.
    """

    def __init__(
        self,
        specs: Sequence[KVCacheSpec | StateSpec],
        *,
        num_blocks: int,
        num_window_blocks: int = 0,
        num_states: int = 0,
        dtype: CacheDtype = "f16",
    ) -> None:
        """Allocate zeroed arrays; the system provides pages when they are first written."""
        self.arrays: tuple[LayerArray, ...] = tuple(
            np.zeros((num_states, spec.size), dtype=np.float32)
            if isinstance(spec, StateSpec)
            else spec.storage(num_window_blocks if spec.kind == "window" else num_blocks, dtype)
            for spec in specs
        )
        kinds = list(zip(self.arrays, [spec.kind for spec in specs], strict=True))
        self._states = [array for array, kind in kinds if kind == "state"]
        self._windows = [array for array, kind in kinds if kind == "window"]
        self._blocks = [array for array, kind in kinds if kind not in ("state", "window")]

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def apply(self, ops: CacheOps) -> None:
        """Clear and copy blocks and states, in the order that `ops` gives."""
        _clear(self._blocks, ops.clear_blocks)
        _copy(self._blocks, ops.copy_blocks)
        _clear(self._windows, ops.clear_window_blocks)
        _copy(self._windows, ops.copy_window_blocks)
        _copy(self._states, ops.copy_states)


def _clear(layers: Sequence[LayerArray], blocks: Sequence[int]) -> None:
    for block in blocks:
        for layer in layers:
            layer[block] = 0


def _copy(layers: Sequence[LayerArray], copies: Sequence[tuple[int, int]]) -> None:
    for source, target in copies:
        for layer in layers:
            layer[target] = layer[source]
