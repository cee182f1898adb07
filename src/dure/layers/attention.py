"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.batch import KVCacheSpec
from dure.layers.basic import Linear, RMSNorm
from dure.layers.mixer_work import MixerWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]


WIDE_KEY_BIAS = 32.0
"""A layer whose key bias goes beyond this keeps its keys and values in f16 in a q8 cache, too."""


class Attention:
    """Grouped-query attention: projections, per-head norms if any, RoPE, cache, output."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
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
        scale: float | None = None,
        temperature: tuple[float, int] | None = None,
        value_dim: int | None = None,
        value_scale: float = 1.0,
        sinks: bool = False,
    ) -> None:
        """Load the projections and norms.

        norm_eps: if given, q and k are normed per head before RoPE; after RoPE with norm_last, over
        all heads together with norm_whole. norm_offset: as RMSNorm's offset. gated: q_proj gives
        each head its query and then as many gates, by whose sigmoids the output is multiplied.
        scale: of the scores, if not head_dim ** -0.5. temperature: (beta, tokens), by which queries
        at position p are multiplied with 1 + beta ln(1 + floor(p / tokens)).
        value_dim: the width of a value, if not head_dim; value_scale: times all values. sinks: each
        head has a score of its own (`sinks`), which takes a share of attention and has no value.
        """
        width = heads * head_dim
        self.q_proj = Linear(weights, f"{name}.q_proj", (1 + gated) * width, hidden, bias=bias)
        self.k_proj = Linear(weights, f"{name}.k_proj", kv_heads * head_dim, hidden, bias=bias)
        values = head_dim if value_dim is None else value_dim
        self.v_proj = Linear(weights, f"{name}.v_proj", kv_heads * values, hidden, bias=bias)
        self.o_proj = Linear(weights, f"{name}.o_proj", hidden, heads * values, bias=output_bias)
        self.sinks = weights.vector(f"{name}.sinks", heads) if sinks else None
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
        self.cache_spec = KVCacheSpec(
            "window" if window else "gqa",
            kv_heads,
            head_dim,
            window or None,
            value_dim=value_dim,
            wide=largest > WIDE_KEY_BIAS,
        )
        self._value_scale = value_scale
        self._interleaved, self._gated = interleaved, gated
        self._heads, self._head_dim = heads, head_dim
        self._scale = head_dim**-0.5 if scale is None else scale
        self._temperature = temperature
        self._exact, self._threads = weights.exact, weights.threads

    @property
    def work(self) -> MixerWork:
        """What the layer computes for a token."""
        spec = self.cache_spec
        value = spec.head_dim if spec.value_dim is None else spec.value_dim
        return MixerWork(
            "gqa", self._heads, spec.head_dim, value, spec.num_kv_heads, window=spec.window
        )

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
        cache: LayerArray,
        *,
        add: Floats | None = None,
        rows: NDArray[np.int32] | None = None,
    ) -> Floats:
        """Write all rows' keys and values to `cache`, and attend.

        Returns (n, hidden) + add; of `rows` (m,), those alone.
        """
        tempered = self._temperature is not None
        if self._gated or self.q_norm is not None or tempered or self._is_shuffled:
            return self._in_parts(x, rotation, batch, cache, add, rows)
        cos, sin = rotation or (None, None)
        return self._in_one(
            x,
            cache,
            batch.positions,
            batch.sequences,
            batch.tables_of(self.cache_spec.window),
            rows,
            cos,
            sin,
            add if rows is None or add is None else add[rows],
        )

    @cached_property
    def _is_shuffled(self) -> bool:
        """Whether a projection has its columns in another order; then its input is copied."""
        layers = self.q_proj, self.k_proj, self.v_proj, self.o_proj
        return any(layer.weight.columns is not None for layer in layers)

    @cached_property
    def _in_one(self) -> kernels.AttentionLayerKernel:
        """The whole layer as one kernel, for layers without the extras of `_in_parts`."""
        layers = self.q_proj, self.k_proj, self.v_proj, self.o_proj
        q_norm, k_norm = self._norms or (None, None)
        return kernels.AttentionLayerKernel(
            weights=[layer.weight.packed for layer in layers],
            biases=[layer.bias for layer in layers],
            head_dim=self._head_dim,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=self._eps,
            norm_last=self._norm_last,
            interleaved=self._interleaved,
            scale=self._scale,
            window=self.cache_spec.window or 0,
            sinks=self.sinks,
            value_scale=self._value_scale,
            exact=self._exact,
            threads=self._threads,
        )

    def _in_parts(
        self,
        x: kernels.Activations,
        rotation: Rotation | None,
        batch: Batch,
        cache: LayerArray,
        add: Floats | None,
        rows: NDArray[np.int32] | None,
    ) -> Floats:
        """Run the layer kernel by kernel.

        That is for gates, norms over all heads together, and columns in another order.
        """
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
        if self._temperature is not None:  # a rotation and a factor may change places
            beta, tokens = self._temperature
            at = batch.positions if rows is None else batch.positions[rows]
            q = q * (1 + beta * np.log1p(at // tokens)).astype(np.float32)[:, None]
        out = kernels.rope_cache_attention(
            q,
            k,
            v,
            cache,
            batch.positions,
            batch.sequences,
            batch.tables_of(self.cache_spec.window),
            chosen=rows,
            rotation=rotation,
            interleaved=self._interleaved,
            norms=self._norms,
            eps=self._eps,
            norm_last=self._norm_last,
            scale=self._scale,
            window=self.cache_spec.window,
            sinks=self.sinks,
            value_scale=self._value_scale,
            threads=self._threads,
        )
        if self._gated:
            out = kernels.sigmoid_mul(out, gate, columns=self._gates, threads=self._threads)
        return self.o_proj(out, add=add)
