"""The memory of the KV cache: one array a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.batch import CacheDtype, KVCacheSpec, StateSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def allocate_storage(
    kv_cache_specs: Sequence[KVCacheSpec | StateSpec],
    num_blocks: int,
    dtype: CacheDtype,
    *,
    num_states: int = 0,
) -> tuple[NDArray[Any], ...]:
    """One zeroed array a layer: (blocks, *block_shape) as `dtype` says, or float32 (states, size)
    of a recurrent layer."""
    return tuple(
        np.zeros((num_states, layer.size), dtype=np.float32)
        if isinstance(layer, StateSpec)
        else layer.storage(num_blocks, dtype)
        for layer in kv_cache_specs
    )
