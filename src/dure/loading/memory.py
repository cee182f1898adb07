"""Plan memory: the threads, KV cache type, context and cache size that fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import cast

from dure import hub, machine
from dure.batch import BLOCK_SIZE, CacheDtype
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.cache_size import CacheSize

DEFAULT_CONTEXT = 32768
"""Tokens, where model and memory allow: most chats and files fit, and no laptop is filled up."""


CONVERSATION_TOKENS = 4096
"""What the cache keeps of each of several conversations, if half of the free memory has room."""


OVERHEAD_BYTES = 150 << 20
"""Beside weights and cache: the interpreter, the vocabulary, and the activations of 512 rows."""


STATE_BYTES = 1 << 30
"""What the recurrent states of all sequences may take even where little memory is left."""


SMALLEST_CONTEXT = 512
"""Tokens; a model that fits only with less than this is said not to fit."""


@dataclass(frozen=True)
class MemoryPlan:
    """The context and the shared cache that fit, in tokens."""

    context: int
    cache_tokens: int


EXPERTS_A_TOKEN = 16
"""One in so many experts works on a token: 8 of 128 in Qwen3, of 256 in DeepSeek-V3."""


@dataclass(frozen=True)
class MemoryUse:
    """What a model takes of memory, part by part, and what it leaves on disk. Bytes."""

    budget: int | None  # that was asked for; None: what the machine had free
    resident_bytes: int  # weights that every token needs
    cache_bytes: int  # KV cache
    state_bytes: int  # recurrent states
    overhead_bytes: int  # interpreter, vocabulary, buffers
    expert_bytes: int  # all experts of a mixture
    expert_cache_bytes: int  # of them, those that stay in memory
    streamed: bool  # whether the others are read from disk as they are needed
    prefill_rows: int  # prompt tokens in one step at most
    left_bytes: int = 0  # embeddings that are read from disk, too, by row
    expected_tps: float | None = None  # tokens per second of one sequence; None: not known

    @property
    def row_bytes(self) -> int:
        """About how many bytes of weights a token goes through: of experts, one in sixteen."""
        return self.resident_bytes + self.expert_bytes // EXPERTS_A_TOKEN


def streaming_sentence(name: str, use: MemoryUse) -> str:
    """Say what of the model `name` is kept, what is read from disk, and the speed to expect.

    Returns one sentence; an empty text if nothing is read from disk.
    """
    memory = "the free memory" if use.budget is None else gigabytes(use.budget)
    if not use.streamed:
        left = gigabytes(use.left_bytes)
        said = (
            f"{name} with its cache is larger than {memory}: its embeddings ({left}) stay on disk"
        )
        return f"{said}, and are read row by row." if use.left_bytes else ""
    share = 100 * use.expert_cache_bytes // max(1, use.expert_bytes)
    said = (
        f"{name} is larger than {memory}: {gigabytes(use.resident_bytes)} that every token "
        f"needs, {gigabytes(use.cache_bytes + use.state_bytes)} of cache and {share} % of the "
        f"experts ({gigabytes(use.expert_cache_bytes)} of {gigabytes(use.expert_bytes)}) stay in "
        "memory, and the others are read from disk as they are needed"
    )
    if use.expected_tps is None:
        return f"{said}."
    digits = 0 if use.expected_tps >= 10 else 1 if use.expected_tps >= 1 else 2
    return f"{said}; expect about {use.expected_tps:.{digits}f} tokens per second."


MAX_THREADS = 1024


MAX_TOKENS = 1 << 40
"""More than any context or cache: what is larger is a mistake."""


MAX_CACHE_BYTES = 1 << 50


MAX_MEMORY_BYTES = 1 << 50


LEAST_MEMORY_BYTES = 1 << 20
"""A budget below this is a number whose unit was forgotten: `8` for 8 GB."""


_SIZE = re.compile(r"(\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})\s*(?:([kmgt])(i?))?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as "8GB", "512MB", "6GiB", "1.5G" or "8000000000" means.

    KB, MB, GB and TB are powers of 1,000, with or without the B; KiB, MiB, GiB and TiB are powers
    of 1,024. Case and a space before the unit do not matter. Raises InvalidRequestError for
    anything else, and for what cannot be a size of memory, below 1 MB or above 1,125,899 GB.
    """
    match = _SIZE.fullmatch(text.strip()) if text.isascii() else None
    if match is None:
        raise InvalidRequestError(
            f"{text[:40]!r} is no size of memory.", hint="8GB, 512MB, 6GiB, 1.5G, or plain bytes"
        )
    number, unit, binary = match.groups(default="")
    size = Fraction(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()]
    if not unit and size.denominator > 1:
        raise InvalidRequestError(
            f"{text[:40]!r} is no whole number of bytes.", hint=f"{number}GB, if that is meant"
        )
    return check_memory(int(size))


