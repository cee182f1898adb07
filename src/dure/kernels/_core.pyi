from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

class Matrix:
    def __init__(self, dtype: str, rows: int, cols: int) -> None: ...
    def fill(self, first_row: int, raw: Bytes, threads: int) -> None: ...
    def row_values(self, rows: Ints, threads: int) -> Floats: ...
    def watch(self) -> None: ...
    def seen(self) -> tuple[NDArray[np.float64], int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Activations:
    @overload
    def __init__(self, x: Floats) -> None: ...
    @overload
    def __init__(self, x: Floats, norm: Floats, eps: float) -> None: ...
    def floats(self, threads: int) -> Floats: ...
    def take(self, rows: Ints) -> Activations: ...
    @property
    def shape(self) -> tuple[int, int]: ...

class ExpertBuffer:
    def __init__(self, slots: int, record_bytes: int) -> None: ...
    def resize(self, record_bytes: int) -> None: ...
    def slot(self, slot: int) -> Bytes: ...
    @property
    def slots(self) -> int: ...
    @property
    def record_bytes(self) -> int: ...

class Experts:
    def __init__(
        self,
        count: int,
        hidden: int,
        intermediate: int,
        gate: str,
        up: str,
        down: str,
        resident: bool,
    ) -> None: ...
    def fill(self, part: str, expert: int, first_row: int, raw: Bytes, threads: int) -> None: ...
    def place(self, expert: int, buffer: ExpertBuffer, slot: int) -> None: ...
    def remove(self, expert: int) -> None: ...
    def is_resident(self, expert: int) -> bool: ...
    def add_biases(self, gate: Floats, up: Floats, down: Floats) -> None: ...
    def clamp(self, alpha: float, limit: float) -> None: ...
    def limit(self, most: float) -> None: ...
    def use_gelu(self) -> None: ...
    def watch(self) -> None: ...
    def seen(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]: ...
    def record(self, expert: int) -> Bytes: ...
    @property
    def count(self) -> int: ...
    @property
    def record_bytes(self) -> int: ...

class FilePacker:
    def __init__(self) -> None: ...
    def add_matrix(self, matrix: Matrix, offset: int) -> None: ...
    def add_part(self, experts: Experts, part: str, expert: int, offset: int) -> None: ...
    def run(
        self,
        descriptor: int,
        direct: bool,
        threads: int,
        seconds: float,
        report: Callable[[int], object],
    ) -> int: ...
    @property
    def not_finite(self) -> int: ...

class DirectFile:
    def __init__(self, descriptor: int) -> None: ...
    def read(self, offset: int, size: int) -> Bytes: ...
    def unchanged(self) -> bool: ...
    @property
    def direct(self) -> bool: ...

class ExpertReader:
    def __init__(self, threads: int) -> None: ...
    def submit_parts(
        self,
        tag: int,
        experts: Experts,
        expert: int,
        parts: Sequence[tuple[DirectFile, int]],
        priority: int,
    ) -> None: ...
    def submit_record(
        self, tag: int, experts: Experts, expert: int, file: DirectFile, offset: int, priority: int
    ) -> None: ...
    def raise_to(self, tag: int, priority: int) -> None: ...
    def cancel(self, tag: int) -> bool: ...
    def finish(self, tag: int, error: int) -> None: ...
    def take(self, seconds: float) -> list[tuple[int, int, int]]: ...
    @property
    def read_bytes(self) -> int: ...

class ExpertsPass:
    def __init__(
        self, rows: Activations, ids: Ints, weights: Floats, exact: bool, threads: int
    ) -> None: ...
    def run(self, experts: Experts, chosen: Sequence[int]) -> None: ...
    def leave_out(self, experts: Experts, chosen: Sequence[int]) -> None: ...
    def sum(self, experts: Experts, add: Floats | None) -> Floats: ...

class SuffixAutomaton:
    def __init__(self, max_tokens: int) -> None: ...
    def __len__(self) -> int: ...
    def append(self, token: int) -> None: ...
    def extend(self, tokens: Ints) -> None: ...
    def separate(self) -> None: ...
    def agreement(self, position: int, most: int) -> int: ...
    def nearest(self, position: int, before: int, after: int, most: int) -> tuple[int, int]: ...
    def copy(self, position: int, limit: int) -> list[int]: ...
    @property
    def match(self) -> tuple[int, int]: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class SuffixReader:
    def __init__(self, automaton: SuffixAutomaton) -> None: ...
    def extend(self, tokens: Ints) -> None: ...
    @property
    def match(self) -> tuple[int, int]: ...

asserts: bool

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_leak_warnings(on: bool) -> None: ...
def release_free_memory() -> None: ...
def quantize_blocks(dtype: str, x: Floats, importance: Floats | None, threads: int) -> Bytes: ...
def packed_bytes(dtype: str, rows: int, cols: int) -> int: ...
def matmul(
    a: Activations,
    weights: Sequence[Matrix],
    biases: Sequence[Floats | None],
    add: Floats | None,
    exact: bool,
    threads: int,
) -> list[Floats]: ...

class AttentionLayerKernel:
    def __init__(
        self,
        weights: list[Matrix],
        biases: Sequence[Floats | None],
        head_dim: int,
        q_norm: Floats | None,
        k_norm: Floats | None,
        eps: float,
        norm_last: bool,
        interleaved: bool,
        scale: float,
        window: int,
        sinks: Floats | None,
        value_scale: float,
        exact: bool,
        threads: int,
    ) -> None: ...
    def __call__(
        self,
        x: Activations,
        cache: NDArray[Any],
        positions: Ints,
        sequences: Ints,
        tables: Ints,
        chosen: Ints | None,
        cos: Floats | None,
        sin: Floats | None,
        add: Floats | None,
    ) -> Floats: ...

def quantize_rows(x: Floats) -> tuple[NDArray[np.int8], Floats]: ...
def rms_norm(x: Floats, weight: Floats, eps: float, threads: int) -> Floats: ...
def rope(x: Floats, cos: Floats, sin: Floats, interleaved: bool, threads: int) -> None: ...
def silu_mul(gate: Floats, up: Floats, threads: int) -> Floats: ...
def write_cache(
    k: Floats, v: Floats, cache: NDArray[Any], positions: Ints, sequences: Ints, tables: Ints
) -> None: ...
def paged_attention(
    q: Floats,
    cache: NDArray[Any],
    positions: Ints,
    sequences: Ints,
    tables: Ints,
    scale: float,
    window: int,
    sinks: Floats | None,
    values: int,
    value_scale: float,
    threads: int,
) -> Floats: ...
def write_latent(
    latent: Floats,
    rotated: Floats,
    cache: NDArray[Any],
    positions: Ints,
    sequences: Ints,
    tables: Ints,
) -> None: ...
def latent_attention(
    q: Floats,
    cache: NDArray[Any],
    positions: Ints,
    sequences: Ints,
    tables: Ints,
    latent: int,
    scale: float,
    threads: int,
) -> Floats: ...
def head_matmul(
    x: Floats, w: Matrix, first: int, outputs: int, room: int, exact: bool, threads: int
) -> Floats: ...
def rope_cache_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    cache: NDArray[Any],
    positions: Ints,
    sequences: Ints,
    tables: Ints,
    chosen: Ints | None,
    cos: Floats | None,
    sin: Floats | None,
    interleaved: bool,
    q_norm: Floats | None,
    k_norm: Floats | None,
    eps: float,
    norm_last: bool,
    scale: float,
    window: int,
    sinks: Floats | None,
    value_scale: float,
    threads: int,
) -> Floats: ...
def short_conv(
    x: Floats,
    weight: Floats,
    columns: Ints | None,
    with_silu: bool,
    states: Floats,
    positions: Ints,
    sequences: Ints,
    slots: Ints,
    saves: Ints,
    threads: int,
) -> Floats: ...
def delta_rule(
    qkv: Floats,
    a: Floats,
    b: Floats,
    rate: Floats,
    bias: Floats,
    key_heads: int,
    key_dim: int,
    offset: int,
    bound: float,
    states: Floats,
    positions: Ints,
    sequences: Ints,
    slots: Ints,
    saves: Ints,
    threads: int,
) -> Floats: ...
def gated_norm(
    x: Floats,
    weight: Floats,
    eps: float,
    gate: Floats,
    columns: Ints | None,
    with_silu: bool,
    threads: int,
) -> Floats: ...
def sigmoid_mul(x: Floats, gate: Floats, columns: Ints | None, threads: int) -> Floats: ...
def route(
    logits: Floats,
    k: int,
    sigmoid: bool,
    bias: Floats | None,
    rule: str,
    groups: int,
    kept: int,
    normalize: bool,
    scale: float,
    scales: Floats | None,
) -> tuple[Ints, Floats]: ...
def near_uses(scores: Floats, k: int, near: float) -> NDArray[np.float64]: ...
def experts_mlp(
    a: Activations,
    ids: Ints,
    weights: Floats,
    experts: Experts,
    add: Floats | None,
    exact: bool,
    threads: int,
) -> Floats: ...
def gated_mlp(
    a: Activations, experts: Experts, add: Floats | None, exact: bool, threads: int
) -> Floats: ...
def uniform(seed: int, position: int) -> float: ...
def sample_rows(
    logits: Floats,
    temperatures: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    min_ps: Sequence[float],
    uniforms: Sequence[float],
    threads: int,
) -> list[int]: ...
def log_sum_exp(logits: Floats) -> float: ...
def top_logprobs(logits: Floats, count: int) -> tuple[Ints, Floats]: ...
