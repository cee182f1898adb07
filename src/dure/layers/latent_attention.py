"""Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434).

The cache has one latent a token, of which every head's key and value are made, and the rotated part
of the key. Attention is computed in the absorbed form throughout: a head's query is projected into
the latent space, attends to the latents themselves, and the result is projected to its value. Keys
and values of past tokens are never expanded, and a token's result has the same bits in prefill and
in decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.batch import KVCacheSpec
from dure.formats.blocks import BLOCKS, FLOATS, OF_INTEGERS
from dure.layers.basic import Linear, RMSNorm
from dure.layers.mixer_work import MixerWork
from dure.weights.quantize import quantize_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dure.batch import Batch, LayerArray
    from dure.layers.basic import Floats
    from dure.layers.rope import Rotation
    from dure.weights.loader import Weights

    Ints = NDArray[np.int32]

_OF_WORDS = {kept: it for kept, it in OF_INTEGERS.items() if it in FLOATS}
NORM_EPS = 1e-6  # of the latents' own norms, whatever the model's is


class LatentAttention:
    """Attention of `heads` heads over latents: (n, hidden) -> (n, hidden)."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        heads: int,
        latent: int,
        plain: int,
        rotated: int,
        value: int,
        query_latent: int | None,
        scale: float,
        bias: bool = False,
        interleaved: bool = True,
        gated: bool = False,
    ) -> None:
        """Load the projections.

        hidden: the model's width; heads: the number of heads; latent: the width of the KV latent
        (kv_lora_rank). A key has `plain` dimensions from the latent, and `rotated` that all heads
        share; `value` is the width of a head's value.
        query_latent: the width of the query latent (q_lora_rank), if there is one. scale: of the
        attention scores. gated: whether each head's result is multiplied by the sigmoid of a gate,
        which g_proj gives of the input.
        """
        self.q_a_proj = self.q_a_norm = None
        query_name, query_width = f"{name}.q_proj", hidden
        if query_latent is not None:
            self.q_a_proj = Linear(weights, f"{name}.q_a_proj", query_latent, hidden, bias=bias)
            self.q_a_norm = RMSNorm(weights, f"{name}.q_a_layernorm", query_latent, NORM_EPS)
            query_name, query_width = f"{name}.q_b_proj", query_latent
        self.q_proj = Linear(weights, query_name, heads * (plain + rotated), query_width)
        self.kv_a_proj = Linear(
            weights, f"{name}.kv_a_proj_with_mqa", latent + rotated, hidden, bias=bias
        )
        self.kv_a_norm = RMSNorm(weights, f"{name}.kv_a_layernorm", latent, NORM_EPS)
        self.o_proj = Linear(weights, f"{name}.o_proj", hidden, heads * value, bias=bias)
        self.g_proj = Linear(weights, f"{name}.g_proj", heads, hidden) if gated else None
        self._gate_of = np.repeat(np.arange(heads, dtype=np.int32), value)  # of each column
        # A latent in the cache is as wide as kernels take it: zeros follow that change no sum.
        self._rank, self._latent = latent, in_sixteens(latent)
        self.cache_spec = KVCacheSpec("latent", 1, self._latent + rotated)
        self._heads, self._scale, self._interleaved = heads, scale, interleaved
        self._plain, self._rotated, self._value = plain, rotated, value
        self._fits = latent % 16 == plain % 16 == value % 16 == 0
        self._exact, self._threads = weights.exact, weights.threads
        self._take_halves(weights, name)

    def _take_halves(self, weights: Weights, name: str) -> None:
        """Load `absorb`, each head's (latent, plain), and `expand`, its (value, latent).

        The rows of `expand` begin at row `_first` of a head.
        """
        heads, latent, plain, value = self._heads, self._rank, self._plain, self._value
        if weights.has(f"{name}.k_b_proj.weight"):  # GGUF: in halves, the first turned already
            self.absorb = weights.stacked(f"{name}.k_b_proj.weight", heads, latent, plain)
            self.expand = weights.stacked(f"{name}.v_b_proj.weight", heads, value, latent)
            self._first = 0
            if not self._fits:
                weights.on_finish(self._widen)
            return
        self.expand = weights.matrix(f"{name}.kv_b_proj.weight", heads * (plain + value), latent)
        self._first = plain
        self.absorb = self.expand  # until its weights are there
        weights.on_finish(self._turn)

    def _turn(self) -> None:
        """Fill `absorb` with the transposed rows that give the unrotated parts of keys."""
        kv_b, plain, value = self.expand, self._plain, self._value
        whole = self._exact or plain % 32 != 0  # so that no weight is rounded a second time
        dtype = kv_b.dtype
        if dtype in _OF_WORDS and plain % BLOCKS[dtype].block_size:
            dtype = _OF_WORDS[dtype]
        elif dtype not in (*FLOATS, *_OF_WORDS):
            dtype = "F32" if whole else "Q8_0"
        keys = (self._rows(kv_b, head, plain + value, plain).T for head in range(self._heads))
        self.absorb = self._of_heads(keys, plain, self._latent, dtype)
        if not self._fits:
            values = (
                self._rows(kv_b, head, plain + value, value, plain) for head in range(self._heads)
            )
            self.expand, self._first = self._of_heads(values, self._latent, value, dtype), 0

    def _widen(self) -> None:
        """Replace both halves by such as kernels take: heads of 16 rows, and the latent's zeros."""
        absorb, expand, latent, value = self.absorb, self.expand, self._rank, self._value
        heads = range(self._heads)
        keys = (self._rows(absorb, head, latent, latent) for head in heads)
        values = (self._rows(expand, head, value, value) for head in heads)
        self.absorb = self._of_heads(keys, self._plain, self._latent, _float_type(absorb))
        self.expand = self._of_heads(values, self._latent, value, _float_type(expand))

    def _rows(
        self, matrix: kernels.Matrix, head: int, period: int, count: int, skipped: int = 0
    ) -> Floats:
        """Return `count` rows of a head, which has `period` of them, after those skipped."""
        first = head * period + skipped
        return matrix.row_values(np.arange(first, first + count, dtype=np.int32))

    def _of_heads(
        self, parts: Iterable[Floats], cols: int, rows: int, dtype: str
    ) -> kernels.Matrix:
        """Pack each head's part, filled up with zeros to `cols` columns and sixteens of rows."""
        rows = in_sixteens(rows)
        matrix = kernels.Matrix(dtype, self._heads * rows, cols)
        for head, part in enumerate(parts):
            whole = np.zeros((rows, cols), np.float32)
            whole[: part.shape[0], : part.shape[1]] = part
            matrix.fill(head * rows, _stored(whole, dtype, self._threads))
        return matrix

    @property
    def work(self) -> MixerWork:
        """What the layer computes for a token."""
        return MixerWork("latent", self._heads, self._latent + self._rotated, self._latent, 1)

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
        """Write all rows' latents to `cache`, and attend.

        rotation: None if what all heads share of a key is not rotated. Returns (n, hidden) + add;
        of `rows` (m,), those alone.
        """
        queries = self.q_a_proj or self.q_proj
        positions, sequences = batch.positions, batch.sequences
        if rows is None:
            q, entries = Linear.together(x, queries, self.kv_a_proj)
            turning = rotation
        else:
            wanted = x.take(rows)
            q, entries = queries(wanted), self.kv_a_proj(x)
            positions, sequences = positions[rows], sequences[rows]
            turning = None if rotation is None else (rotation[0][rows], rotation[1][rows])
            add = None if add is None else add[rows]
            x = wanted
        if self.q_a_norm is not None:
            q = self.q_proj(self.q_a_norm(q))
        self._write(entries, rotation, batch, cache)
        absorbed = self._absorbed(q, turning)
        gathered = self._gathered(absorbed, cache, positions, sequences, batch.block_tables)
        return self._result(gathered, add, None if self.g_proj is None else self.g_proj(x))

    def _gathered(
        self, q: Floats, cache: LayerArray, positions: Ints, sequences: Ints, tables: Ints
    ) -> Floats:
        """Attend with absorbed queries to all entries up to their positions: (n, heads, latent)."""
        return kernels.latent_attention(
            q,
            cache,
            positions,
            sequences,
            tables,
            latent=self._latent,
            scale=self._scale,
            threads=self._threads,
        )

    def _result(self, gathered: Floats, add: Floats | None, gates: Floats | None = None) -> Floats:
        """Project what was gathered, (n, heads, latent), to values and to the output, + add.

        gates: (n, heads), whose sigmoid the values are multiplied with; None for none.
        """
        values = kernels.head_matmul(
            gathered,
            self.expand,
            first=self._first,
            outputs=self._value,
            exact=self._exact,
            threads=self._threads,
        )
        flat = values.reshape(len(gathered), self._heads * self._value)
        if gates is not None:
            flat = kernels.sigmoid_mul(flat, gates, columns=self._gate_of, threads=self._threads)
        return self.o_proj(flat, add=add)

    def _write(
        self, entries: Floats, rotation: Rotation | None, batch: Batch, cache: LayerArray
    ) -> None:
        """Write entries (n, latent + rotated), normed and rotated, to the cache."""
        latent = self.kv_a_norm.floats(np.ascontiguousarray(entries[:, : self._rank]))
        rest = self._turned(entries[:, None, self._rank :], rotation)
        latent = in_columns(latent, self._latent)
        kernels.write_latent(
            latent, rest[:, 0], cache, batch.positions, batch.sequences, batch.block_tables
        )

    def _absorbed(self, q: Floats, rotation: Rotation | None) -> Floats:
        """Project queries (n, heads * (plain + rotated)) into the space of cache entries."""
        queries = q.reshape(len(q), self._heads, self._plain + self._rotated)
        out = kernels.head_matmul(
            queries,
            self.absorb,
            outputs=self._latent,
            room=self._latent + self._rotated,
            exact=self._exact,
            threads=self._threads,
        )
        out[:, :, self._latent :] = self._turned(queries[:, :, self._plain :], rotation)
        return out

    def _turned(self, x: Floats, rotation: Rotation | None) -> Floats:
        """Return a copy of x (n, heads, rotated), rotated unless `rotation` is None."""
        x = np.array(x, order="C")
        if rotation is None:
            return x
        kernels.rope(x, *rotation, interleaved=self._interleaved, threads=self._threads)
        return x


def in_sixteens(count: int) -> int:
    """Return the next multiple of 16."""
    return -(-count // 16) * 16


def in_columns(x: Floats, count: int) -> Floats:
    """Return x (n, cols) with zeros after its columns, which then are `count`."""
    if x.shape[1] == count:
        return x
    return np.pad(x, ((0, 0), (0, count - x.shape[1])))


def _float_type(matrix: kernels.Matrix) -> str:
    """Return the matrix's own type if it is one of floats, else the one that loses nothing."""
    dtype = _OF_WORDS.get(matrix.dtype, matrix.dtype)
    return dtype if dtype in FLOATS else "F32"


def _stored(values: Floats, dtype: str, threads: int) -> NDArray[np.uint8]:
    """Encode values (n, cols) as blocks of a type; values that come from that type lose nothing."""
    if dtype == "Q8_0":
        return quantize_rows(values, dtype, threads=threads)
    dtype = _OF_WORDS.get(dtype, dtype)
    if dtype == "BF16":  # to the nearest: words are next to the floats that they were
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype(np.float16 if dtype == "F16" else np.float32).view(np.uint8)