def check_memory(size_bytes: object) -> int:
    """Return a memory budget in bytes. Raises InvalidRequestError for what cannot be one."""
    size = check_whole("memory", size_bytes, 0, MAX_MEMORY_BYTES, hint="8GB, 512MB, 6GiB")
    if size < LEAST_MEMORY_BYTES:
        raise InvalidRequestError(
            f"A memory budget of {size:,} bytes holds no model.",
            hint="give it with a unit: 8GB, 512MB, 6GiB",
        )
    return size


def check_threads(threads: int | None) -> int:
    """Return `threads`, or the number of physical cores. Raises InvalidRequestError."""
    if threads is None:
        return machine.usable_threads()
    hint = f"leave it out to use this machine's {machine.usable_threads()}"
    return check_whole("threads", threads, 1, MAX_THREADS, hint=hint)


def check_whole(name: str, value: object, low: int, high: int, *, hint: str = "") -> int:
    """Return `value` if it is an integer from `low` to `high`; else raise InvalidRequestError."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidRequestError(f"{name} must be a whole number, not {value!r:.60}.", hint=hint)
    number = int(value)
    if not low <= number <= high:
        shown = f"{number:,}" if abs(number) < 10**30 else "a number of over 30 digits"
        raise InvalidRequestError(
            f"{name} must be from {low:,} to {high:,}, but is {shown}.", hint=hint
        )
    return number


def check_cache_dtype(dtype: str, *, exact: bool) -> CacheDtype:
    """Return the KV cache type. Raises InvalidRequestError for an unknown one."""
    if dtype not in ("f16", "q8"):
        raise InvalidRequestError(
            f"A KV cache of type {dtype!r} is not known.",
            hint="f16, or q8 for about half the memory",
        )
    if exact and dtype == "q8":
        raise InvalidRequestError(
            "An exact model has a float32 KV cache, not q8.",
            hint="leave one of the two out",
        )
    return "f32" if exact else cast(CacheDtype, dtype)


def plan_memory(
    name: str,
    *,
    wanted: int | None,
    model_context: int,
    size: CacheSize,
    weight_bytes: int,
    available: int,
    cache_bytes: int | None = None,
    cache_tokens: int | None = None,
    conversations: int = 1,
    budget: int | None = None,
    usual: int = DEFAULT_CONTEXT,
    smaller: CacheSize | None = None,
) -> MemoryPlan:
    """Plan context and cache from the `wanted` context (tokens) and `available` memory (bytes).

    `size` says what a cache takes; `usual` is the context where none is wanted and it fits. With a
    `budget` no more than that many bytes of the available memory are planned with. `smaller` is
    what a q8 cache would take, if that is another: the hint names it where it would fit.
    Raises InvalidRequestError for a context beyond the model's or a cache below one context,
    NotEnoughMemoryError for what does not fit.
    """
    if wanted is not None and not 1 <= wanted <= model_context:
        raise InvalidRequestError(
            f"A context of {wanted:,} tokens is outside 1 to {model_context:,}, "
            f"the most that {name} was made for."
        )
    bounded = budget is not None and budget < available
    if budget is not None:
        available = min(available, budget)
    fitting = size.tokens_in(available - weight_bytes - OVERHEAD_BYTES)
    least = min(model_context, SMALLEST_CONTEXT) if wanted is None else wanted
    if cache_tokens is None:
        # Several sequences share the cache, so it is not made smaller than the default context.
        many = min(conversations * CONVERSATION_TOKENS, fitting // 2)
        cache_tokens = max(min(fitting, usual), many)
    cache = _round_up(max(least, cache_tokens))
    if cache_bytes is not None:
        cache = size.tokens_in(cache_bytes)
        if cache < least:
            raise InvalidRequestError(
                f"A cache of {cache_bytes:,} bytes holds {cache:,} tokens of {name}, "
                f"less than the {least:,} of one context.",
                hint=f"give it {size.bytes_of(_round_up(least)):,} or more",
            )
    if cache > fitting:
        fixed = weight_bytes + OVERHEAD_BYTES
        needed, less = fixed + size.bytes_of(cache), None
        if smaller is not None and cache_bytes is None:
            as_q8 = fixed + smaller.bytes_of(cache)
            less = as_q8 if as_q8 <= available else None
        there = f"the budget is {gigabytes(available)}"
        raise NotEnoughMemoryError(
            f"{name} with a cache of {cache:,} tokens needs {gigabytes(needed)} of memory, "
            f"and {there if bounded else f'{gigabytes(available)} is available'}.",
            hint=(
                _what_would_do(fitting, needed, less)
                if bounded
                else _what_fits(fitting, available, less)
            ),
        )
    return MemoryPlan(min(model_context, usual, cache) if wanted is None else wanted, cache)


def state_slots(sequence_bytes: int, room: int) -> int:
    """Return the number of recurrent states: of running sequences, and snapshots of prefixes.

    They get an eighth of the `room` beside the weights, or 1 GiB if that is more (13 states of
    Qwen3-Next 80B, at 79 MB), at most 128 and at least 2; 0 of a model without (0 bytes).
    """
    if sequence_bytes == 0:
        return 0
    return max(2, min(128, max(room // 8, STATE_BYTES) // sequence_bytes))


def _what_fits(context: int, available: int, as_q8: int | None) -> str:
    """Format the hint: a context that fits, or models of the catalogue that fit.

    as_q8: what is needed with a cache in q8, if that fits.
    """
    if as_q8 is not None:
        also = f", or a context of {context:,} tokens" if context >= SMALLEST_CONTEXT else ""
        return f"with --cache q8 it fits, and needs {gigabytes(as_q8)}{also}"
    if context >= SMALLEST_CONTEXT:
        return f"a context of {context:,} tokens fits"
    # Packed weights take about what the file does; a tenth more leaves room for a short context.
    fitting = [
        entry
        for entry in hub.load_catalogue().entries
        if entry.is_known and entry.size_bytes * 11 // 10 + OVERHEAD_BYTES <= available
    ]
    if not fitting:
        return "close other programs, or use a machine with more memory"
    largest = sorted(fitting, key=lambda entry: entry.size_bytes)[-3:]
    return "of the catalogue these fit: " + ", ".join(entry.name for entry in reversed(largest))


def _what_would_do(context: int, needed: int, as_q8: int | None) -> str:
    """Format the hint for a budget that is too small: one that would do, a context, a q8 cache."""
    enough = f"{-(-needed // 10**7) / 100:.2f}GB"  # rounded up, as people copy it
    hint = f"a budget of {enough} would do"
    if context >= SMALLEST_CONTEXT:
        hint += f", or a context of {context:,} tokens"
    if as_q8 is not None:
        hint += f", or --cache q8, with which it needs {gigabytes(as_q8)}"
    return hint


def gigabytes(size_bytes: int) -> str:
    """Format `size_bytes` as "1.24 GB"."""
    return f"{size_bytes / 1e9:.2f} GB"


def _round_up(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE) * BLOCK_SIZE


def check_logits(tokens: int, vocab_size: int) -> None:
    """Raise NotEnoughMemoryError unless float32 logits of so many tokens fit in memory."""
    needed, available = tokens * vocab_size * 4, machine.memory_available()
    if needed > available:
        raise NotEnoughMemoryError(
            f"The logits of {tokens:,} tokens need {gigabytes(needed)} of memory, "
            f"and {gigabytes(available)} is available.",
            hint=f"ask for {available // (vocab_size * 4):,} tokens or fewer at a time",
        )
