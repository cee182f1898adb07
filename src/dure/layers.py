"""The layers that models are made of: small, each a parameter or two on the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
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
    Rows = Floats | kernels.Activations  # (n, width), what a layer takes

WIDE_KEY_BIAS = 32.0
"""A layer whose key bias goes beyond this keeps its keys and values in f16 in a q8 cache, too."""

_ROPE_STEP = 1024  # positions whose angles are computed at a time


class Linear:
    """y = x Wᵀ (+ b): (n, inputs) -> (n, outputs)."""

    def __init__(
        self, weights: Weights, name: str, outputs: int, inputs: int, *, bias: bool = False
    ) -> None:
        self.weight = weights.matrix(f"{name}.weight", outputs, inputs)
        self.bias = weights.vector(f"{name}.bias", outputs) if bias else None
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Rows, *, add: Floats | None = None) -> Floats:
        """add (n, outputs) is added last."""
        return kernels.matmul(
            x, self.weight, bias=self.bias, add=add, exact=self._exact, threads=self._threads
        )

    @staticmethod
    def together(x: Rows, *layers: Linear) -> list[Floats]:
        """What each of the layers makes of the same x, in one call."""
        return kernels.matmuls(
            x,
            [layer.weight for layer in layers],
            biases=[layer.bias for layer in layers],
            exact=layers[0]._exact,
            threads=layers[0]._threads,
        )


class Embedding:
    """A row a token: (n,) -> (n, width). `as_head` multiplies by the same matrix."""

    def __init__(self, weights: Weights, name: str, vocab_size: int, width: int) -> None:
        self.weight = weights.matrix(f"{name}.weight", vocab_size, width)
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, tokens: NDArray[np.int32]) -> Floats:
        return kernels.embed(tokens, self.weight, threads=self._threads)

    def as_head(self, x: Rows) -> Floats:
        """x (n, width) -> logits (n, vocabulary): the tied head."""
        return kernels.matmul(x, self.weight, exact=self._exact, threads=self._threads)


def head(weights: Weights, embedding: Embedding, *, tied: bool) -> Callable[[Rows], Floats]:
    """The output head, (n, hidden) -> (n, vocabulary): its own matrix, or the embedding's."""
    if tied:
        weights.skip("lm_head.weight")  # some checkpoints repeat the embedding under this name
        return embedding.as_head
    return Linear(weights, "lm_head", embedding.weight.rows, embedding.weight.cols)


