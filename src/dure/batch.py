"""The input of one forward pass: rows of tokens, and where their sequences' cache blocks are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    LayerArray = NDArray[Any]
    CacheArrays = Sequence[LayerArray]

BLOCK_SIZE = 32
"""Tokens in one cache block."""

CacheDtype = Literal["f16", "q8", "f32"]
"""Types of the KV cache: q8 is int8 with a float scale for 32 numbers; f32 is for checking."""

_ARRAY_DTYPES = {"f16": np.float16, "q8": np.uint8, "f32": np.float32}
_CACHE_LINE = 64
_SCALE_GROUP = 32  # numbers of one token, head and of K or V that share a q8 scale of 4 bytes


@dataclass(frozen=True)
class KVCacheSpec:
    """What one layer caches of every past token."""

    kind: Literal["gqa", "window", "latent"]
    num_kv_heads: int
    head_dim: int  # of a "latent" layer: the one entry a token that all heads share
    window: int | None = None  # of a "window" layer: tokens that one sees, itself included
    value_dim: int | None = None  # of a value; None: a key's, head_dim
    wide: bool = False  # its keys need more than 8 bits: a q8 cache keeps this layer in f16

    def bytes_per_token(self, dtype: CacheDtype) -> int:
        """Return the bytes of one token's key and value in this layer when stored as `dtype`."""
        heads, numbers = self.block_shape(dtype)
        return heads * numbers * self._array_dtype(dtype).itemsize // BLOCK_SIZE

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes of a sequence besides its tokens: none."""
        return 0

    def block_shape(self, dtype: CacheDtype = "f16") -> tuple[int, int]:
        """Return the shape of one block, (kv heads, 32 * (head_dim + value_dim)).

        A block has, for each head, K transposed, then V (32, value_dim). As q8 these are bytes,
        followed by the bytes of the scales, (groups, 32) of K and of V. A latent layer's is (1, 32
        * head_dim): its entries, one a token.
        """
        value = self.head_dim if self.value_dim is None else self.value_dim
        parts = (self.head_dim,) if self.kind == "latent" else (self.head_dim, value)
        columns = sum(parts)
        if self._array_dtype(dtype) == np.uint8:
            columns += sum(4 * -(-part // _SCALE_GROUP) for part in parts)
        return self.num_kv_heads, BLOCK_SIZE * columns

    def storage(self, num_blocks: int, dtype: CacheDtype) -> NDArray[Any]:
        """Allocate a zeroed array (num_blocks, *block_shape), aligned to a cache line.

        The operating system provides a page when a block on it is first written.
        """
        shape, kind = self.block_shape(dtype), self._array_dtype(dtype)
        size = num_blocks * shape[0] * shape[1] * kind.itemsize
        memory = np.zeros(size + _CACHE_LINE, np.uint8)
        start = -memory.ctypes.data % _CACHE_LINE
        return memory[start : start + size].view(kind).reshape(num_blocks, *shape)

    def _array_dtype(self, dtype: CacheDtype) -> np.dtype[Any]:
        return np.dtype(_ARRAY_DTYPES["f16" if self.wide and dtype == "q8" else dtype])


def whole_past(spec: KVCacheSpec | StateSpec) -> KVCacheSpec | StateSpec:
    """Return the spec of a layer that caches the same of every token, and has no window."""
    return replace(spec, kind="gqa", window=None) if spec.kind == "window" else spec


@dataclass(frozen=True)
class StateSpec:
    """What one recurrent layer caches of a sequence, whatever its length: `size` float32 numbers.

    A state is the result of all tokens up to one position: it can be copied and continued from, but
    never be cut back to an earlier position.
    """

    size: int
    kind: Literal["state"] = "state"
    window: None = None

    def bytes_per_token(self, dtype: CacheDtype) -> int:
        """Return the bytes that one more token takes: none."""
        del dtype
        return 0

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes of one state."""
        return 4 * self.size


@dataclass(frozen=True)
class States:
    """Where the recurrent states of a batch's sequences are.

    The state of sequence i is read from slot `slots[i]` and written back there after its last row.
    If the first row is at position 0, it is not read but starts from zeros. `snapshots` are copies:
    the state after row snapshots[j, 0] also goes to slot snapshots[j, 1], which is free.
    """

    slots: NDArray[np.int32]  # (sequences,)
    snapshots: NDArray[np.int32]  # (k, 2)


@dataclass(frozen=True)
class CacheOps:
    """What a runner does to its cache before a pass: first clear blocks, then copy."""

    clear_blocks: tuple[int, ...] = ()  # set to zero: they may hold NaNs
    copy_blocks: tuple[tuple[int, int], ...] = ()  # (source, target), in this order
    copy_states: tuple[tuple[int, int], ...] = ()
    clear_window_blocks: tuple[int, ...] = ()  # these, and the next, in layers with a window
    copy_window_blocks: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        blocks = self.clear_blocks or self.copy_blocks
        windows = self.clear_window_blocks or self.copy_window_blocks
        return bool(blocks or windows or self.copy_states)


class PassInterruptedError(Exception):
    """A pass was stopped between two layers. What it wrote to the cache is written again later."""


class PassLostError(Exception):
    """What computes has lost its cache, and with it every pass that was on its way.

    All that requests have so far must be computed again; then their bits are the same.
    """


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass: prefill chunks and decode rows of many sequences.

    It does not hold the cache: a runner, here or on another machine, has its own. Rows of one
    sequence are adjacent and in position order. Row i is token `tokens[i]` at `positions[i]` of
    sequence `sequences[i]`, whose blocks are `block_tables[sequences[i]]`, and in layers with a
    window `window_tables[sequences[i]]`, which has -1 for the blocks that none of the rows sees.
    """

    tokens: NDArray[np.int32]  # (rows,)
    positions: NDArray[np.int32]  # (rows,)
    sequences: NDArray[np.int32]  # (rows,) row -> row of block_tables
    block_tables: NDArray[np.int32]  # (sequences, most blocks of any), padded with -1
    logit_rows: NDArray[np.int32]  # (m,) the rows whose logits are wanted
    # (k,) the rows whose hidden states after the last norm are wanted, instead; None for none
    hidden_rows: NDArray[np.int32] | None = None
    window_tables: NDArray[np.int32] | None = None  # None: as block_tables
    states: States | None = None  # None where no layer has a StateSpec
    cache_ops: CacheOps = CacheOps()
    interrupted: Callable[[], bool] | None = None  # called between layers: stop the pass?

    def tables_of(self, window: int | None) -> NDArray[np.int32]:
        """Return the block tables for a layer with this window, or None for one without."""
        if window is None or self.window_tables is None:
            return self.block_tables
        return self.window_tables

    @property
    def wanted_rows(self) -> NDArray[np.int32] | None:
        """`logit_rows` and `hidden_rows` in order, or None if these are all rows in their order."""
        rows = self.logit_rows
        if self.hidden_rows is not None:
            rows = np.union1d(rows, self.hidden_rows).astype(np.int32)
        if len(rows) != len(self.tokens):
            return rows
        every = np.arange(len(self.tokens), dtype=np.int32)
        return None if (rows == every).all() else rows
