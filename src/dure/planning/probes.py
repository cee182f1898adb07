"""Measures what dure's kernels reach on this machine, on noise that is larger than its caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure import kernels
from dure.batch import CacheDtype, KVCacheSpec
from dure.engine.block_pool import blocks_for
from dure.formats.blocks import BLOCKS, FLOATS, OF_INTEGERS
from dure.kernels.dequantize import LAYOUTS, OWN_TYPES
from dure.planning.machine import COLUMNS, EXPERT_ROWS, FEW_AND_MANY, ROWS, AttentionSpeed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int32]

TYPES = (
    *("Q4_K", "Q6_K", "Q8_0", "Q5_K", "Q4_0", "B16G64", "IQ4_XS", "MXFP4", "Q5_0", "Q4_1"),
    *("I4G128", "I8G128", "BF16", "NV4G32", "Q3_K", "Q2_K", "IQ4_NL", "I4G32", "U8G128"),
    *("A4G64", "A8G64", "Q5_1", "F32", "A8G16"),
)
"""Types that are measured, the most usual first: a slow machine measures no more than some."""

LEAST = 3
"""Types that are measured on the slowest machine, too."""

ROUNDS = 4

LIMIT_S = 0.8
"""Seconds after which a measurement has no further round: a machine may be slow, or busy."""

SHAPE = (1536, 2048)
"""Rows and columns of a matrix: those of real models are like it or larger."""

LARGE_BYTES = 64 << 20
"""Of weights, keys or values that are read in turn: most caches are smaller."""

MOST_OPERATIONS = 3e9
"""Of one measurement: as many of the matrices as this allows take part."""


def usual_seconds(calls: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Return the usual time of each call: the lower quartile.

    A median would count what other programs do. The calls take turns, after one round that is not
    counted. After LIMIT_S no further round begins, but one is always counted.
    """
    times: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    for done in range(rounds + 1):
        if done > 1 and time.perf_counter() - started > LIMIT_S:
            break
        for call, each in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            each.append(time.perf_counter() - begun)
    return [sorted(each[1:])[(len(each) - 1) // 4] for each in times]


def noise_blocks(dtype: str, rows: int, cols: int) -> Bytes:
    """Return source blocks of noise, (rows, row bytes), whose weights are finite."""
    block = BLOCKS[dtype]
    draw = np.random.default_rng(0)
    if dtype in FLOATS:
        # Random bits would be subnormal or no number here and there, which slows some units down.
        values = draw.standard_normal((rows, cols), np.float32)
        if dtype == "F16":
            return values.astype("<f2").view(np.uint8)
        if dtype == "BF16":
            return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        return values.view(np.uint8)
    raw = draw.integers(0, 256, (rows, cols // block.block_size * block.block_bytes), np.uint8)
    if dtype in OWN_TYPES:  # whose scales are floats
        if "value" in (LAYOUTS[dtype].names or ()):
            return noise_blocks(OF_INTEGERS[dtype], rows, cols)
        raw.view(LAYOUTS[dtype])["scale"] = 0.01
        if "min" in (LAYOUTS[dtype].names or ()):
            raw.view(LAYOUTS[dtype])["min"] = -0.01
    return raw


def matrices_of(dtype: str, threads: int, size: int = LARGE_BYTES) -> list[kernels.Matrix]:
    """Make equal matrices of noise that fill `size` bytes."""
    raw = noise_blocks(dtype, *SHAPE)
    count = -(-size // kernels.packed_bytes(dtype, *SHAPE))
    made = [kernels.Matrix(dtype, *SHAPE) for _ in range(count)]
    for matrix in made:
        matrix.fill(0, raw, threads=threads)
    return made


def product_gops(dtype: str, threads: int) -> tuple[float, ...]:
    """Measure giga-operations a second of products of `dtype`, one for each of ROWS."""
    matrices = matrices_of(dtype, threads)
    weights = SHAPE[0] * SHAPE[1]
    calls, used = [], []
    for rows in ROWS:
        x = np.random.default_rng(1).standard_normal((rows, SHAPE[1]), np.float32)
        count = int(np.clip(MOST_OPERATIONS / (2 * rows * weights), 1, len(matrices)))
        calls.append(_products(kernels.Activations(x), matrices[:count], threads))
        used.append(2e-9 * rows * weights * count)
    return tuple(work / seconds for work, seconds in zip(used, usual_seconds(calls), strict=True))


def packed_read(dtype: str, gops: Sequence[float]) -> float:
    """Return the bytes of packed weights a second that products of one row have read."""
    size = kernels.packed_bytes(dtype, *SHAPE) / (SHAPE[0] * SHAPE[1])
    return gops[0] * 1e9 / 2 * size


def _products(
    x: kernels.Activations, matrices: Sequence[kernels.Matrix], threads: int
) -> Callable[[], object]:
    def run() -> None:
        for matrix in matrices:
            kernels.matmul(x, matrix, threads=threads)

    return run


def memory_read(threads: int) -> float:
    """Measure bytes a second that so many threads read of memory."""
    parts = [np.ones(LARGE_BYTES // 8, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        [seconds] = usual_seconds([lambda: list(pool.map(np.bitwise_or.reduce, parts))])
    return threads * LARGE_BYTES / seconds


def attention_speeds(dtype: CacheDtype, threads: int) -> dict[str, AttentionSpeed]:
    """Measure attention over keys and values of `dtype`: of "one" row a sequence, and of "many"."""
    groups, kv_heads = (1, 4, 8, 16), {1: 8, 4: 4, 8: 2, 16: 2}
    sizes = [columns // 2 for columns in COLUMNS]
    one = [
        _Attention(dtype, group * kv_heads[group], kv_heads[group], size, rows=1, depth=4095)
        for size in sizes
        for group in groups
    ]
    many = [_Attention(dtype, 8, 2, size, rows=512, depth=512) for size in sizes]
    short = [
        _Attention(dtype, 16, 4, COLUMNS[0] // 2, rows=32, depth=8, sequences=32),
        _Attention(dtype, 8, 2, COLUMNS[0] // 2, rows=512, depth=0),
    ]
    all_of_them = (*one, *many, *short)
    seconds = usual_seconds([each.caller(threads) for each in all_of_them])
    ns = [1e9 * took / each.keys for took, each in zip(seconds, all_of_them, strict=True)]
    count = len(groups)
    narrow, wide = tuple(ns[:count]), tuple(ns[count : 2 * count])
    few = AttentionSpeed(groups, narrow, wide)
    narrow, wide = ((ns[at] / 4, ns[at]) for at in (2 * count, 2 * count + 1))
    long = AttentionSpeed((1, 4), narrow, wide)
    found = {}
    for rows, speed, each, took in zip(("one", "many"), (few, long), short, ns[-2:], strict=True):
        keys = each.keys / each.rows / each.kv_heads
        more = max(0.0, keys * (took / speed.ns(4, COLUMNS[0]) - 1))
        found[rows] = replace(speed, row_keys=more)
    return found


def latent_speeds(dtype: CacheDtype, threads: int) -> dict[str, AttentionSpeed]:
    """Measure the same of latent attention, whose heads share one entry a token.

    Its numbers are taken to be in proportion to the columns.
    """
    groups = (16, 64)
    one = [_Latent(dtype, heads, rows=1, depth=2047) for heads in groups]
    many = _Latent(dtype, 16, rows=128, depth=512)
    seconds = usual_seconds([each.caller(threads) for each in (*one, many)])
    ns = [1e9 * took / each.keys for took, each in zip(seconds, (*one, many), strict=True)]
    columns = (many.columns // 2, many.columns)
    halves = [each / 2 for each in ns]
    return {
        "one": AttentionSpeed(groups, tuple(halves[:2]), tuple(ns[:2]), columns),
        "many": AttentionSpeed((1, 16), (halves[2] / 16, halves[2]), (ns[2] / 16, ns[2]), columns),
    }


class _Attention:
    """Grouped-query attention of some rows of one sequence, over as many layers' caches as needed.

    `keys`: how many of one key-value head its rows see together.
    """

    def __init__(
        self,
        dtype: CacheDtype,
        heads: int,
        kv_heads: int,
        size: int,
        *,
        rows: int,
        depth: int,
        sequences: int = 1,
    ) -> None:
        """rows: of each of so many sequences, an equal part."""
        self.rows, self.depth, self.size, self.kv_heads = rows, depth, size, kv_heads
        self.each, self.sequences = rows // sequences, sequences
        self.blocks = blocks_for(depth + self.each) * sequences
        spec = self.spec(kv_heads, size)
        draw = np.random.default_rng(0)
        self.q = draw.standard_normal((rows, heads, self.width), np.float32)
        layer_bytes = (depth + rows) * spec.bytes_per_token(dtype)
        self.layers = max(1, LARGE_BYTES // layer_bytes // 4) if rows == 1 else 1
        self.caches = [spec.storage(self.blocks, dtype) for _ in range(self.layers)]
        for cache in self.caches:
            cache[:] = 1
        self.keys = self.layers * kv_heads * (rows * depth + rows * (self.each + 1) / 2)

    def spec(self, kv_heads: int, size: int) -> KVCacheSpec:
        """Return what a layer caches."""
        self.width, self.columns = size, 2 * size
        return KVCacheSpec("gqa", kv_heads, size)

    def caller(self, threads: int) -> Callable[[], object]:
        """Return what is timed."""
        where = (
            np.tile(np.arange(self.depth, self.depth + self.each, dtype=np.int32), self.sequences),
            np.repeat(np.arange(self.sequences, dtype=np.int32), self.each),
            np.arange(self.blocks, dtype=np.int32).reshape(self.sequences, -1),
        )

        def run() -> None:
            for cache in self.caches:
                self.attend(cache, *where, threads=threads)

        return run

    def attend(self, cache: Any, *where: Ints, threads: int) -> None:
        """Compute one layer."""
        kernels.paged_attention(self.q, cache, *where, scale=self.size**-0.5, threads=threads)


class _Latent(_Attention):
    """Latent attention at DeepSeek's sizes: entries of 512 + 64 numbers."""

    def __init__(self, dtype: CacheDtype, heads: int, *, rows: int, depth: int) -> None:
        super().__init__(dtype, heads, 1, 512, rows=rows, depth=depth)

    def spec(self, kv_heads: int, size: int) -> KVCacheSpec:
        """Return what a layer caches."""
        self.width, self.columns = size + 64, 2 * size + 64
        return KVCacheSpec("latent", kv_heads, size + 64)

    def attend(self, cache: Any, *where: Ints, threads: int) -> None:
        """Compute one layer."""
        kernels.latent_attention(
            self.q, cache, *where, latent=self.size, scale=0.05, threads=threads
        )


def delta_ns(threads: int) -> float:
    """Measure nanoseconds that one number of a recurrent state takes for one token."""
    heads, size, rows = 16, 128, 64
    draw = np.random.default_rng(0)
    qkv, a, b = (
        draw.standard_normal((rows, width), np.float32)
        for width in (3 * heads * size, heads, heads)
    )
    ones = np.ones(heads, np.float32)
    states = np.zeros((1, kernels.delta_size(heads, size, size)), np.float32)
    where = (
        np.arange(rows, dtype=np.int32),
        np.zeros(rows, np.int32),
        np.zeros(1, np.int32),
        np.empty((0, 2), np.int32),
    )

    def run() -> None:
        kernels.delta_rule(
            qkv, a, b, -ones, ones, states, *where, key_heads=heads, key_dim=size, threads=threads
        )

    [seconds] = usual_seconds([run])
    return 1e9 * seconds / (rows * heads * size * size)


class Layer:
    """A decoder layer of small sizes: what its products do not explain is what layers cost."""

    HIDDEN, HEADS, KV_HEADS, SIZE, INTERMEDIATE = 512, 8, 2, 64, 1024
    DTYPE = "I4G128"

    def __init__(self, rows: int, threads: int) -> None:
        self.rows, self.threads = rows, threads
        width, kv_width = self.HEADS * self.SIZE, self.KV_HEADS * self.SIZE
        shapes = [(width, self.HIDDEN), *[(kv_width, self.HIDDEN)] * 2, (self.HIDDEN, width)]
        self.projections = [self._matrix(*shape) for shape in shapes]
        self.gate, self.up = (self._matrix(self.INTERMEDIATE, self.HIDDEN) for _ in range(2))
        self.down = self._matrix(self.HIDDEN, self.INTERMEDIATE)
        self.mlp = kernels.Experts(1, self.HIDDEN, self.INTERMEDIATE, *[self.DTYPE] * 3)
        wide = noise_blocks(self.DTYPE, self.INTERMEDIATE, self.HIDDEN)
        self.mlp.fill("gate", 0, wide)
        self.mlp.fill("up", 0, wide)
        self.mlp.fill("down", 0, noise_blocks(self.DTYPE, self.HIDDEN, self.INTERMEDIATE))
        self.attention = kernels.AttentionLayerKernel(
            weights=[matrix.packed for matrix in self.projections],
            biases=[None] * 4,
            head_dim=self.SIZE,
            q_norm=None,
            k_norm=None,
            eps=0.0,
            norm_last=False,
            interleaved=False,
            scale=0.125,
            window=0,
            sinks=None,
            value_scale=1.0,
            exact=False,
            threads=threads,
        )
        self.cache = KVCacheSpec("gqa", self.KV_HEADS, self.SIZE).storage(blocks_for(rows), "f16")
        self.ones = np.ones(self.HIDDEN, np.float32)
        self.x, inner = (
            np.random.default_rng(0).standard_normal((rows, width), np.float32)
            for width in (self.HIDDEN, self.INTERMEDIATE)
        )
        self.quantised = {x.shape[1]: kernels.Activations(x) for x in (self.x, inner)}

    def _matrix(self, rows: int, columns: int) -> kernels.Matrix:
        matrix = kernels.Matrix(self.DTYPE, rows, columns)
        matrix.fill(0, noise_blocks(self.DTYPE, rows, columns))
        return matrix

    @property
    def elements(self) -> int:
        """Numbers that go into its products and come out of them, for one row."""
        return sum(each.rows + each.cols for each in self._all)

    @property
    def _all(self) -> list[kernels.Matrix]:
        return [*self.projections, self.gate, self.up, self.down]

    def products(self) -> None:
        """Multiply by its matrices and do nothing else, of rows that are quantised already."""
        for matrix in self._all:
            kernels.matmul(self.quantised[matrix.cols], matrix, threads=self.threads)

    def run(self) -> None:
        """Compute the layer."""
        positions = np.arange(self.rows, dtype=np.int32)
        angles = np.zeros((self.rows, self.SIZE // 2), np.float32)
        zeros, tables = np.zeros(self.rows, np.int32), self._tables
        normed = kernels.Activations(self.x, self.ones, 1e-6)
        x = self.attention(
            normed, self.cache, positions, zeros, tables, None, angles, angles, self.x
        )
        normed = kernels.Activations(x, self.ones, 1e-6)
        kernels.gated_mlp(normed, self.mlp, add=x, threads=self.threads)

    @property
    def _tables(self) -> Ints:
        return np.arange(blocks_for(self.rows), dtype=np.int32)[None]


@dataclass(frozen=True)
class Overheads:
    """Seconds: of a layer, and of an element where there are few rows and many; see Machine."""

    layer_s: float
    element_few_s: float
    element_s: float


def overheads(attention: AttentionSpeed, threads: int) -> Overheads:
    """Measure what layers take beside products and keys: with them, less what those take alone.

    Both take turns, so that what other programs do is in both. attention: of many rows.
    """
    few, many = FEW_AND_MANY
    layers = [Layer(rows, threads) for rows in (1, few, many)]
    calls = [call for layer in layers for call in (layer.run, layer.products)]
    took = usual_seconds(calls, 16)
    rest = []
    for layer, whole, products in zip(layers, took[::2], took[1::2], strict=True):
        seen = layer.rows * ((layer.rows + 1) / 2 + attention.row_keys)
        key = attention.ns(Layer.HEADS / Layer.KV_HEADS, 2 * Layer.SIZE)
        rest.append(whole - products - 1e-9 * key * Layer.KV_HEADS * seen)
    layer_s = max(1e-6, rest[0])
    few_s, many_s = (
        max(0.0, (rest[at] - layer_s) / (rows * layers[0].elements))
        for at, rows in ((1, few), (2, many))
    )
    return Overheads(layer_s, few_s, many_s)


class Mixture:
    """A mixture of experts of noise, more than caches hold, each with its own rows."""

    DTYPE, HIDDEN, INTERMEDIATE, EXPERTS, ACTIVE = "Q4_K", 2048, 768, 32, 8

    def __init__(self, threads: int) -> None:
        self.threads = threads
        shape = self.EXPERTS, self.HIDDEN, self.INTERMEDIATE
        self.experts = kernels.Experts(*shape, *[self.DTYPE] * 3)
        wide = noise_blocks(self.DTYPE, self.INTERMEDIATE, self.HIDDEN)
        narrow = noise_blocks(self.DTYPE, self.HIDDEN, self.INTERMEDIATE)
        for expert in range(self.EXPERTS):
            self.experts.fill("gate", expert, wide, threads=threads)
            self.experts.fill("up", expert, wide, threads=threads)
            self.experts.fill("down", expert, narrow, threads=threads)

    def calls(self, rows: int) -> Callable[[], object]:
        """Return what gives each of all experts so many rows, in steps of as few as give them."""
        steps = self.EXPERTS // self.ACTIVE if rows == 1 else 1
        each = rows * self.EXPERTS // self.ACTIVE // steps  # rows of a step
        draw = np.random.default_rng(2)
        turns = np.stack([draw.permutation(self.EXPERTS) for _ in range(rows)]).reshape(steps, -1)
        x = draw.standard_normal((each, self.HIDDEN), np.float32)
        shares = np.full((each, self.ACTIVE), 1 / self.ACTIVE, np.float32)
        ids = [turn.reshape(each, self.ACTIVE).astype(np.int32) for turn in turns]

        def run() -> None:
            for chosen in ids:
                kernels.experts_mlp(
                    kernels.Activations(x), chosen, shares, self.experts, threads=self.threads
                )

        return run

    @property
    def weights(self) -> int:
        """Weights of all experts."""
        return 3 * self.HIDDEN * self.INTERMEDIATE * self.EXPERTS


def expert_factors(threads: int) -> tuple[float, ...]:
    """Measure what mixtures take over products alone, for each of EXPERT_ROWS.

    Both take turns, so that what other programs do is in both.
    """
    mixture, matrices = Mixture(threads), matrices_of(Mixture.DTYPE, threads)
    calls, weights = [], []
    for rows in EXPERT_ROWS:
        x = np.random.default_rng(1).standard_normal((rows, SHAPE[1]), np.float32)
        count = int(np.clip(MOST_OPERATIONS / (2 * rows * SHAPE[0] * SHAPE[1]), 1, len(matrices)))
        calls += [
            mixture.calls(rows),
            _products(kernels.Activations(x), matrices[:count], threads),
        ]
        weights += [mixture.weights, count * SHAPE[0] * SHAPE[1]]
    took = usual_seconds(calls, 8)
    each = [seconds / count for seconds, count in zip(took, weights, strict=True)]
    return tuple(whole / alone for whole, alone in zip(each[::2], each[1::2], strict=True))
