"""Recurrent layers: a state of fixed size a sequence, where attention caches every token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.batch import StateSpec
from dure.layers.basic import Linear
from dure.layers.mixer_work import MixerWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.basic import Floats, Rows
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights


class GatedDeltaNet:
    """Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464) as in Qwen3-Next and 3.5.

    A short convolution over queries, keys and values, the delta rule, a gated norm, the output
    projection. Qwen3-Next stores q, k, v, z as one matrix whose rows are grouped by key head, or
    (GGUF) as [q k v] and z, each whole; and b and a as one, grouped by key head. Qwen3.5 stores
    [q k v], z, b and a. Value head j uses key head j // (value heads / key heads); llama.cpp wants
    j modulo key heads, and so Qwen3.5's GGUFs have the value heads in another order.
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
        flat: bool = False,
        tiled: bool = False,
    ) -> None:
        """Load the projections.

        kernel: the width of the convolution in tokens. flat: whether b and a are matrices of their
        own. tiled: whether the value heads are stored in llama.cpp's order.
        """
        keys, values = key_heads * key_dim, value_heads * value_dim
        channels = 2 * keys + values

        def linear(part: str, rows: int) -> Linear:
            return Linear(weights, f"{name}.in_proj_{part}", rows, hidden)

        if flat or weights.has(f"{name}.in_proj_qkv.weight"):
            self._projections = [linear("qkv", channels), linear("z", values)]
        else:
            self._projections = [linear("qkvz", channels + values)]
        if flat:
            self._projections += [linear("b", value_heads), linear("a", value_heads)]
        else:
            self._projections.append(linear("ba", 2 * value_heads))
        self._is_flat = flat
        # The place at which each value head is stored; None for the usual order.
        self._heads: NDArray[np.int32] | None = None
        if tiled and key_heads not in (1, value_heads):
            places = np.arange(value_heads, dtype=np.int32).reshape(-1, key_heads)
            self._heads = places.T.ravel()
        conv = weights.floats(f"{name}.conv1d.weight", (channels, kernel), (channels, 1, kernel)).T
        if weights.has(f"{name}.A"):  # GGUF stores what config.json's files take the logarithm of
            self.rate = weights.vector(f"{name}.A", value_heads)
        else:
            log = weights.vector(f"{name}.A_log", value_heads).astype(np.float64)
            self.rate = (-np.exp(log)).astype(np.float32)
        self.dt_bias = weights.vector(f"{name}.dt_bias", value_heads)
        if self._heads is not None:
            self.rate, self.dt_bias = self.rate[self._heads], self.dt_bias[self._heads]
            first = 2 * keys + value_dim * self._heads[:, None]
            order = (first + np.arange(value_dim, dtype=np.int32)).ravel()
            self._channels = np.concatenate([np.arange(2 * keys, dtype=np.int32), order])
            conv = conv[:, self._channels]
        self.conv = np.ascontiguousarray(conv)
        self.norm = weights.vector(f"{name}.norm.weight", value_dim)
        self.out_proj = Linear(weights, f"{name}.out_proj", hidden, values)
        self._offset = (kernel - 1) * channels  # numbers of the state that are the convolution's
        size = self._offset + kernels.delta_size(value_heads, key_dim, value_dim)
        self.cache_spec = StateSpec(size)
        self._key_heads, self._key_dim, self._values = key_heads, key_dim, values
        self._eps, self._threads = norm_eps, weights.threads
        self.work = MixerWork("recurrent", value_heads, key_dim, value_dim, key_heads)

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int32] | None, NDArray[np.int32] | None]:
        """The columns of q, k and v, and those of the gates, where rows are grouped by key head.

        A group has q, k, the values of its value heads, and their gates. None if they are in order.
        Value heads in llama.cpp's order are taken in the usual one, and their gates as they are:
        what they gate is brought into llama.cpp's order, which the output's columns have.
        """
        if self._heads is not None:
            return self._channels, None
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
        mixed, *rest = Linear.together(x, *self._projections)
        z = rest[0] if len(rest) > 1 else mixed
        b, a = self._gates(rest)
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
        if self._heads is not None:
            by_key = read.reshape(len(read), self._key_heads, -1, len(self.norm))
            read = np.ascontiguousarray(by_key.swapaxes(1, 2)).reshape(len(read), -1)
        out = kernels.gated_norm(
            read, self.norm, self._eps, z, columns=gates, threads=self._threads
        )
        return self.out_proj(out, add=add)

    def _gates(self, projected: list[Floats]) -> tuple[Floats, Floats]:
        """Return b and a (n, value heads) from what the projections after q, k and v gave."""
        if self._is_flat:
            b, a = projected[-2:]
            if self._heads is None:
                return b, a
            return np.take(b, self._heads, axis=1), np.take(a, self._heads, axis=1)
        # The rows of b and a go key head by key head, too: the b of its value heads, then the a.
        ba = projected[-1]
        parts = ba.reshape(len(ba), self._key_heads, 2, -1)
        b, a = (np.ascontiguousarray(parts[:, :, i]).reshape(len(ba), -1) for i in (0, 1))
        return b, a
