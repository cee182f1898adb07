"""The decoder of nearly every family: an embedding, blocks of a mixer and an MLP, a head.

A family's file keeps its config, its block, and what is special to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dure.batch import PassInterruptedError
from dure.errors import UnsupportedModelError
from dure.layers.basic import Embedding, Linear, NoHead, RMSNorm, head, score_head
from dure.layers.mtp import NO_DRAFT_HEADS, MultiTokenPrediction
from dure.layers.rope import Rope
from dure.weights.span import Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheArrays, KVCacheSpec, StateSpec
    from dure.layers.basic import Floats
    from dure.layers.decoder_layer import DecoderLayer, DecoderSizes, SandwichLayer
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights

    Ints = NDArray[np.int32]


def _made(
    weights: Weights,
    make_layer: Callable[[int], DecoderLayer | SandwichLayer],
    index: int,
    *,
    wanted: bool,
) -> DecoderLayer | SandwichLayer:
    """Make block number `index`, with placeholders for weights if it is computed elsewhere."""
    with weights.only_if(wanted):
        return make_layer(index)


class Decoder:
    """A whole model: `embed`, `run` over the blocks, `logits`; `forward` is all three.

    A pipeline can call `run` for a part of the blocks; a drafter uses what `run` returns.
    """

    def __init__(
        self,
        weights: Weights,
        sizes: DecoderSizes,
        make_layer: Callable[[int], DecoderLayer | SandwichLayer],
        *,
        rope_factors: Floats | None = None,
        ropes: Sequence[Rope | None] | None = None,
        norm_offset: float = 0.0,
        embedding_scale: float = 1.0,
        logit_divisor: float = 1.0,
        logit_cap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        """Load the embedding, blocks, last norm and head.

        make_layer: makes block number i of the model. rope_factors: divisors (rotary dim / 2,) of
        the frequencies; ropes: each block's own rotation, None for none, where they differ;
        norm_offset: of the last norm; embedding_scale and logit_divisor: what embeddings are
        multiplied with, and logits divided by. logit_cap: logits become cap * tanh(logits / cap).
        head_bias: whether the head has one.
        """
        self.vocab_size, self.context_length = sizes.vocab_size, sizes.context_length
        self.rope = Rope(sizes.rope, factors=rope_factors)
        self.ropes = ropes or [self.rope] * sizes.layers
        self._embedding_scale = np.float32(embedding_scale)
        self._logit_divisor = np.float32(logit_divisor)
        self._logit_cap = None if logit_cap is None else np.float32(logit_cap)
        span = Span(0, sizes.layers, sizes.layers) if weights.span is None else weights.span
        with weights.only_if(span.embeds or (span.ends and sizes.tied)):
            self.embed_tokens = Embedding(
                weights, "model.embed_tokens", sizes.vocab_size, sizes.hidden, tied=sizes.tied
            )
        self.layers: Sequence[DecoderLayer | SandwichLayer] = [
            _made(weights, make_layer, i, wanted=i in span) for i in range(sizes.layers)
        ]
        with weights.only_if(span.ends):
            self.norm = RMSNorm(
                weights, "model.norm", sizes.hidden, sizes.norm_eps, offset=norm_offset
            )
            self.lm_head = head(weights, self.embed_tokens, tied=sizes.tied, bias=head_bias)
            self.score = score_head(weights, sizes.hidden)
        self.draft_rope = self.rope  # of the layer that guesses tokens, which a family may change
        self.mtp: MultiTokenPrediction | None = None  # set by families that have one, as the next
        self.later_mtp: Sequence[MultiTokenPrediction] = ()  # each for a token further ahead
        self.draft_problem = NO_DRAFT_HEADS
        """Why there are no draft heads; empty if there are some."""

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What each block caches, of every token or of the sequence."""
        return tuple(layer.mixer.cache_spec for layer in self.layers)

    @property
    def cache_layers(self) -> Sequence[int]:
        """For each of `kv_cache_specs` the block that writes it."""
        return range(len(self.layers))

    @property
    def cuts(self) -> Sequence[int]:
        """The blocks before which the model may be cut in stages: these need x alone of others."""
        return range(1, len(self.layers))

    def embed(self, batch: Batch) -> Floats:
        """Return the embeddings (n, hidden) of the batch's tokens."""
        x = self.embed_tokens(batch.tokens)
        return x if self._embedding_scale == 1 else x * self._embedding_scale

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

        cache: one array a block of the whole model; of blocks that are not run, any. Returns
        (n, hidden); of `rows` (m,), those alone: then the last block computes only what it must
        cache of the others. Raises
        PassInterruptedError between two blocks if the batch says so.
        """
        rotations: dict[Rope | None, Rotation | None] = {None: None}
        stop = len(self.layers) if last is None else last
        for index in range(first, stop):
            if batch.interrupted is not None and batch.interrupted():
                raise PassInterruptedError
            rope, wanted = self.ropes[index], rows if index == stop - 1 else None
            if rope is not None and rope not in rotations:
                rotations[rope] = rope(batch.positions)
            x = self.layers[index](x, rotations[rope], batch, cache[index], wanted)
        return x

    def normed(self, x: Floats) -> Floats:
        """Return hidden states (n, hidden) after the last block as the last norm leaves them."""
        return self.norm.floats(x)

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state."""
        return self.embed_tokens.width

    @property
    def has_head(self) -> bool:
        """Whether there are logits: a model that makes embeddings may have no head."""
        return not isinstance(self.lm_head, NoHead)

    def head_rows(self, token_ids: Ints) -> Floats:
        """Return the head's rows (n, hidden) of these tokens. Raises UnsupportedModelError."""
        if isinstance(self.lm_head, NoHead):
            self.lm_head(np.zeros((0, 0), np.float32))
        if isinstance(self.lm_head, Linear):
            return self.lm_head.weight.row_values(token_ids)
        return self.embed_tokens(token_ids)

    def logits(self, x: Floats) -> Floats:
        """Return the logits (n, vocab_size) of hidden states (n, hidden) after the last block."""
        logits = self.lm_head(self.norm(x))
        if self._logit_divisor != 1:
            logits = logits / self._logit_divisor
        if self._logit_cap is not None:
            logits = np.tanh(logits / self._logit_cap) * self._logit_cap
        return logits

    @property
    def draft_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What each layer that guesses tokens caches of one; empty if there is none."""
        heads = () if self.mtp is None else (self.mtp, *self.later_mtp)
        return tuple(head.block.mixer.cache_spec for head in heads)

    @property
    def num_draft_heads(self) -> int:
        """How many layers guess tokens: with several, number k guesses token k + 2 from one."""
        return 0 if self.mtp is None else 1 + len(self.later_mtp)

    def draft_hidden(self, x: Floats) -> Floats:
        """Return x (n, hidden), which `run` gave, in the form that `draft` takes."""
        return self._head(0).hidden(x)

    def draft(
        self, hidden: Floats, batch: Batch, cache: CacheArrays, *, head: int = 0
    ) -> tuple[Floats, Floats]:
        """Guess the tokens after batch.tokens, from the hidden states of those before them.

        hidden: (n, hidden), of `draft_hidden` or of an earlier guess. Positions are those of these
        earlier tokens, so that the cache, which has only `draft_cache_specs`, begins at 0. head:
        which one; its tokens stand 1 + head after those that `hidden` is of. Returns
        hidden states (m, hidden) and logits (m, vocab_size) of the batch's logit rows. Raises
        UnsupportedModelError without draft heads, PassInterruptedError if the batch says so.
        """
        layer = self._head(head)
        if batch.interrupted is not None and batch.interrupted():
            raise PassInterruptedError
        rotation = self.draft_rope(batch.positions)
        states, normed = layer(hidden, self.embed(batch), rotation, batch, cache[head])
        if len(states) == 0:
            return states, np.zeros((0, self.vocab_size), np.float32)
        return states, self.lm_head(normed)

    def _head(self, number: int) -> MultiTokenPrediction:
        if self.mtp is None:
            raise UnsupportedModelError(f"This model has no draft heads: {self.draft_problem}.")
        return (self.mtp, *self.later_mtp)[number]

    def forward(self, batch: Batch, cache: CacheArrays) -> Floats:
        """Compute logits (len(batch.logit_rows), vocab_size); write keys and values to `cache`."""
        return self.logits(self.run(self.embed(batch), batch, cache, rows=batch.wanted_rows))
