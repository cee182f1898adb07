"""Attention whose values are normed, too, and layers of it that share the cache of an earlier one.

Source: Gemma 4 as transformers has it (`Gemma4TextAttention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.batch import KVCacheSpec
from dure.layers.basic import Linear
from dure.layers.mixer_work import MixerWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

_SCALE = 1.0  # of scores: the norms keep them small


class NormedAttention:
    """Grouped-query attention: queries, keys and values are normed per head, scores not scaled.

    Queries and keys have a weight and are rotated after it; values have none, and may be the keys
    of before their norm.
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        norm_eps: float,
        window: int | None,
        bias: bool = False,
        values_are_keys: bool = False,
        shared: bool = False,
    ) -> None:
        """Load the projections and norms.

        values_are_keys: there is no v_proj. shared: keys and values are another layer's, whose
        cache is given to this one; it has queries only.
        """
        width, kv_width = heads * head_dim, kv_heads * head_dim
        self.q_proj = Linear(weights, f"{name}.q_proj", width, hidden, bias=bias)
        self.q_norm = weights.vector(f"{name}.q_norm.weight", head_dim)
        self.o_proj = Linear(weights, f"{name}.o_proj", hidden, width, bias=bias)
        self.k_proj = self.v_proj = self.k_norm = None
        if not shared:
            self.k_proj = Linear(weights, f"{name}.k_proj", kv_width, hidden, bias=bias)
            self.k_norm = weights.vector(f"{name}.k_norm.weight", head_dim)
            if not values_are_keys:
                self.v_proj = Linear(weights, f"{name}.v_proj", kv_width, hidden, bias=bias)
        self.cache_spec = KVCacheSpec("window" if window else "gqa", kv_heads, head_dim, window)
        self._heads, self._kv_heads, self._head_dim = heads, kv_heads, head_dim
        self._ones, self._eps = np.ones(head_dim, np.float32), norm_eps
        self._threads = weights.threads

    @property
    def work(self) -> MixerWork:
        """What the layer computes for a token."""
        size, window = self._head_dim, self.cache_spec.window
        return MixerWork("gqa", self._heads, size, size, self._kv_heads, window=window)

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
        """Attend, after all rows' keys and values were written to `cache` if they are its own.

        Returns (n, hidden) + add; of `rows` (m,), those alone.
        """
        assert rotation is not None
        if self.k_proj is None or self.k_norm is None:
            out = self._over_shared(x, rotation, batch, cache, rows)
        else:
            out = self._over_own(x, rotation, batch, cache, rows, self.k_proj, self.k_norm)
        return self.o_proj(out, add=add if rows is None or add is None else add[rows])

    def _over_own(
        self,
        x: kernels.Activations,
        rotation: Rotation,
        batch: Batch,
        cache: LayerArray,
        rows: Ints | None,
        k_proj: Linear,
        k_norm: Floats,
    ) -> Floats:
        """Write keys and values to the cache, and attend to it."""
        kept = (k_proj,) if self.v_proj is None else (k_proj, self.v_proj)
        if rows is None:
            q, *both = Linear.together(x, self.q_proj, *kept)
        else:
            q, both = self.q_proj(x.take(rows)), Linear.together(x, *kept)
        k, v = both[0], both[-1].reshape(len(both[-1]), self._kv_heads, self._head_dim)
        v = kernels.rms_norm(v, self._ones, self._eps, threads=self._threads)
        return kernels.rope_cache_attention(
            q,
            k,
            v.reshape(k.shape),
            cache,
            batch.positions,
            batch.sequences,
            batch.tables_of(self.cache_spec.window),
            chosen=rows,
            rotation=rotation,
            norms=(self.q_norm, k_norm),
            eps=self._eps,
            scale=_SCALE,
            window=self.cache_spec.window,
            threads=self._threads,
        )

    def _over_shared(
        self,
        x: kernels.Activations,
        rotation: Rotation,
        batch: Batch,
        cache: LayerArray,
        rows: Ints | None,
    ) -> Floats:
        """Attend to a cache that has every row's key already."""
        (cos, sin), positions, sequences = rotation, batch.positions, batch.sequences
        if rows is not None:
            x, cos, sin = x.take(rows), cos[rows], sin[rows]
            positions, sequences = positions[rows], sequences[rows]
        q = self.q_proj(x).reshape(len(positions), self._heads, self._head_dim)
        q = kernels.rms_norm(q, self.q_norm, self._eps, threads=self._threads)
        kernels.rope(q, cos, sin, interleaved=False, threads=self._threads)
        out = kernels.paged_attention(
            q,
            cache,
            positions,
            sequences,
            batch.tables_of(self.cache_spec.window),
            scale=_SCALE,
            window=self.cache_spec.window,
            threads=self._threads,
        )
        return out.reshape(len(positions), self._heads * self._head_dim)
