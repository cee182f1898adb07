"""Multi-token prediction: a block more, which guesses the token after the next one.

DeepSeek-AI 2024, arXiv 2412.19437, section 2.2. The block of depth 1 is used, and fed its own
output to guess further, as vLLM, SGLang and llama.cpp do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.layers.basic import Linear, RMSNorm

if TYPE_CHECKING:
    from dure.batch import Batch, LayerArray
    from dure.kernels import Activations
    from dure.layers.basic import Floats
    from dure.layers.decoder_layer import DecoderLayer, DecoderSizes
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights


NO_DRAFT_HEADS = "its architecture has none"
"""Why a model has no draft heads if its family knows of none."""


@dataclass(frozen=True)
class MTPNames:
    """What a checkpoint calls the parts around the block, without ".weight"."""

    embedding_norm: str
    hidden_norm: str
    projection: str
    norm: str | None  # after the block; None: the model's last

    @classmethod
    def nextn(cls, layer: int, *, is_gguf: bool) -> MTPNames:
        """Return DeepSeek's names, which most families use, of the block after the last."""
        name = f"blk.{layer}.nextn" if is_gguf else f"model.layers.{layer}"
        norm = "shared_head_norm" if is_gguf else "shared_head.norm"
        return cls(f"{name}.enorm", f"{name}.hnorm", f"{name}.eh_proj", f"{name}.{norm}")

    def are_in(self, weights: Weights) -> bool:
        """Check whether the checkpoint has some of them."""
        names = (self.embedding_norm, self.hidden_norm, self.projection, self.norm)
        return any(weights.has(f"{name}.weight") for name in names if name is not None)


class MultiTokenPrediction:
    """block(W [norm(embedding of token t + 1); norm(hidden state of t)]), and a last norm.

    Its embedding and its head are the model's: checkpoints repeat them or leave them out.
    """

    def __init__(
        self,
        weights: Weights,
        sizes: DecoderSizes,
        names: MTPNames,
        block: DecoderLayer,
        last_norm: RMSNorm,
        *,
        hidden_first: bool = False,
        before_norm: bool = False,
        norm_offset: float = 0.0,
    ) -> None:
        """Load the parts around the block.

        last_norm: the model's own. hidden_first: whether W takes the hidden state's half first.
        before_norm: whether hidden states are those before the last norm; else after it.
        norm_offset: of its norms, 1 where a checkpoint stores w - 1.
        """

        def norm(name: str) -> RMSNorm:
            return RMSNorm(weights, name, sizes.hidden, sizes.norm_eps, offset=norm_offset)

        self.block = block
        self._embedding_norm, self._hidden_norm = (
            norm(names.embedding_norm),
            norm(names.hidden_norm),
        )
        self._projection = Linear(weights, names.projection, sizes.hidden, 2 * sizes.hidden)
        self._last_norm = last_norm
        self._norm = last_norm if names.norm is None else norm(names.norm)
        self._hidden_first, self._before_norm = hidden_first, before_norm

    def hidden(self, x: Floats) -> Floats:
        """Return x (n, hidden), which the model's last block gave, as `__call__` wants it."""
        return x if self._before_norm else self._last_norm.floats(x)

    def __call__(
        self, hidden: Floats, embedded: Floats, rotation: Rotation, batch: Batch, cache: LayerArray
    ) -> tuple[Floats, Activations]:
        """Return hidden states (m, hidden) of the wanted rows, to go on from, and the head's input.

        hidden: (n, hidden), of the tokens before those that `embedded` (n, hidden) is of.
        """
        both = [self._embedding_norm.floats(embedded), self._hidden_norm.floats(hidden)]
        if self._hidden_first:
            both.reverse()
        x = self._projection(np.concatenate(both, axis=1))
        x = self.block(x, rotation, batch, cache, batch.wanted_rows)
        return (x if self._before_norm else self._norm.floats(x)), self._norm(x)


def load_mtp(
    weights: Weights,
    sizes: DecoderSizes,
    names: MTPNames,
    make_block: Callable[[Weights], DecoderLayer],
    last_norm: RMSNorm,
    *,
    leftovers: Sequence[str] = (),
    hidden_first: bool = False,
    before_norm: bool = False,
    norm_offset: float = 0.0,
) -> tuple[MultiTokenPrediction | None, str]:
    """Load the block and what is around it, if that is wanted and the checkpoint has all of it.

    make_block: makes the block from the weights that it is called with. leftovers: prefixes of
    tensors that are then known and not needed, as of repeated embeddings. The others as in
    MultiTokenPrediction. Returns it and "", or None and why there is none.
    """

    def make(found: Weights) -> MultiTokenPrediction:
        return MultiTokenPrediction(
            found,
            sizes,
            names,
            make_block(found),
            last_norm,
            hidden_first=hidden_first,
            before_norm=before_norm,
            norm_offset=norm_offset,
        )

    made, problem = None, "the checkpoint has none"
    if names.are_in(weights):
        problem = "they were not asked for"
        if weights.draft_heads:
            made, problem = weights.optional(make)
    for prefix in leftovers:
        weights.skip_all(prefix)
    return made, problem
