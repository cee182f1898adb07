"""What of a model is in memory, part by part, and whether that fits: before a weight is read.

What is kept and what stays on disk is decided by `loading.planner`, which loading itself asks. Here
its answer is split into parts, and what a process really has at its peak is estimated: loading
reserves a little more, so that it never runs out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure import machine, models
from dure.batch import BLOCK_SIZE
from dure.errors import NotEnoughMemoryError
from dure.loading.cache_size import MOST_TOKENS, ROWS, CacheSize
from dure.loading.draft import head_specs
from dure.loading.memory import OVERHEAD_BYTES
from dure.loading.planner import Plan, Planner
from dure.weights.expert_pool import ExpertPool
from dure.weights.streaming_pool import StreamingExpertPool

if TYPE_CHECKING:
    from dure.batch import CacheDtype
    from dure.formats.checkpoint import Checkpoint
    from dure.layers.mixer_work import MixerWork
    from dure.planning.work import ModelWork
    from dure.weights.quantize import Scheme

INTERPRETER_BYTES = 55_000_000
"""Python, numpy, dure's own code and what a first answer loads of it; measured, Linux, 3.11."""

TOKEN_BYTES = 424
"""What the tokenizer keeps of one token of the vocabulary; measured of 49,152 and 151,936."""

HISTORY_BYTES = 900
"""What is kept of one token of a conversation beside the cache: its id, its text, its place in what
is searched for repetitions; measured of 512 to 4,096 tokens."""

PRODUCT_BYTES = 8 << 20
"""What experts' products take at once at most, where all experts are in memory: csrc/ops/ops.h."""

TILE_BYTES, TILE_NUMBERS = 52, 32
"""What so many numbers of a row take as int8 and what goes with them: csrc/ops/ops.h."""

_PAGE, _LARGE_ARRAY = 2 << 20, 4 << 20  # numpy asks for large pages from 4 MB on

STATES_OF_ONE = 2
"""Recurrent states of one conversation: its own, and one at the end of its prompt."""


@dataclass(frozen=True)
class Footprint:
    """What a model takes in memory for `users` conversations of `context` tokens each. Bytes."""

    context: int
    users: int
    weights: Mapping[str, int]  # by type in memory, experts left out; "vectors"; "other"
    experts: Mapping[str, int]  # of a mixture, all of them, by type
    experts_kept: int  # of them in memory; the others are read from disk as they are needed
    token_bytes: int  # of a cache, of each token in the layers that keep all of them
    cache_bytes: int  # of all users' tokens, in the caches of all replicas
    state_bytes: int  # recurrent states of all users
    buffer_bytes: int  # of a step's rows
    process_bytes: int  # the interpreter, the vocabulary, and texts
    reserved_bytes: int  # what loading sets aside: all of the above at most
    available_bytes: int  # what there is: the budget, or what the machine has free
    budget: int | None  # as it was asked for
    problem: str  # why it does not run; empty if it does
    hint: str
    most_context: int  # tokens of each user that would fit; 0 if none do, or it is not known
    most_users: int  # of `context` tokens each that would fit
    replicas: int = 1  # engines of it in this process, among which the users are divided

    @property
    def fits(self) -> bool:
        """Whether it runs, with experts on disk where there are too many."""
        return not self.problem

    @property
    def streams(self) -> bool:
        """Whether experts are read from disk."""
        return self.fits and self.experts_kept < sum(self.experts.values())

    @property
    def weight_bytes(self) -> int:
        """Weights in memory."""
        return sum(self.weights.values()) + self.experts_kept

    @property
    def peak_bytes(self) -> int:
        """What the process has at its peak, about."""
        cache = self.cache_bytes + self.state_bytes
        return self.weight_bytes + cache + self.buffer_bytes + self.process_bytes