class RMSNorm:
    """x / sqrt(mean(x²) + eps) * (w + offset) over the last axis of x (n, width).

    It comes back as the rows that the next layer takes: normed and quantised in one pass, in the
    layer that asks. `floats` gives plain numbers.
    """

    def __init__(
        self, weights: Weights, name: str, width: int, eps: float, *, offset: float = 0.0
    ) -> None:
        """offset: 1 where the checkpoint stores how far a norm is from 1."""
        self.weight = weights.vector(f"{name}.weight", width, offset=offset)
        self._eps, self._threads = eps, weights.threads

    def __call__(self, x: Floats) -> kernels.Activations:
        return kernels.Activations(x, self.weight, self._eps)

    def floats(self, x: Floats) -> Floats:
        """The normed x (…, width) as floats, for whoever is not a layer of this file."""
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
        norm_last: bool = False,
        norm_whole: bool = False,
        norm_offset: float = 0.0,
        gated: bool = False,
        interleaved: bool = False,
        window: int | None = None,
    ) -> None:
        """index: this layer's place in the cache. norm_eps: q and k norms if given, of each head,
        before the rotation unless norm_last, or of all heads together if norm_whole; norm_offset as
        RMSNorm's offset. gated: q_proj gives each head its query and then as many gates, whose
        sigmoids the output is multiplied with."""
        width = heads * head_dim
        self.q_proj = Linear(weights, f"{name}.q_proj", (1 + gated) * width, hidden, bias=bias)
        self.k_proj = Linear(weights, f"{name}.k_proj", kv_heads * head_dim, hidden, bias=bias)
        self.v_proj = Linear(weights, f"{name}.v_proj", kv_heads * head_dim, hidden, bias=bias)
        self.o_proj = Linear(weights, f"{name}.o_proj", hidden, width, bias=output_bias)
        self._norms, self._eps, self._norm_last = None, norm_eps or 0.0, norm_last
        self.q_norm = self.k_norm = None
        if norm_eps is not None and norm_whole:
            self.q_norm = RMSNorm(weights, f"{name}.q_norm", heads * head_dim, norm_eps)
            self.k_norm = RMSNorm(weights, f"{name}.k_norm", kv_heads * head_dim, norm_eps)
        elif norm_eps is not None:
            names = f"{name}.q_norm.weight", f"{name}.k_norm.weight"
            q_norm, k_norm = (weights.vector(n, head_dim, offset=norm_offset) for n in names)
            self._norms = q_norm, k_norm
        # A key bias (Qwen2.5 has some of 350) makes a few columns so large that 8 bits for a row
        # lose the others: these layers alone cost a q8 cache 2 % of perplexity.
        largest = 0.0 if self.k_proj.bias is None else float(np.abs(self.k_proj.bias).max())
        self.cache = LayerCache(
            "window" if window else "gqa", kv_heads, head_dim, window, wide=largest > WIDE_KEY_BIAS
        )
        self._index, self._interleaved, self._gated = index, interleaved, gated
        self._heads, self._head_dim = heads, head_dim
        self._scale, self._exact, self._threads = head_dim**-0.5, weights.exact, weights.threads

    @cached_property
    def _gates(self) -> NDArray[np.int32]:
        """The columns of q_proj's rows that are gates, head by head."""
        columns = np.arange(2 * self._heads * self._head_dim, dtype=np.int32)
        return columns.reshape(self._heads, 2, self._head_dim)[:, 1].ravel()

    def __call__(
        self,
        x: kernels.Activations,
        rotation: Rotation | None,
        batch: Batch,
        *,
        add: Floats | None = None,
        rows: NDArray[np.int32] | None = None,
    ) -> Floats:
        """rows (m,): only theirs come back, (m, hidden), though all rows' keys and values are kept.
        add (n, hidden) is added, row for row."""
        if self._gated or self.q_norm is not None or self._is_shuffled:
            return self._in_parts(x, rotation, batch, add, rows)
        cos, sin = rotation or (None, None)
        return self._in_one(
            x,
            batch.cache[self._index],
            batch.positions,
            batch.sequences,
            batch.block_tables,
            rows,
            cos,
            sin,
            add if rows is None or add is None else add[rows],
        )

    @cached_property
    def _is_shuffled(self) -> bool:
        """Whether a projection has its columns in another order, which takes a copy of its rows."""
        layers = self.q_proj, self.k_proj, self.v_proj, self.o_proj
        return any(layer.weight.columns is not None for layer in layers)

    @cached_property
    def _in_one(self) -> kernels.SelfAttention:
        """The whole layer: what `_in_parts` does where nothing comes between the kernels."""
        layers = self.q_proj, self.k_proj, self.v_proj, self.o_proj
        q_norm, k_norm = self._norms or (None, None)
        return kernels.SelfAttention(
            weights=[layer.weight.packed for layer in layers],
            biases=[layer.bias for layer in layers],
            head_dim=self._head_dim,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=self._eps,
            norm_last=self._norm_last,
            interleaved=self._interleaved,
            scale=self._scale,
            window=self.cache.window or 0,
            exact=self._exact,
            threads=self._threads,
        )

    def _in_parts(
        self,
        x: kernels.Activations,
        rotation: Rotation | None,
        batch: Batch,
        add: Floats | None,
        rows: NDArray[np.int32] | None,
    ) -> Floats:
        """The layer, kernel by kernel: with gates, norms over all heads together, or columns in
        another order."""
        if rows is None:
            q, k, v = Linear.together(x, self.q_proj, self.k_proj, self.v_proj)
        else:
            q, (k, v) = self.q_proj(x.take(rows)), Linear.together(x, self.k_proj, self.v_proj)
            add = None if add is None else add[rows]
        gate = q
        if self._gated:
            heads, size = self._heads, self._head_dim
            q = q.reshape(len(q), heads, 2, size)[:, :, 0].reshape(len(q), heads * size)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.floats(q), self.k_norm.floats(k)
        out = kernels.attend(
            q,
            k,
            v,
            batch.cache[self._index],
            batch.positions,
            batch.sequences,
            batch.block_tables,
            chosen=rows,
            rotation=rotation,
            interleaved=self._interleaved,
            norms=self._norms,
            eps=self._eps,
            norm_last=self._norm_last,
            scale=self._scale,
            window=self.cache.window,
            threads=self._threads,
        )
        if self._gated:
            out = kernels.sigmoid_mul(out, gate, columns=self._gates, threads=self._threads)
        return self.o_proj(out, add=add)


