"""A decoder's block: a token mixer and an MLP, each behind a norm. A family's file makes both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from dure import kernels
from dure.layers.basic import RMSNorm
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dure.batch import Batch, KVCacheSpec, LayerArray, StateSpec
    from dure.layers.basic import Floats, Rows
    from dure.layers.mixer_work import MixerWork
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights

    Ints = NDArray[np.int32]


class DecoderSizes(Protocol):
    """The sizes that every family's config has."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        ...

    @property
    def hidden(self) -> int:
        """Width of a hidden state."""
        ...

    @property
    def layers(self) -> int:
        """The number of blocks."""
        ...

    @property
    def norm_eps(self) -> float:
        """Added to the mean square in every RMSNorm."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens that one sequence may have."""
        ...

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding's matrix."""
        ...

    @property
    def rope(self) -> RopeConfig:
        """The RoPE settings."""
        ...


class Mixer(Protocol):
    """A token mixer: attention, or a recurrent layer in its place."""

    @property
    def cache_spec(self) -> KVCacheSpec | StateSpec:
        """What it caches of a token, or of a sequence."""
        ...

    @property
    def work(self) -> MixerWork:
        """What it computes for a token, beside matrix products."""
        ...

    def __call__(
        self,
        x: kernels.Activations,
        rotation: Rotation | None,
        batch: Batch,
        cache: LayerArray,
        *,
        add: Floats | None = None,
        rows: Ints | None = None,
    ) -> Floats:
        """Mix the normed rows x (n, hidden), and write what later tokens need to `cache`.

        Returns add + the result, (n, hidden), or only the rows `rows` (m,) of both.
        """
        ...


class MLP(Protocol):
    """The part of a block that works token by token: a gated MLP, or a mixture of experts."""

    def __call__(self, x: Rows, *, add: Floats | None = None) -> Floats:
        """Return add + the MLP of x (n, hidden)."""
        ...


class DecoderLayer:
    """One block: x += mixer(norm x); x += mlp(norm x).

    A family's block calls `__init__`, then sets `mixer` and `mlp`.
    """

    mixer: Mixer
    mlp: MLP

    def __init__(
        self,
        weights: Weights,
        name: str,
        sizes: DecoderSizes,
        *,
        norm_offset: float = 0.0,
        residual_scale: float = 1.0,
    ) -> None:
        """Read the two norms below `name`.

        norm_offset: 1 where a checkpoint stores w - 1. residual_scale: of both branches.
        """
        self._residual_scale = np.float32(residual_scale)
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(weights, f"{name}.{norm}", sizes.hidden, sizes.norm_eps, offset=norm_offset)
            for norm in ("input_layernorm", "post_attention_layernorm")
        )

    def __call__(
        self,
        x: Floats,
        rotation: Rotation | None,
        batch: Batch,
        cache: LayerArray,
        rows: Ints | None = None,
    ) -> Floats:
        """Return x (n, hidden) after this block; only the rows `rows` (m,) if they are given."""
        if self._residual_scale != 1:
            mixed = self.mixer(self.input_layernorm(x), rotation, batch, cache, rows=rows)
            x = (x if rows is None else x[rows]) + mixed * self._residual_scale
            return x + self.mlp(self.post_attention_layernorm(x)) * self._residual_scale
        x = self.mixer(self.input_layernorm(x), rotation, batch, cache, add=x, rows=rows)
        return self.mlp(self.post_attention_layernorm(x), add=x)


class SandwichLayer:
    """One block with norms after its branches: x += norm(mixer(norm x)); x += norm(mlp(norm x)).

    A family's block calls `__init__`, then sets `mixer` and `mlp`.
    """

    mixer: Mixer
    mlp: MLP

    def __init__(
        self,
        weights: Weights,
        name: str,
        sizes: DecoderSizes,
        *,
        before: tuple[str, str] | None,
        after: tuple[str, str],
        norm_offset: float = 0.0,
    ) -> None:
        """Read the norms below `name`: those before mixer and MLP, if there are any, and after."""

        def norms(names: tuple[str, str]) -> list[RMSNorm]:
            return [
                RMSNorm(weights, f"{name}.{norm}", sizes.hidden, sizes.norm_eps, offset=norm_offset)
                for norm in names
            ]

        self._before: Sequence[Callable[[Floats], kernels.Activations]] = (
            (kernels.Activations, kernels.Activations) if before is None else norms(before)
        )
        self._after = norms(after)

    def __call__(
        self,
        x: Floats,
        rotation: Rotation | None,
        batch: Batch,
        cache: LayerArray,
        rows: Ints | None = None,
    ) -> Floats:
        """Return x (n, hidden) after this block; only the rows `rows` (m,) if they are given."""
        mixed = self.mixer(self._before[0](x), rotation, batch, cache, rows=rows)
        x = (x if rows is None else x[rows]) + self._after[0].floats(mixed)
        return x + self._after[1].floats(self.feed_forward(x))

    def feed_forward(self, x: Floats) -> Floats:
        """Return what the block adds to x (n, hidden) after its mixer, before its last norm."""
        return self.mlp(self._before[1](x))