def footprint(
    checkpoint: Checkpoint,
    work: ModelWork,
    *,
    context: int | None = None,
    users: int = 1,
    budget: int | None = None,
    available: int | None = None,
    quantize: Scheme | None = None,
    cache_dtype: CacheDtype = "f16",
    replicas: int = 1,
) -> Footprint:
    """Plan a model's memory as loading it would; no weight is read.

    context: tokens of each of `users` conversations; None: what loading takes. budget: bytes that
    the process may take at most. available: bytes that the machine has free; None: this one's now.
    replicas: engines over the same weights, each with a cache for its part of the users. Raises
    InvalidRequestError for a context beyond the model's.
    """
    each = -(-users // replicas)
    free = machine.memory_available() if available is None else available
    weights = models.weight_bytes(checkpoint, quantize=quantize)
    planner = Planner(
        work.name,
        weights=weights,
        draft_bytes=0,
        draft_specs=(),
        budget=budget,
        available=free,
        context=context,
        cache_bytes=None,
        cache_tokens=None if context is None else context * each,
        cache_dtype=cache_dtype,
        conversations=each,
        replicas=replicas,
    )
    model = models.header_model(checkpoint, draft_heads=True, quantize=quantize)[0]
    size = CacheSize.of(  # of all caches
        list(model.kv_cache_specs) * replicas,
        cache_dtype,
        whole=tuple(head_specs(model)) * replicas,
        conversations=each,
    )
    room = free if budget is None else min(free, budget)
    plan, problem, hint = _planned(planner, checkpoint, model, quantize, may_stream=replicas == 1)
    wanted = min(work.context, context or (plan.context if plan else work.context))
    resident, experts = _by_type(work, weights.total)
    if plan is not None and plan.memory.left_bytes:  # what is looked up by row stays on disk
        resident = _scaled(resident, plan.memory.resident_bytes)
    kept = sum(experts.values())
    fixed = sum(resident.values()) + OVERHEAD_BYTES + (0 if plan else kept)
    if plan is not None:
        kept = min(kept, plan.memory.expert_cache_bytes)
        fixed += 0 if plan.memory.streamed else kept
    sequence = sum(spec.bytes_per_sequence for spec in model.kv_cache_specs) * replicas
    cached = _whole_blocks(wanted) * each if context or plan is None else plan.cache_tokens
    fitting = size.tokens_in(max(0, room - fixed - each * STATES_OF_ONE * sequence))
    most = _most_users(size, room - fixed, _whole_blocks(wanted), STATES_OF_ONE * sequence)
    states = _state_bytes(model, each * STATES_OF_ONE, plan.num_states if plan else 0)
    step_bytes = buffer_bytes(work, min(ROWS, cached), streamed=kept < sum(experts.values()))
    text_bytes = TOKEN_BYTES * work.vocabulary + HISTORY_BYTES * cached * replicas
    return Footprint(
        context=wanted,
        users=users,
        weights=resident,
        experts=experts,
        experts_kept=kept,
        token_bytes=size.token_bytes // replicas,
        cache_bytes=size.bytes_of(cached),
        state_bytes=states * replicas,
        buffer_bytes=step_bytes * replicas,
        process_bytes=INTERPRETER_BYTES + text_bytes,
        reserved_bytes=_reserved(plan),
        available_bytes=room,
        budget=budget,
        problem=problem,
        hint=hint,
        most_context=min(work.context, fitting // each // BLOCK_SIZE * BLOCK_SIZE),
        most_users=most * replicas,
        replicas=replicas,
    )


def _most_users(size: CacheSize, room: int, tokens: int, state_bytes: int) -> int:
    """Return how many users of so many tokens and bytes of recurrent states each fit in `room`."""

    def takes(users: int) -> int:
        return replace(size, conversations=users).bytes_of(users * tokens) + users * state_bytes

    least = max(1, tokens * size.token_bytes + state_bytes)
    low, high = 0, min(max(0, room) // least, MOST_TOKENS // max(1, tokens))
    while low < high:
        middle = (low + high + 1) // 2
        if takes(middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def buffer_bytes(work: ModelWork, rows: int, *, streamed: bool = False) -> int:
    """Return what a step of so many rows takes while it is computed."""
    is_plain = all(mixer.kind == "gqa" for mixer, _ in work.mixers)
    if is_plain and not any(matrix.experts for matrix in work.matrices):
        return _dense_bytes(work, rows)
    return rows * _row_bytes(work, streamed=streamed)


def _dense_bytes(work: ModelWork, rows: int) -> int:
    """Return what a step of a dense decoder takes: its embeddings, and what the kernels keep.

    The kernels keep what is freed for the next buffer of its class of sizes (buffer_pool.h): so of
    each class as many stay as attention or the MLP has at once, whichever has more.
    """
    width = max((m.rows for m in work.matrices if m.part == "dense"), default=0)
    x, most = 4 * work.hidden, Counter[int]()
    at_once = [x, min(x, PRODUCT_BYTES // rows), _tile_bytes(work.hidden), _tile_bytes(width)]
    phases = [[x, x, *at_once]]  # the block's input, and that of its MLP, beside the result
    for mixer, _ in work.mixers:
        queries, values = mixer.heads * mixer.key_dim, mixer.heads * mixer.value_dim
        kept = [mixer.kv_heads * mixer.key_dim, mixer.kv_heads * mixer.value_dim]
        floats = [4 * numbers for numbers in (queries, values, *kept)]
        phases.append([x, x, *floats, _tile_bytes(work.hidden), _tile_bytes(values)])
    for phase in phases:
        most |= Counter(_size_class(rows * each) for each in phase)
    return rows * x + sum(size * count for size, count in most.items())


def _tile_bytes(numbers: int) -> int:
    """Return the bytes of a row as int8, with its scales and sums: tiles.h."""
    return TILE_BYTES * -(-numbers // TILE_NUMBERS)


def _size_class(size: int) -> int:
    """Return the bytes that the kernels take for a buffer: a quarter of a power of two apart."""
    step = 1024
    while 8 * step < size:
        step *= 2
    return -(-size // step) * step


def _row_bytes(work: ModelWork, *, streamed: bool = False) -> int:
    """Return what one row of a step takes while it is computed, about.

    Residuals are some rows of floats, and attention has its queries and what it read of values; an
    MLP keeps int8 and half of what lies between. A mixture adds its products up by columns, unless
    its experts come from disk. Measured with 512 rows of dense models, a mixture and latent
    attention.
    """
    mixtures = [matrix for matrix in work.matrices if matrix.experts]
    widths = 2 * max((m.rows for m in work.matrices if m.use == "dense"), default=0)
    if mixtures:
        width, top_k = max(m.rows for m in mixtures), max(m.active for m in mixtures)
        products = 4 * top_k * work.hidden
        at_once = products if streamed else min(products, PRODUCT_BYTES // ROWS)
        widths = max(widths, top_k * 2 * (work.hidden + width) + at_once)
    return 8 * work.hidden + 4 * max(_numbers(mixer) for mixer, _ in work.mixers) + widths


def _numbers(mixer: MixerWork) -> int:
    """Return the floats of one row that a mixer has at once, beside residuals."""
    values = mixer.heads * mixer.value_dim
    if mixer.kind == "recurrent":  # q, k and v before and after the convolution; gates; results
        return 2 * (2 * mixer.kv_heads * mixer.key_dim + values) + 3 * values
    return mixer.heads * mixer.key_dim + values


def _state_bytes(model: Any, used: int, slots: int) -> int:
    """Return the memory of `used` recurrent states of `slots` that are allocated.

    The system provides memory in pages of 2 MB where an array is large.
    """
    total = 0
    for spec in model.kv_cache_specs:
        size = used * spec.bytes_per_sequence
        if slots * spec.bytes_per_sequence >= _LARGE_ARRAY:
            size = -(-size // _PAGE) * _PAGE
        total += size
    return total


def _planned(
    planner: Planner,
    checkpoint: Checkpoint,
    model: Any,
    quantize: Scheme | None,
    *,
    may_stream: bool,
) -> tuple[Plan | None, str, str]:
    """Return the plan, with experts or embeddings on disk if need be; or None, why not, a hint."""
    try:
        return planner.plan(model, None), "", ""
    except NotEnoughMemoryError as error:
        problem, hint = error.message, error.hint
    if not may_stream:
        return None, problem, hint
    pool = StreamingExpertPool() if planner.may_stream else ExpertPool(leaves_rows=True)
    try:
        streamed, _ = models.header_model(
            checkpoint, draft_heads=True, quantize=quantize, expert_pool=pool
        )
        return planner.plan(streamed, pool), "", ""
    except NotEnoughMemoryError as error:
        return None, error.message, error.hint


def _by_type(work: ModelWork, total: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of all other weights and of experts, by type in memory.

    total: what loading counts; what is no part of the work, such as draft heads, is "other".
    """
    resident: Counter[str] = Counter()
    experts: Counter[str] = Counter()
    for matrix in work.matrices:
        (experts if matrix.experts else resident)[matrix.dtype] += matrix.nbytes
    found = dict(resident.most_common())
    found["vectors"] = work.vector_bytes
    rest = total - sum(found.values()) - sum(experts.values())
    if rest > 0:
        found["other"] = rest
    return found, dict(experts.most_common())


def _scaled(resident: dict[str, int], total: int) -> dict[str, int]:
    """Take what stays on disk out of the largest part, so that all parts are `total`."""
    left = max(0, sum(resident.values()) - total)
    largest = max(resident, key=lambda name: resident[name])
    return resident | {largest: max(0, resident[largest] - left)}


def _reserved(plan: Plan | None) -> int:
    """Return what loading sets aside; 0 without a plan."""
    if plan is None:
        return 0
    use = plan.memory
    cache = use.cache_bytes + use.state_bytes
    return use.resident_bytes + use.expert_cache_bytes + cache + use.overhead_bytes


def _whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE) * BLOCK_SIZE
