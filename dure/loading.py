"""From a model's name to the model in memory, with a context that fits beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure import hub, machine, models
from dure.batch import BLOCK_SIZE
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.formats.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from dure.engine.engine import Model
    from dure.formats.checkpoint import Checkpoint

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

DEFAULT_CONTEXT = 32768
"""Tokens, where model and memory allow: most chats and files fit, and no laptop is filled up."""

OVERHEAD_BYTES = 150 << 20
"""Beside weights and cache: the interpreter, the vocabulary, and the activations of 512 rows."""

SMALLEST_CONTEXT = 512
"""Tokens; a model that fits only with less than this is said not to fit."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what was decided about it."""

    name: str
    path: Path
    checkpoint: Checkpoint
    model: Model
    threads: int
    context: int  # tokens of the longest sequence
    num_blocks: int  # of the cache that all sequences share
    sampling: Mapping[str, Any]  # the defaults that the model's makers recommend


@dataclass(frozen=True)
class MemoryPlan:
    """The context and the shared cache that fit, in tokens."""

    context: int
    cache_tokens: int


def load(
    name: str | os.PathLike[str] | None,
    *,
    threads: int | None = None,
    context: int | None = None,
    exact: bool = False,
    cache_bytes: int | None = None,
    cache_tokens: int | None = None,
    download_progress: Callable[[hub.Progress], None] | None = None,
    load_progress: Progress | None = None,
) -> LoadedModel:
    """The model called `name` (short name, hub id, file or folder; None: the default), in memory.

    Without `context` it is what the model and the memory allow, up to 32,768 tokens. The cache that
    sequences share is given in bytes, in tokens, or by default. Raises NotEnoughMemoryError if
    weights, cache and overhead do not fit; for the weights that is known before any is read.
    """
    resolved = hub.resolve(None if name is None else os.fspath(name), progress=download_progress)
    checkpoint = open_checkpoint(resolved.path)
    recommended = resolved.entry.sampling if resolved.entry is not None else {}
    threads = check_threads(threads)
    weight_bytes = models.memory_needed(checkpoint)
    available = machine.memory_available()
    _check_weights(resolved.name, weight_bytes, available)
    model = models.load_model(checkpoint, threads=threads, exact=exact, progress=load_progress)
    dtype = "float32" if exact else "float16"
    plan = plan_memory(
        resolved.name,
        wanted=context,
        model_context=model.context_length,
        token_bytes=sum(layer.bytes_per_token(dtype) for layer in model.layer_caches),
        weight_bytes=weight_bytes,
        available=available,
        cache_bytes=cache_bytes,
        cache_tokens=cache_tokens,
    )
    return LoadedModel(
        name=resolved.name,
        path=resolved.path,
        checkpoint=checkpoint,
        model=model,
        threads=threads,
        context=plan.context,
        num_blocks=plan.cache_tokens // BLOCK_SIZE,
        sampling={**recommended, **checkpoint.generation_config},
    )


def check_threads(threads: int | None) -> int:
    """`threads`, or as many as this process has physical cores; InvalidRequestError below 1."""
    if threads is None:
        return machine.usable_threads()
    if not 1 <= threads <= 1024:
        raise InvalidRequestError(
            f"{threads} threads are outside 1 to 1024.",
            hint=f"leave it out to use this machine's {machine.usable_threads()}",
        )
    return threads


def plan_memory(
    name: str,
    *,
    wanted: int | None,
    model_context: int,
    token_bytes: int,
    weight_bytes: int,
    available: int,
    cache_bytes: int | None = None,
    cache_tokens: int | None = None,
) -> MemoryPlan:
    """The context and cache to make, from what is `wanted` (tokens) and `available` (bytes).

    `token_bytes` is what one token takes in the cache of all layers. Raises InvalidRequestError for
    a context beyond the model's or a cache below one context, NotEnoughMemoryError for what does
    not fit.
    """
    if wanted is not None and not 1 <= wanted <= model_context:
        raise InvalidRequestError(
            f"A context of {wanted:,} tokens is outside 1 to {model_context:,}, "
            f"the most that {name} was made for."
        )
    fitting = _whole_blocks(available - weight_bytes - OVERHEAD_BYTES, token_bytes)
    least = min(model_context, SMALLEST_CONTEXT) if wanted is None else wanted
    # Several sequences share the cache, so it is not made smaller than the default context.
    shared = min(fitting, DEFAULT_CONTEXT) if cache_tokens is None else cache_tokens
    cache = _round_up(max(least, shared))
    if cache_bytes is not None:
        cache = _whole_blocks(cache_bytes, token_bytes)
        if cache < least:
            raise InvalidRequestError(
                f"A cache of {cache_bytes:,} bytes holds {cache:,} tokens of {name}, "
                f"less than the {least:,} of one context.",
                hint=f"give it {_round_up(least) * token_bytes:,} or more",
            )
    if cache > fitting:
        needed = weight_bytes + OVERHEAD_BYTES + cache * token_bytes
        raise NotEnoughMemoryError(
            f"{name} with a cache of {cache:,} tokens needs {gigabytes(needed)} of memory, "
            f"and {gigabytes(available)} is available.",
            hint=_what_fits(fitting, available),
        )
    return MemoryPlan(
        min(model_context, DEFAULT_CONTEXT, cache) if wanted is None else wanted, cache
    )


def _check_weights(name: str, weight_bytes: int, available: int) -> None:
    """Nothing; NotEnoughMemoryError, before they are read, if the weights alone do not fit."""
    needed = weight_bytes + OVERHEAD_BYTES
    if needed > available:
        raise NotEnoughMemoryError(
            f"{name} needs {gigabytes(needed)} of memory, and {gigabytes(available)} is available.",
            hint=_what_fits(0, available),
        )


def _what_fits(context: int, available: int) -> str:
    """What to do instead: a context of so many tokens, or a model of the catalogue that fits."""
    if context >= SMALLEST_CONTEXT:
        return f"a context of {context:,} tokens fits"
    # Packed weights take about what the file does; a tenth more leaves room for a short context.
    fitting = [
        entry
        for entry in hub.load_catalogue().entries
        if entry.size_bytes * 11 // 10 + OVERHEAD_BYTES <= available
    ]
    if not fitting:
        return "close other programs, or use a machine with more memory"
    largest = sorted(fitting, key=lambda entry: entry.size_bytes)[-3:]
    return "of the catalogue these fit: " + ", ".join(entry.name for entry in reversed(largest))


def gigabytes(size_bytes: int) -> str:
    """`size_bytes` as "1.24 GB": two that differ enough to matter do not look the same."""
    return f"{size_bytes / 1e9:.2f} GB"


def _whole_blocks(size_bytes: int, token_bytes: int) -> int:
    """Tokens of the cache blocks that `size_bytes` hold."""
    return max(0, size_bytes // (token_bytes * BLOCK_SIZE)) * BLOCK_SIZE


def _round_up(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE) * BLOCK_SIZE
