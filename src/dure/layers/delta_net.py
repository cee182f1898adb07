"""Recurrent layers: a state of fixed size a sequence, where attention caches every token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.batch import StateSpec
from dure.layers.basic import Linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.basic import Floats, Rows
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights


class GatedDeltaNet:
    """Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464) as in Qwen3-Next.

    A short convolution over queries, keys and values, the delta rule, a gated norm, the output
    projection. Checkpoints store q, k, v, z either as one matrix whose rows are grouped by key
    head, or (GGUF) as [q k v] and z, each whole.
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        kernel: int,
        norm_eps: float,
    ) -> None:
        """Load the projections. kernel: the width of the convolution in tokens."""
        keys, values = key_heads * key_dim, value_heads * value_dim
        channels = 2 * keys + values
        if weights.has(f"{name}.in_proj_qkv.weight"):
            projections = [Linear(weights, f"{name}.in_proj_qkv", channels, hidden)]
            projections.append(Linear(weights, f"{name}.in_proj_z", values, hidden))
        else:
            projections = [Linear(weights, f"{name}.in_proj_qkvz", channels + values, hidden)]
        projections.append(Linear(weights, f"{name}.in_proj_ba", 2 * value_heads, hidden))
        self._projections = projections
        stored = weights.floats(f"{name}.conv1d.weight", (channels, kernel), (channels, 1, kernel))
        self.conv = np.ascontiguousarray(stored.T)
        if weights.has(f"{name}.A"):  # GGUF stores what config.json's files take the logarithm of
            self.rate = weights.vector(f"{name}.A", value_heads)
        else:
            log = weights.vector(f"{name}.A_log", value_heads).astype(np.float64)
            self.rate = (-np.exp(log)).astype(np.float32)
        self.dt_bias = weights.vector(f"{name}.dt_bias", value_heads)
        self.norm = weights.vector(f"{name}.norm.weight", value_dim)
        self.out_proj = Linear(weights, f"{name}.out_proj", hidden, values)
        self._offset = (kernel - 1) * channels  # numbers of the state that are the convolution's
        size = self._offset + kernels.delta_size(value_heads, key_dim, value_dim)
        self.cache_spec = StateSpec(size)
        self._key_heads, self._key_dim, self._values = key_heads, key_dim, values
        self._eps, self._threads = norm_eps, weights.threads

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int32] | None, NDArray[np.int32] | None]:
        """The columns of q, k and v, and those of the gates, where rows are grouped by key head.

        A group has q, k, the values of its value heads, and their gates. None if they are in order.
        """
        if len(self._projections) > 2:
            return None, None
        rows = np.arange(self._projections[0].weight.rows, dtype=np.int32)
        size, each = self._key_dim, self._values // self._key_heads
        parts = np.split(rows.reshape(self._key_heads, -1), [size, 2 * size, 2 * size + each], 1)
        q, k, v, z = (part.ravel() for part in parts)
        return np.concatenate([q, k, v]), z

    def __call__(
        self,
        x: Rows,
        rotation: Rotation | None,
        batch: Batch,
        cache: LayerArray,
        *,
        add: Floats | None = None,
        rows: NDArray[np.int32] | None = None,
    ) -> Floats:
        """Update the states in `cache` by all rows, and return the layer's output.

        rotation: unused; every mixer gets it. Returns (n, hidden) + add; of `rows` (m,), those
        alone.
        """
        del rotation
        mixed, *rest, ba = Linear.together(x, *self._projections)
        z = rest[0] if rest else mixed
        # The rows of b and a go key head by key head, too: the b of its value heads, then the a.
        parts = ba.reshape(len(ba), self._key_heads, 2, -1)
        b, a = (np.ascontiguousarray(parts[:, :, i]).reshape(len(ba), -1) for i in (0, 1))
        assert batch.states is not None  # the engine gives them to whoever has a StateSpec
        where = (
            cache,
            batch.positions,
            batch.sequences,
            batch.states.slots,
            batch.states.snapshots,
        )
        columns, gates = self._columns
        qkv = kernels.short_conv(mixed, self.conv, *where, columns=columns, threads=self._threads)
        read = kernels.delta_rule(
            qkv,
            a,
            b,
            self.rate,
            self.dt_bias,
            *where,
            key_heads=self._key_heads,
            key_dim=self._key_dim,
            offset=self._offset,
            threads=self._threads,
        )
        if rows is not None:
            read, z = read[rows], z[rows]
            add = None if add is None else add[rows]
        out = kernels.gated_norm(
            read, self.norm, self._eps, z, columns=gates, threads=self._threads
        )
        return self.out_proj(out, add=add)
