"""What a layer's cache takes, and where it begins."""

from __future__ import annotations

import numpy as np
import pytest

from dure.batch import CacheDtype, KVCacheSpec
from dure.errors import InvalidRequestError
from dure.loading.memory import check_cache_dtype


@pytest.mark.parametrize(
    ("dtype", "d", "bytes_per_token"),
    [
        ("f16", 128, 2 * 2 * 128 * 2),
        ("f32", 128, 2 * 2 * 128 * 4),
        ("q8", 128, 2 * 2 * (128 + 4 * 4)),
        ("q8", 64, 2 * 2 * (64 + 2 * 4)),
        ("q8", 40, 2 * 2 * (40 + 2 * 4)),
    ],
)
def test_the_bytes_of_a_token_are_those_that_storage_takes(
    dtype: CacheDtype, d: int, bytes_per_token: int
) -> None:
    layer = KVCacheSpec("gqa", num_kv_heads=2, head_dim=d)
    assert layer.bytes_per_token(dtype) == bytes_per_token
    storage = layer.storage(5, dtype)
    assert storage.nbytes == 5 * 32 * bytes_per_token
    assert storage.shape == (5, *layer.block_shape(dtype))
    assert storage.ctypes.data % 64 == 0
    assert not storage.any()
    storage[4] = 1  # a view of memory that is its own to the end
    assert np.count_nonzero(storage) == storage[4].size


def test_a_wide_layer_stays_in_16_bits() -> None:
    wide, plain = (KVCacheSpec("gqa", 2, 64, wide=wide) for wide in (True, False))
    assert wide.storage(1, "q8").dtype == np.float16
    assert wide.bytes_per_token("q8") == plain.bytes_per_token("f16")
    assert wide.bytes_per_token("f32") == plain.bytes_per_token("f32")


def test_a_cache_is_f16_or_q8_and_f32_if_exact() -> None:
    assert [check_cache_dtype(dtype, exact=False) for dtype in ("f16", "q8")] == ["f16", "q8"]
    assert check_cache_dtype("f16", exact=True) == "f32"
    with pytest.raises(InvalidRequestError, match="'q4' is not known"):
        check_cache_dtype("q4", exact=False)
    with pytest.raises(InvalidRequestError, match="float32 KV cache, not q8"):
        check_cache_dtype("q8", exact=True)
