"""From a model's name to the model in memory, with a context that fits beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dure import hub, kernels, machine, models
from dure.batch import BLOCK_SIZE, CacheDtype
from dure.errors import InvalidRequestError, NotEnoughMemoryError, TokenizerError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.texts import Texts
from dure.quantize import check_scheme

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.models import Model
    from dure.text.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

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
class LoadedModel:
    """A model ready to run, and what was decided about it."""

    name: str
    path: Path
    checkpoint: Checkpoint  # without the vocabulary that the tokenizer was made from
    model: Model
    text: Tokenizer | None
    threads: int
    context: int  # tokens of the longest sequence
    num_blocks: int  # of the cache that all sequences share
    cache_dtype: CacheDtype
    sampling: Mapping[str, Any]  # the defaults that the model's makers recommend
    num_states: int = 0  # recurrent states that all sequences share; 0 of a model without

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; TokenizerError if it was loaded without."""
        if self.text is None:
            raise TokenizerError(f"{self.name} was loaded without its tokenizer.")
        return self.text


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
    quantize: str | None = None,
    cache_bytes: int | None = None,
    cache_tokens: int | None = None,
    cache_dtype: CacheDtype = "f16",
    conversations: int = 1,
    with_tokenizer: bool = True,
    download_progress: Callable[[hub.Progress], None] | None = None,
    load_progress: Progress | None = None,
) -> LoadedModel:
    """The model called `name` (short name, hub id, file or folder; None: the default), in memory.

    Without `context` it is what the model and the memory allow, up to 32,768 tokens. `quantize` is
    q8, q6 or q4, for what the files have in floats (FP8 is one). The cache that
    sequences share is given in bytes, in tokens, or made for so many `conversations`; it is f16 or
    q8, and f32 if exact.
    Raises NotEnoughMemoryError if weights, cache and overhead do not fit, before any matrix is
    read. Without `with_tokenizer` a model that has none loads, too.
    """
    resolved = hub.resolve(None if name is None else os.fspath(name), progress=download_progress)
    name = _label(resolved)
    threads = check_threads(threads)
    checkpoint = open_checkpoint(resolved.path)
    models.family_of(checkpoint)  # an architecture we do not run is said before anything else
    tokenizer = _TokenizerMaker(checkpoint if with_tokenizer else None)
    checkpoint = _without_vocabulary(checkpoint)
    dtype = check_cache_dtype(cache_dtype, exact=exact)
    scheme = None if quantize is None else check_scheme(quantize)
    weight_bytes = models.memory_needed(checkpoint, quantize=scheme)
    available = machine.memory_available()

    def planned(model: Model) -> tuple[MemoryPlan, int]:
        """The plan, and how many recurrent states come with it."""
        sequence_bytes = sum(layer.bytes_per_sequence for layer in model.layer_caches)
        states = state_slots(sequence_bytes, available - weight_bytes - OVERHEAD_BYTES)
        token_bytes = sum(layer.bytes_per_token(dtype) for layer in model.layer_caches)
        plan = plan_memory(
            name,
            wanted=context,
            model_context=model.context_length,
            token_bytes=token_bytes,
            weight_bytes=weight_bytes + states * sequence_bytes,
            available=available,
            cache_bytes=cache_bytes,
            cache_tokens=cache_tokens,
            conversations=conversations,
        )
        return plan, states

    def before_packing(model: Model) -> None:
        planned(model)  # what does not fit is refused before minutes of packing
        tokenizer.start()

    model = models.load_model(
        checkpoint,
        threads=threads,
        exact=exact,
        quantize=scheme,
        progress=tokenizer.watched(load_progress),
        before_packing=before_packing,
    )
    text = tokenizer.result()
    kernels.release_free_memory()
    final, num_states = planned(model)
    recommended = resolved.entry.sampling if resolved.entry is not None else {}
    return LoadedModel(
        name=name,
        path=resolved.path,
        checkpoint=checkpoint,
        model=model,
        text=text,
        threads=threads,
        context=final.context,
        num_blocks=final.cache_tokens // BLOCK_SIZE,
        cache_dtype=dtype,
        sampling={**recommended, **checkpoint.generation_config},
        num_states=num_states,
    )


class _TokenizerMaker:
    """Makes a checkpoint's tokenizer on a thread of its own, while the weights are packed."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        self._result: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make)

    def start(self) -> None:
        """Nothing; it is being made from now on."""
        self._thread.start()

    def watched(self, progress: Progress | None) -> Progress:
        """The same callback, which raises what the tokenizer failed with: nobody should wait for
        100 GB to hear that the vocabulary is damaged."""

        def report(done: int, total: int) -> None:
            if self._error is not None:
                raise self._error
            if progress is not None:
                progress(done, total)

        return report

    def result(self) -> Tokenizer | None:
        """The tokenizer, waited for; None without a checkpoint. Raises what it failed with."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def _make(self) -> None:
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        try:
            # Importing it takes 30 ms, which are a part of what is hidden behind the weights.
            from dure.text.tokenizer import Tokenizer  # noqa: PLC0415

            self._result = Tokenizer.from_checkpoint(checkpoint)
        except BaseException as error:
            self._error = error
        del checkpoint
        # 450,000 short strings lay between what stays: memory that the weights would come beside.
        kernels.release_free_memory()


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


def check_cache_dtype(dtype: str, *, exact: bool) -> CacheDtype:
    """How the cache is kept; InvalidRequestError for what it cannot be."""
    if dtype not in ("f16", "q8"):
        raise InvalidRequestError(
            f"A cache of {dtype!r} is not known.", hint="it is f16, or q8 to take half the memory"
        )
    if exact and dtype == "q8":
        raise InvalidRequestError(
            "An exact model keeps its cache in float32, not in 8 bits.",
            hint="leave one of them out",
        )
    return "f32" if exact else cast(CacheDtype, dtype)


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
    conversations: int = 1,
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
    if cache_tokens is None:
        # Several sequences share the cache, so it is not made smaller than the default context.
        many = min(conversations * CONVERSATION_TOKENS, fitting // 2)
        cache_tokens = max(min(fitting, DEFAULT_CONTEXT), many)
    cache = _round_up(max(least, cache_tokens))
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


def _label(resolved: hub.ResolvedModel) -> str:
    """What the model is called from here on: of a path its last part."""
    is_path = Path(resolved.name).expanduser() == resolved.path
    return resolved.path.absolute().name if is_path else resolved.name


def _without_vocabulary(checkpoint: Checkpoint) -> Checkpoint:
    """The same without a GGUF's tokens and merges, which nobody reads again."""
    metadata = checkpoint.metadata
    kept = {key: metadata[key] for key in metadata if not isinstance(metadata[key], (list, Texts))}
    return replace(checkpoint, metadata=kept)


def state_slots(sequence_bytes: int, room: int) -> int:
    """How many recurrent states to have room for: of running sequences, and snapshots of prefixes.

    They get an eighth of the `room` beside the weights, or 1 GiB if that is more (13 states of
    Qwen3-Next 80B, at 79 MB), at most 128 and at least 2; 0 of a model without (0 bytes).
    """
    if sequence_bytes == 0:
        return 0
    return max(2, min(128, max(room // 8, STATE_BYTES) // sequence_bytes))


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
