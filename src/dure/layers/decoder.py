"""The decoder of nearly every family: an embedding, blocks of a mixer and an MLP, a head.

A family's file keeps its config, its block, and what is special to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dure.batch import PassInterruptedError
from dure.layers.basic import Embedding, RMSNorm, head
from dure.layers.rope import Rope, RopeConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure import kernels
    from dure.batch import Batch, CacheArrays, KVCacheSpec, LayerArray, StateSpec
    from dure.layers.basic import Floats, Rows
    from dure.layers.mtp import MultiTokenPrediction
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

    def __call__(
        self,
        x: kernels.Activations,
        rotation: Rotation,
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
        self, weights: Weights, name: str, sizes: DecoderSizes, *, norm_offset: float = 0.0
    ) -> None:
        """Read the two norms below `name`. norm_offset: 1 where a checkpoint stores w - 1."""
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(weights, f"{name}.{norm}", sizes.hidden, sizes.norm_eps, offset=norm_offset)
            for norm in ("input_layernorm", "post_attention_layernorm")
        )

    def __call__(
        self,
        x: Floats,
        rotation: Rotation,
        batch: Batch,
        cache: LayerArray,
        rows: Ints | None = None,
    ) -> Floats:
        """Return x (n, hidden) after this block; only the rows `rows` (m,) if they are given."""
        x = self.mixer(self.input_layernorm(x), rotation, batch, cache, add=x, rows=rows)
        return self.mlp(self.post_attention_layernorm(x), add=x)


class Decoder:
    """A whole model: `embed`, `run` over the blocks, `logits`; `forward` is all three.

    A pipeline can call `run` for a part of the blocks; a drafter uses what `run` returns.
    """

    def __init__(
        self,
        weights: Weights,
        sizes: DecoderSizes,
        make_layer: Callable[[int], DecoderLayer],
        *,
        rope_factors: Floats | None = None,
        norm_offset: float = 0.0,
    ) -> None:
        """Load the embedding, blocks, last norm and head.

        make_layer: makes block number i of the model. rope_factors: divisors (rotary dim / 2,) of
        the frequencies; norm_offset: of the last norm.
        """
        self.vocab_size, self.context_length = sizes.vocab_size, sizes.context_length
        self.rope = Rope(sizes.rope, factors=rope_factors)
        self.embed_tokens = Embedding(weights, "model.embed_tokens", sizes.vocab_size, sizes.hidden)
        self.layers: Sequence[DecoderLayer] = [make_layer(i) for i in range(sizes.layers)]
        self.norm = RMSNorm(weights, "model.norm", sizes.hidden, sizes.norm_eps, offset=norm_offset)
        self.lm_head = head(weights, self.embed_tokens, tied=sizes.tied)
        self.mtp: MultiTokenPrediction | None = None  # set by families that have one

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What each block caches, of every token or of the sequence."""
        return tuple(layer.mixer.cache_spec for layer in self.layers)

    def embed(self, batch: Batch) -> Floats:
        """Return the embeddings (n, hidden) of the batch's tokens."""
        return self.embed_tokens(batch.tokens)

    def run(
        self,
        x: Floats,
        batch: Batch,
        cache: CacheArrays,
        *,
        first: int = 0,
        last: int | None = None,
        rows: Ints | None = None,
    ) -> Floats:
        """Run blocks `first` to `last` (excluded; None: all that follow) on x (n, hidden).

        cache: one array a block of the whole model. Returns (n, hidden); of `rows` (m,), those
        alone: then the last block computes only what it must cache of the others. Raises
        PassInterruptedError between two blocks if the batch says so.
        """
        rotation = self.rope(batch.positions)
        stop = len(self.layers) if last is None else last
        for index in range(first, stop):
            if batch.interrupted is not None and batch.interrupted():
                raise PassInterruptedError
            wanted = rows if index == stop - 1 else None
            x = self.layers[index](x, rotation, batch, cache[index], wanted)
        return x

    def logits(self, x: Floats) -> Floats:
        """Return the logits (n, vocab_size) of hidden states (n, hidden) after the last block."""
        return self.lm_head(self.norm(x))

    @property
    def draft_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What the layer that guesses tokens caches of each; empty if there is none."""
        return () if self.mtp is None else (self.mtp.block.mixer.cache_spec,)

    def draft_hidden(self, x: Floats) -> Floats:
        """Return x (n, hidden), which `run` gave, in the form that `draft` takes."""
        assert self.mtp is not None
        return self.mtp.hidden(x)

    def draft(self, hidden: Floats, batch: Batch, cache: CacheArrays) -> tuple[Floats, Floats]:
        """Guess the tokens after batch.tokens, from the hidden states of those before them.

        hidden: (n, hidden), of `draft_hidden` or of an earlier guess. Positions are those of these
        earlier tokens, so that the cache, which has only `draft_cache_specs`, begins at 0. Returns
        hidden states (m, hidden) and logits (m, vocab_size) of the batch's logit rows.
        """
        assert self.mtp is not None
        rotation = self.rope(batch.positions)
        states, normed = self.mtp(hidden, self.embed(batch), rotation, batch, cache[0])
        if len(states) == 0:
            return states, np.zeros((0, self.vocab_size), np.float32)
        return states, self.lm_head(normed)

    def forward(self, batch: Batch, cache: CacheArrays) -> Floats:
        """Compute logits (len(batch.logit_rows), vocab_size); write keys and values to `cache`."""
        return self.logits(self.run(self.embed(batch), batch, cache, rows=batch.wanted_rows))
