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

    `arrays` has them in the order of the specs. Which block belongs to whom is `BlockPool`'s.
    """

    def __init__(
        self,
        specs: Sequence[KVCacheSpec | StateSpec],
        *,
        num_blocks: int,
        num_states: int = 0,
        dtype: CacheDtype = "f16",
    ) -> None:
        """Allocate zeroed arrays; the system provides pages when they are first written."""
        self.arrays: tuple[LayerArray, ...] = tuple(
            np.zeros((num_states, spec.size), dtype=np.float32)
            if isinstance(spec, StateSpec)
            else spec.storage(num_blocks, dtype)
            for spec in specs
        )
        recurrent = [isinstance(spec, StateSpec) for spec in specs]
        both = list(zip(self.arrays, recurrent, strict=True))
        self._blocks = tuple(array for array, is_state in both if not is_state)
        self._states = tuple(array for array, is_state in both if is_state)

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def apply(self, ops: CacheOps) -> None:
        """Clear and copy blocks and states, in the order that `ops` gives."""
        for block in ops.clear_blocks:
            for layer in self._blocks:
                layer[block] = 0
        for source, target in ops.copy_blocks:
            for layer in self._blocks:
                layer[target] = layer[source]
        for source, target in ops.copy_states:
            for layer in self._states:
                layer[target] = layer[source]
