"""Gated short convolutions: a mixer that looks back on a few tokens."""

from __future__ import annotations

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


class GatedShortConv:
    """out(c * conv(b * x)), where b, c and x are projections of the input (LFM2).

    The convolution is causal, of each channel by itself. Its state is the last kernel - 1 inputs.
    """

    def __init__(
        self, weights: Weights, name: str, *, hidden: int, kernel: int, bias: bool = False
    ) -> None:
        """Load the projections. kernel: the width of the convolution in tokens."""
        self.in_proj = Linear(weights, f"{name}.in_proj", 3 * hidden, hidden, bias=bias)
        stored = weights.floats(f"{name}.conv.weight", (hidden, kernel), (hidden, 1, kernel))
        self.conv = np.ascontiguousarray(stored.T)
        self.bias = weights.vector(f"{name}.conv.bias", hidden) if bias else None
        self.out_proj = Linear(weights, f"{name}.out_proj", hidden, hidden, bias=bias)
        self.cache_spec = StateSpec((kernel - 1) * hidden)
        self._threads = weights.threads
        self.work = MixerWork("conv", hidden, kernel, 1, hidden)

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
        before, after, values = np.split(self.in_proj(x), 3, axis=1)
        assert batch.states is not None  # the engine gives them to whoever has a StateSpec
        mixed = kernels.short_conv(
            before * values,
            self.conv,
            cache,
            batch.positions,
            batch.sequences,
            batch.states.slots,
            batch.states.snapshots,
            with_silu=False,
            threads=self._threads,
        )
        if self.bias is not None:
            mixed = mixed + self.bias
        if rows is not None:
            mixed, after = mixed[rows], after[rows]
            add = None if add is None else add[rows]
        return self.out_proj(after * mixed, add=add)
