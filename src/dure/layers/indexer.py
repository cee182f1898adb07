"""DeepSeek's sparse attention (DeepSeek-V3.2, arXiv 2512.02556): an indexer with keys of its own
scores the past tokens of each token, which attends only to the best of them.

A score is the sum over the indexer's heads h of w_h relu(q_h . k). Factors that all scores share
(the makers' scales) are left out, as only the order counts. Of equal scores the earlier token is
chosen. While a token has no more past than may be chosen, attention is the dense one. A token's
choice and result depend on nothing but its own past, so they have the same bits in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from dure import kernels
from dure.batch import BLOCK_SIZE, KVCacheSpec
from dure.layers.basic import Linear
from dure.layers.latent_attention import LatentAttention, in_columns, in_sixteens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.basic import Floats
    from dure.layers.mixer_work import MixerWork
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights

    Ints = NDArray[np.int32]

_NORM_EPS = 1e-6
_GROUP = 32  # numbers of an entry that share a scale in a cache of bytes
_MOST_SCORES = 1 << 24  # of all heads, computed at a time
_MOST_ENTRIES = 1 << 24  # numbers of chosen entries, gathered at a time


@dataclass(frozen=True)
class IndexerSizes:
    """The sizes of the indexers of a model."""

    heads: int
    width: int  # of a head; its first dimensions are rotated
    top_k: int  # tokens that one attends to
    interleaved: bool  # rotated pairs are (2i, 2i + 1)


@dataclass
class Selections:
    """What the rows of one pass attend to, by the last indexer: set by it, read by layers without.

    sparse: (m,), the rows that have more past than they may attend to. chosen: (m, top_k), the
    positions that each of them attends to, in order.
    """

    sparse: Ints | None = None
    chosen: Ints | None = None

    def of(self, rows: Ints | None) -> tuple[Ints, Ints]:
        """Return both for the rows `rows` of the pass alone, whose numbers are then their places.

        Raises RuntimeError if no layer before this one has an indexer.
        """
        if self.sparse is None or self.chosen is None:
            raise RuntimeError("a layer without an indexer comes before any that has one")
        if rows is None:
            return self.sparse, self.chosen
        places = np.searchsorted(self.sparse, rows)
        found = np.append(self.sparse, -1)[np.minimum(places, len(self.sparse))] == rows
        return np.flatnonzero(found).astype(np.int32), self.chosen[places[found]]


@dataclass(frozen=True)
class IndexedCache:
    """What a layer is given as its cache: latents, its indexer's keys, and the pass's choices."""

    latents: LayerArray
    keys: LayerArray | None  # None of a layer without an indexer
    selections: Selections = field(default_factory=Selections)


class Indexer:
    """Chooses the past tokens that each row attends to."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        sizes: IndexerSizes,
        *,
        hidden: int,
        query_latent: int,
        rotated: int,
    ) -> None:
        """Load the projections.

        hidden: the model's width; query_latent: of the latent that queries are made of; rotated:
        how many dimensions of a head are.
        """
        width = sizes.width
        self.wq_b = Linear(weights, f"{name}.wq_b", sizes.heads * width, query_latent)
        self.wk = Linear(weights, f"{name}.wk", width, hidden)
        self.weights_proj = Linear(weights, f"{name}.weights_proj", sizes.heads, hidden)
        self._norm_weight = weights.vector(f"{name}.k_norm.weight", width)
        self._norm_bias = weights.vector(f"{name}.k_norm.bias", width)
        self.cache_spec = KVCacheSpec("latent", 1, in_sixteens(width))
        self.sizes, self._rotated, self._threads = sizes, rotated, weights.threads

    def write(
        self, x: kernels.Activations, rotation: Rotation, batch: Batch, cache: LayerArray
    ) -> None:
        """Write the keys of all rows x (n, hidden) to `cache`."""
        keys = _layer_norm(self.wk(x), self._norm_weight, self._norm_bias)
        keys = self._turned(keys[:, None], rotation)[:, 0]
        nothing = np.empty((len(keys), 0), np.float32)
        keys = in_columns(keys, in_sixteens(self.sizes.width))
        kernels.write_latent(
            keys, nothing, cache, batch.positions, batch.sequences, batch.block_tables
        )

    def choose(
        self,
        x: kernels.Activations,
        q: Floats,
        rotation: Rotation,
        cache: LayerArray,
        positions: Ints,
        sequences: Ints,
        tables: Ints,
    ) -> tuple[Ints, Ints]:
        """Return the rows that attend to a part of their past, (m,), and to which, (m, top_k).

        x: the layer's input (n, hidden); q: (n, heads * width), of these rows.
        """
        top_k = self.sizes.top_k
        sparse = np.flatnonzero(positions >= top_k).astype(np.int32)
        chosen = np.empty((len(sparse), top_k), np.int32)
        if not len(sparse):
            return sparse, chosen
        shares = self.weights_proj(x.take(sparse))
        heads, width = self.sizes.heads, self.sizes.width
        turning = rotation[0][sparse], rotation[1][sparse]
        queries = self._turned(q[sparse].reshape(len(sparse), heads, width), turning)
        for sequence in np.unique(sequences[sparse]):
            places = np.flatnonzero(sequences[sparse] == sequence)
            keys = self._packed(cache, tables[sequence], int(positions[sparse[places]].max()) + 1)
            step = max(1, _MOST_SCORES // (heads * keys.rows))
            for start in range(0, len(places), step):
                some = places[start : start + step]
                scores = self._scores(queries[some], shares[some], keys)
                for place, row_scores in zip(some, scores, strict=True):
                    seen = int(positions[sparse[place]]) + 1
                    chosen[place] = _best(row_scores[:seen], top_k)
        return sparse, chosen

    def _packed(self, cache: LayerArray, table: Ints, count: int) -> kernels.Matrix:
        """Pack the keys of a sequence's first `count` tokens, (count, width)."""
        width, blocks = self.sizes.width, table[: -(-count // BLOCK_SIZE)]
        keys = np.ascontiguousarray(_floats(cache, in_sixteens(width), blocks)[:count, :width])
        matrix = kernels.Matrix("F16" if keys.dtype == np.float16 else "F32", count, width)
        matrix.fill(0, keys.view(np.uint8), threads=self._threads)
        return matrix

    def _scores(self, queries: Floats, shares: Floats, keys: kernels.Matrix) -> Floats:
        """Score keys (t, width) for queries (n, heads, width), heads weighed by shares: (n, t)."""
        n, heads, width = queries.shape
        products = kernels.matmul(queries.reshape(n * heads, width), keys, threads=self._threads)
        products = np.maximum(products, 0, out=products).reshape(n, heads, keys.rows)
        total = np.zeros((n, keys.rows), np.float32)
        for head in range(heads):  # in order, so that a score's bits depend on nothing else
            total += shares[:, head, None] * products[:, head]
        return total

    def _turned(self, x: Floats, rotation: Rotation) -> Floats:
        """Return a copy of x (n, heads, width) whose first dimensions are rotated."""
        first = np.array(x[:, :, : self._rotated], order="C")
        kernels.rope(first, *rotation, interleaved=self.sizes.interleaved, threads=self._threads)
        return np.concatenate([first, x[:, :, self._rotated :]], axis=2)


class IndexedLatentAttention(LatentAttention):
    """Latent attention to the tokens that an indexer chose: its own, or that of a layer before."""

    indexer: Indexer | None = None
    """Set after `__init__`, if the layer has one."""

    chosen = 0
    """Tokens that one attends to at most; set after `__init__`, of layers without indexer too."""

    @property
    def work(self) -> MixerWork:
        """What the layer computes for a token."""
        if self.indexer is None:
            return replace(super().work, chosen=self.chosen or None)
        sizes = self.indexer.sizes
        return replace(
            super().work,
            chosen=sizes.top_k,
            indexer_heads=sizes.heads,
            indexer_dim=sizes.width,
        )

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
        """Write all rows' latents and keys, choose, and attend; see LatentAttention.

        cache: an IndexedCache.
        """
        stored = cast("IndexedCache", cache)
        assert rotation is not None  # the part of a key that all heads share is a rotated one
        positions, sequences, turning, wanted = batch.positions, batch.sequences, rotation, x
        if rows is not None:
            positions, sequences = positions[rows], sequences[rows]
            turning, wanted = (rotation[0][rows], rotation[1][rows]), x.take(rows)
            add = None if add is None else add[rows]
        if self.q_a_proj is None or self.q_a_norm is None:
            raise RuntimeError("queries of an indexer are made of the query latent")
        self._write(self.kv_a_proj(x), rotation, batch, stored.latents)
        latent = self.q_a_norm(self.q_a_proj(wanted))
        selections = stored.selections
        if self.indexer is None:
            sparse, chosen = selections.of(rows)
        else:
            keys = cast("LayerArray", stored.keys)
            self.indexer.write(x, rotation, batch, keys)
            sparse, chosen = self.indexer.choose(
                wanted,
                self.indexer.wq_b(latent),
                turning,
                keys,
                positions,
                sequences,
                batch.block_tables,
            )
            selections.sparse, selections.chosen = sparse, chosen
        q = self._absorbed(self.q_proj(latent), turning)
        dense = np.ones(len(q), bool)
        dense[sparse] = False
        gathered = np.empty((*q.shape[:2], self._latent), np.float32)
        if dense.any():
            at, of = positions[dense], sequences[dense]
            gathered[dense] = self._gathered(q[dense], stored.latents, at, of, batch.block_tables)
        if len(sparse):
            tables = batch.block_tables[sequences[sparse]]
            gathered[sparse] = self._of_chosen(q[sparse], stored.latents, tables, chosen)
        return self._result(gathered, add)

    def _of_chosen(self, q: Floats, cache: LayerArray, tables: Ints, chosen: Ints) -> Floats:
        """Attend with queries (m, heads, …) to entries at the positions chosen (m, k) alone.

        tables: each row's, (m, blocks). The entries are copied to blocks of their own.
        """
        top_k = chosen.shape[1]
        blocks = -(-top_k // BLOCK_SIZE)
        out = np.empty((*q.shape[:2], self._latent), np.float32)
        step = max(1, _MOST_ENTRIES // (top_k * q.shape[2]))
        for start in range(0, len(q), step):
            some = slice(start, start + step)
            count = len(q[some])
            copied = np.zeros((count * blocks, *cache.shape[1:]), cache.dtype)
            where = np.take_along_axis(tables[some], chosen[some] // BLOCK_SIZE, axis=1)
            _copy_entries(cache, q.shape[2], where, chosen[some] % BLOCK_SIZE, copied)
            out[some] = self._gathered(
                np.ascontiguousarray(q[some]),
                copied,
                np.full(count, top_k - 1, np.int32),
                np.arange(count, dtype=np.int32),
                np.arange(count * blocks, dtype=np.int32).reshape(count, blocks),
            )
        return out


def _best(scores: Floats, count: int) -> Ints:
    """Return the places of the `count` highest scores in order; of equal ones, the first."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal])).astype(np.int32)


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias of each row of x (n, width)."""
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    wide /= np.sqrt(np.square(wide).mean(axis=1, keepdims=True) + _NORM_EPS)
    return wide.astype(np.float32) * weight + bias


def _parts(cache: LayerArray, width: int) -> tuple[LayerArray, LayerArray | None]:
    """View a cache of one entry a token: entries (blocks, 32, width), scales (blocks, groups, 32).

    Scales are those of a cache of bytes, one for _GROUP numbers of an entry; else None.
    """
    entries = cache[:, 0, : BLOCK_SIZE * width].reshape(len(cache), BLOCK_SIZE, width)
    if cache.dtype != np.uint8:
        return entries, None
    scales = cache[:, 0, BLOCK_SIZE * width :].view(np.float32)
    return entries, scales.reshape(len(cache), -1, BLOCK_SIZE)


def _floats(cache: LayerArray, width: int, blocks: Ints) -> LayerArray:
    """Return the entries of some blocks (n,) as floats (n * 32, width): as stored, if they are."""
    entries, scales = _parts(cache, width)
    found = entries[blocks]
    if scales is None:
        return found.reshape(-1, width)
    each = np.repeat(scales[blocks].swapaxes(1, 2), _GROUP, axis=2)[:, :, :width]
    values: Floats = found.view(np.int8) * each
    return values.reshape(-1, width)


def _copy_entries(
    cache: LayerArray, width: int, blocks: Ints, slots: Ints, out: LayerArray
) -> None:
    """Copy the entries at these places (m, k) to the first k places of `out`'s m runs of blocks."""
    rows, count = blocks.shape
    at = np.arange(count)
    first = np.arange(rows)[:, None] * (len(out) // rows)
    entries, scales = _parts(cache, width)
    to, to_scales = _parts(out, width)
    to[first + at // BLOCK_SIZE, at % BLOCK_SIZE] = entries[blocks, slots]
    if scales is not None and to_scales is not None:
        to_scales[first + at // BLOCK_SIZE, :, at % BLOCK_SIZE] = scales[blocks, :, slots]
