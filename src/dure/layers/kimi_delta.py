"""Kimi Delta Attention: the gated delta rule with a decay for each channel of the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.batch import StateSpec
from dure.layers.basic import Linear
from dure.layers.mixer_work import MixerWork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.basic import Floats, Rows
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights


class KimiDeltaAttention:
    """Kimi Delta Attention (Kimi team 2025, arXiv 2510.26692): (n, hidden) -> (n, hidden).

    Queries, keys and values go through a short convolution each, and through the gated delta rule;
    each head of the result is normed and multiplied by the sigmoid of a gate. What the decays and
    the gates are made of is projected by f_proj and g_proj, or by a narrow f_a_proj and then
    f_b_proj, and so the gates.
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        heads: int,
        head_dim: int,
        kernel: int,
        norm_eps: float,
        narrow: bool,
        bound: float = 0.0,
    ) -> None:
        """Load the projections.

        kernel: the width of the convolutions in tokens. narrow: whether decays and gates are
        projected twice, over head_dim numbers. bound: of the decays' logarithms, below 0, where
        they have one.
        """
        width = heads * head_dim
        self._qkv = [Linear(weights, f"{name}.{part}_proj", width, hidden) for part in "qkv"]
        self._b_proj = Linear(weights, f"{name}.b_proj", heads, hidden)
        self._narrow = narrow
        if narrow:
            self._inner = [Linear(weights, f"{name}.{p}_a_proj", head_dim, hidden) for p in "fg"]
            self._outer = [Linear(weights, f"{name}.{p}_b_proj", width, head_dim) for p in "fg"]
        else:
            self._inner = [Linear(weights, f"{name}.{p}_proj", width, hidden) for p in "fg"]
        self.conv = _convolutions(weights, name, width, kernel)
        self.rate = _rate(weights, name, heads)
        self.dt_bias = weights.vector(f"{name}.dt_bias", width)
        self.norm = weights.vector(f"{name}.o_norm.weight", head_dim)
        self.o_proj = Linear(weights, f"{name}.o_proj", hidden, width)
        self._offset = 3 * (kernel - 1) * width  # numbers of the state that are the convolutions'
        self.cache_spec = StateSpec(self._offset + kernels.delta_size(heads, head_dim, head_dim))
        self._heads, self._head_dim, self._bound = heads, head_dim, bound
        self._eps, self._threads = norm_eps, weights.threads
        self.work = MixerWork("recurrent", heads, head_dim, head_dim, heads)

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
        q, k, v, beta, decays, gates = Linear.together(x, *self._qkv, self._b_proj, *self._inner)
        if self._narrow:
            decays = self._outer[0](decays)
        assert batch.states is not None  # the engine gives them to whoever has a StateSpec
        where = (
            cache,
            batch.positions,
            batch.sequences,
            batch.states.slots,
            batch.states.snapshots,
        )
        mixed = np.concatenate([q, k, v], axis=1)
        read = kernels.delta_rule(
            kernels.short_conv(mixed, self.conv, *where, threads=self._threads),
            decays,
            beta,
            self.rate,
            self.dt_bias,
            *where,
            key_heads=self._heads,
            key_dim=self._head_dim,
            offset=self._offset,
            bound=self._bound,
            threads=self._threads,
        )
        if rows is not None:
            read, gates = read[rows], gates[rows]
            add = None if add is None else add[rows]
        if self._narrow:
            gates = self._outer[1](gates)
        out = kernels.gated_norm(
            read, self.norm, self._eps, gates, with_silu=False, threads=self._threads
        )
        return self.o_proj(out, add=add)


def _convolutions(weights: Weights, name: str, width: int, kernel: int) -> Floats:
    """Read the convolutions of queries, keys and values: (kernel, 3 * width).

    They are stored apart, or (what transformers has in memory) one under the other.
    """

    def read(part: str, rows: int) -> Floats:
        shapes: Sequence[tuple[int, ...]] = [(rows, kernel), (rows, 1, kernel)]
        if weights.is_gguf:  # a file that nobody has quantised keeps its leading dimension of 1
            shapes = [*shapes, (1, rows, 1, kernel)]
        return weights.floats(f"{name}.{part}.weight", *shapes)

    if weights.has(f"{name}.conv1d.weight"):
        stored = read("conv1d", 3 * width)
    else:
        stored = np.concatenate([read(f"{part}_conv1d", width) for part in "qkv"])
    return np.ascontiguousarray(stored.T)


def _rate(weights: Weights, name: str, heads: int) -> NDArray[np.float32]:
    """Read what each head's decays are multiplied with, below 0: (heads,).

    Folders have the logarithm of its amount; GGUF the rate itself, and of some families the amount.
    """
    shapes = [(heads,), (heads, 1), (1, 1, heads, 1)]
    if weights.has(f"{name}.A"):
        return -np.abs(weights.floats(f"{name}.A", *shapes))
    log = weights.floats(f"{name}.A_log", *shapes).astype(np.float64)
    return (-np.exp(log)).astype(np.float32)