class GatedMLP:
    """down(silu(gate x) * up x), fused: a mixture of one expert."""

    def __init__(self, weights: Weights, name: str, hidden: int, intermediate: int) -> None:
        self.weight = weights.gated_mlp(name, hidden, intermediate)
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Rows, *, add: Floats | None = None) -> Floats:
        """add (n, hidden) is added last."""
        return kernels.gated_mlp(x, self.weight, add=add, exact=self._exact, threads=self._threads)


@dataclass(frozen=True)
class Routing:
    """How a router chooses a row's experts, and weighs them; see kernels.route."""

    top_k: int
    normalize: bool
    score: Literal["softmax", "sigmoid"] = "softmax"
    group_rule: kernels.GroupRule = "none"
    groups: int = 1
    kept_groups: int = 1
    scale: float = 1.0


class SparseMLP:
    """A mixture of experts: the router names a row's experts, their weighted sum comes back, with
    what an expert that every row goes to has to add."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        intermediate: int,
        experts: int,
        routing: Routing,
        gate: str = "gate",
        bias: str | None = None,
        scales: str | None = None,
        shared: str | None = None,
        shared_intermediate: int = 0,
        shared_gate: str | None = None,
    ) -> None:
        """gate, bias (for the choice), scales (of experts' weights), shared (an MLP of width
        shared_intermediate) and shared_gate (times its sigmoid): what they are called below
        `name`, bias and scales in full."""
        self.gate = Linear(weights, f"{name}.{gate}", experts, hidden)
        self.experts = weights.experts(f"{name}.experts", experts, hidden, intermediate)
        self.bias = weights.vector(f"{name}.{bias}", experts, as_row=True) if bias else None
        self.scales = weights.vector(f"{name}.{scales}", experts, as_row=True) if scales else None
        self.shared = self.shared_gate = None
        if shared is not None:
            self.shared = GatedMLP(weights, f"{name}.{shared}", hidden, shared_intermediate)
        if shared_gate is not None:
            self.shared_gate = Linear(weights, f"{name}.{shared_gate}", 1, hidden)
        self._routing = routing
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Rows, *, add: Floats | None = None) -> Floats:
        """add (n, hidden) is added last."""
        routing = self._routing
        ids, shares = kernels.route(
            self.gate(x),
            top_k=routing.top_k,
            normalize=routing.normalize,
            score=routing.score,
            bias=self.bias,
            group_rule=routing.group_rule,
            groups=routing.groups,
            kept_groups=routing.kept_groups,
            scale=routing.scale,
            scales=self.scales,
        )
        if self.shared is not None:
            add = self._shared(x, add, self.shared)
        return kernels.experts_mlp(
            x, ids, shares, self.experts, add=add, exact=self._exact, threads=self._threads
        )

    def _shared(self, x: Rows, add: Floats | None, shared: GatedMLP) -> Floats:
        """The shared expert's result, weighed by its gate if it has one, + add."""
        if self.shared_gate is None:
            return shared(x, add=add)
        # A mixture of one expert, whose router knows no other.
        ids, shares = kernels.route(self.shared_gate(x), top_k=1, normalize=False, score="sigmoid")
        return kernels.experts_mlp(
            x, ids, shares, shared.weight, add=add, exact=self._exact, threads=self._threads
        )
