"""The layers that models are made of: small, each a parameter or two on the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure import kernels
from dure.batch import LayerCache
from dure.errors import ModelFileError
from dure.rope import RopeConfig, rope_frequencies

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch
    from dure.weights import Weights

    Floats = NDArray[np.float32]
    Rotation = tuple[Floats, Floats]

_ROPE_STEP = 1024  # positions whose angles are computed at a time


class Linear:
    """y = x Wᵀ (+ b): (n, inputs) -> (n, outputs)."""

    def __init__(
        self, weights: Weights, name: str, outputs: int, inputs: int, *, bias: bool = False
    ) -> None:
        self.weight = weights.matrix(f"{name}.weight", outputs, inputs)
        self.bias = weights.vector(f"{name}.bias", outputs) if bias else None
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Floats | kernels.Activations) -> Floats:
        return kernels.matmul(
            x, self.weight, bias=self.bias, exact=self._exact, threads=self._threads
        )


class Embedding:
    """A row a token: (n,) -> (n, width). `as_head` multiplies by the same matrix."""

    def __init__(self, weights: Weights, name: str, vocab_size: int, width: int) -> None:
        self.weight = weights.matrix(f"{name}.weight", vocab_size, width)
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, tokens: NDArray[np.int32]) -> Floats:
        return kernels.embed(tokens, self.weight)

    def as_head(self, x: Floats) -> Floats:
        """x (n, width) -> logits (n, vocabulary): the tied head."""
        return kernels.matmul(x, self.weight, exact=self._exact, threads=self._threads)


def head(weights: Weights, embedding: Embedding, *, tied: bool) -> Callable[[Floats], Floats]:
    """The output head, (n, hidden) -> (n, vocabulary): its own matrix, or the embedding's."""
    if tied:
        weights.skip("lm_head.weight")  # some checkpoints repeat the embedding under this name
        return embedding.as_head
    return Linear(weights, "lm_head", embedding.weight.rows, embedding.weight.cols)


class RMSNorm:
    """x / sqrt(mean(x²) + eps) * w over the last axis."""

    def __init__(self, weights: Weights, name: str, width: int, eps: float) -> None:
        self.weight = weights.vector(f"{name}.weight", width)
        self._eps, self._threads = eps, weights.threads

    def __call__(self, x: Floats) -> Floats:
        return kernels.rms_norm(x, self.weight, self._eps, threads=self._threads)


class Rope:
    """The rotary angles of positions, computed once a model in fixed stretches, so that those of a
    position are the same bits in every batch."""

    def __init__(self, config: RopeConfig, *, factors: Floats | None = None) -> None:
        """`factors` (r/2,) divide the frequencies: how GGUF files carry llama3's scaling."""
        frequencies, self._multiplier = rope_frequencies(config)
        if factors is not None and not (np.isfinite(factors) & (factors > 0)).all():
            raise ModelFileError("The model's rope_freqs holds factors that are not above 0.")
        self._frequencies = frequencies if factors is None else frequencies / factors
        self._cos: Floats = np.empty((0, len(frequencies)), np.float32)
        self._sin = self._cos

    def __call__(self, positions: NDArray[np.int32]) -> Rotation:
        """cos and sin, each (n, r/2), of positions (n,)."""
        while len(self._cos) <= positions.max(initial=0):
            start = len(self._cos)
            steps = np.arange(start, start + _ROPE_STEP, dtype=np.float32)
            angles = steps[:, None] * self._frequencies
            scale = np.float32(self._multiplier)
            self._cos = np.concatenate([self._cos, np.cos(angles) * scale])
            self._sin = np.concatenate([self._sin, np.sin(angles) * scale])
        return self._cos[positions], self._sin[positions]


class Attention:
    """Grouped-query attention: projections, per-head norms if any, rotation, cache, output."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        index: int,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        bias: bool = False,
        output_bias: bool = False,
        norm_eps: float | None = None,
        interleaved: bool = False,
        window: int | None = None,
    ) -> None:
        """index: this layer's place in the cache. norm_eps: per-head q and k norms if given."""
        self.q_proj = Linear(weights, f"{name}.q_proj", heads * head_dim, hidden, bias=bias)
        self.k_proj = Linear(weights, f"{name}.k_proj", kv_heads * head_dim, hidden, bias=bias)
        self.v_proj = Linear(weights, f"{name}.v_proj", kv_heads * head_dim, hidden, bias=bias)
        self.o_proj = Linear(weights, f"{name}.o_proj", hidden, heads * head_dim, bias=output_bias)
        self.q_norm = self.k_norm = None
        if norm_eps is not None:
            self.q_norm = RMSNorm(weights, f"{name}.q_norm", head_dim, norm_eps)
            self.k_norm = RMSNorm(weights, f"{name}.k_norm", head_dim, norm_eps)
        self.cache = LayerCache("window" if window else "gqa", kv_heads, head_dim, window)
        self._index, self._heads, self._interleaved = index, heads, interleaved
        self._threads = weights.threads

    def __call__(self, x: Floats, rotation: Rotation, batch: Batch) -> Floats:
        rows, head_dim, kv_heads = len(x), self.cache.head_dim, self.cache.num_kv_heads
        shared = kernels.Activations(x)
        q = self.q_proj(shared).reshape(rows, self._heads, head_dim)
        k = self.k_proj(shared).reshape(rows, kv_heads, head_dim)
        v = self.v_proj(shared).reshape(rows, kv_heads, head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        for part in (q, k):
            kernels.rope(part, *rotation, interleaved=self._interleaved, threads=self._threads)
        cache = batch.cache[self._index]
        where = (batch.positions, batch.sequences, batch.block_tables)
        kernels.write_cache(k, v, cache, *where)
        out = kernels.attention(
            q,
            cache,
            *where,
            scale=head_dim**-0.5,
            window=self.cache.window,
            threads=self._threads,
        )
        return self.o_proj(out.reshape(rows, -1))


class GatedMLP:
    """down(silu(gate x) * up x), fused: a mixture of one expert."""

    def __init__(self, weights: Weights, name: str, hidden: int, intermediate: int) -> None:
        self.weight = weights.gated_mlp(name, hidden, intermediate)
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Floats) -> Floats:
        rows = len(x)
        return kernels.experts_mlp(
            x,
            np.zeros((rows, 1), np.int32),
            np.ones((rows, 1), np.float32),
            self.weight,
            exact=self._exact,
            threads=self._threads,
        )


class SparseMLP:
    """A mixture of experts: the router names a row's experts, their weighted sum comes back."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        intermediate: int,
        experts: int,
        top_k: int,
        normalize: bool,
        score: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        self.gate = Linear(weights, f"{name}.gate", experts, hidden)
        self.experts = weights.experts(f"{name}.experts", experts, hidden, intermediate)
        self._top_k, self._normalize, self._score = top_k, normalize, score
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Floats) -> Floats:
        ids, shares = kernels.route(
            self.gate(x), top_k=self._top_k, normalize=self._normalize, score=self._score
        )
        return kernels.experts_mlp(
            x, ids, shares, self.experts, exact=self._exact, threads=self._threads
        )
