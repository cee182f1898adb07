"""Load a model by name, with a context and a KV cache that fit beside its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure import hub, kernels, machine, models
from dure.batch import BLOCK_SIZE, CacheDtype
from dure.errors import TokenizerError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.string_array import StringArray
from dure.hub.settings import NO_SETTINGS, SAMPLING_FIELDS
from dure.loading.draft import (
    DraftCheckpoint,
    check_heads,
    draft_name,
    head_specs,
    open_draft,
)
from dure.loading.memory import (
    DEFAULT_CONTEXT,
    MAX_CACHE_BYTES,
    MAX_TOKENS,
    MemoryUse,
    check_cache_dtype,
    check_memory,
    check_threads,
    check_whole,
)
from dure.loading.offload import open_pool, read_what_fits
from dure.loading.planner import Planner
from dure.loading.tokenizer_thread import TokenizerThread
from dure.weights.quantize import check_scheme
from dure.weights.streaming_pool import StreamingExpertPool

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.models import Model
    from dure.text.tokenizer import Tokenizer
    from dure.weights.expert_pool import ExpertPool
    from dure.weights.loader import OnMade

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, with its threads, context and cache size."""

    name: str
    path: Path
    checkpoint: Checkpoint  # without the vocabulary that the tokenizer was made from
    model: Model
    text: Tokenizer | None
    threads: int
    context: int  # tokens of the longest sequence
    num_blocks: int  # of the cache that all sequences share
    cache_dtype: CacheDtype
    sampling: Mapping[str, Any]  # the defaults that the model's makers, or its store, recommend
    memory: MemoryUse
    num_window_blocks: int | None = None  # of layers with a window; None: num_blocks
    num_states: int = 0  # recurrent states that all sequences share; 0 of a model without
    draft_model: Model | None = None  # a smaller one, which guesses tokens for this one
    has_draft_heads: bool = False  # layers of its own that do, and are loaded
    expert_pool: StreamingExpertPool | None = None  # None: all experts are in memory
    settings: hub.ModelSettings = NO_SETTINGS  # what its store says of its use
    notes: tuple[str, ...] = ()  # what was left out of that, for the person

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises TokenizerError if the model was loaded without one."""
        if self.text is None:
            raise TokenizerError(f"{self.name} was loaded without its tokenizer.")
        return self.text


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
    replicas: int = 1,
    with_tokenizer: bool | None = True,
    speculate: str = "off",
    memory: int | None = None,
    download_progress: Callable[[hub.Progress], None] | None = None,
    load_progress: Progress | None = None,
    on_made: OnMade = lambda _name, _made: None,
) -> LoadedModel:
    """Load the model `name`: a short name, hub id, file or folder (None: the default).

    `context` in tokens; None: what model and memory allow, up to 32,768. `quantize` (q8, q6, q4)
    applies to float and FP8 weights. The shared KV cache has `cache_bytes` bytes, `cache_tokens`
    tokens, or 4,096 tokens for each of `conversations`; its type is f16 or q8, and f32 if `exact`.
    Of `replicas` there are as many caches of that many tokens, which have `cache_bytes` together.
    Without `with_tokenizer` no tokenizer is made; True: that the model has none is a TokenizerError
    before its weights are read; None: it then gets a NoTokenizer. `speculate` as in LLM: whether
    the model's own draft heads are loaded, or a smaller model. `memory` is the budget in bytes of
    all that the process takes; None: what the machine has free. `on_made` is told the name of each
    matrix and mixture when it is made, before it is filled; if all is made anew, the last counts.

    Raises NotEnoughMemoryError, before any matrix is read, if weights, cache and overhead do not
    fit in the budget and the free memory, not even with the embeddings left on disk, as experts
    are; and the other errors of dure.errors.
    """
    threads = check_threads(threads)
    _check_sizes(context, cache_bytes, cache_tokens, conversations)
    memory = None if memory is None else check_memory(memory)
    dtype = check_cache_dtype(cache_dtype, exact=exact)
    scheme = None if quantize is None else check_scheme(quantize)
    weigh = partial(models.weight_bytes, exact=exact, quantize=scheme)
    load_model = partial(models.load_model, threads=threads, exact=exact, quantize=scheme)

    files = _open(name, speculate, with_tokenizer=with_tokenizer, progress=download_progress)
    drafting, settings = files.drafting, files.resolved.settings
    planner = Planner(
        files.name,
        weights=weigh(files.checkpoint),
        draft_bytes=0 if drafting is None else weigh(drafting.checkpoint).total,
        draft_specs=() if drafting is None else drafting.kv_cache_specs,
        budget=memory,
        available=machine.memory_available(),
        context=context,
        usual_context=settings.context or DEFAULT_CONTEXT,
        cache_bytes=cache_bytes,
        cache_tokens=cache_tokens,
        cache_dtype=dtype,
        conversations=conversations,
        replicas=replicas,
    )

    def read(pool: ExpertPool | None) -> Model:
        def before_packing(model: Model) -> None:
            if speculate == "heads":
                check_heads(files.name, model)
            planner.plan(model, pool)  # what does not fit is refused before minutes of packing
            files.tokenizer.start()

        return load_model(
            files.checkpoint,
            draft_heads=files.draft_heads,
            progress=files.tokenizer.watched(load_progress),
            before_packing=before_packing,
            expert_pool=pool,
            on_made=on_made,
        )

    model, pool = read_what_fits(
        read,
        planner,
        probe=lambda: models.checked_model(files.checkpoint, draft_heads=files.draft_heads),
        may_leave=replicas == 1,  # what is read from disk is one engine's
    )
    text = files.tokenizer.result()
    draft_model = None if drafting is None else load_model(drafting.checkpoint)
    kernels.release_free_memory()
    plan = planner.plan(model, pool)
    use, streaming = plan.memory, None
    if isinstance(pool, StreamingExpertPool):
        streaming = pool
        use = open_pool(pool, plan, files.checkpoint, threads=threads, limit=memory)
    return LoadedModel(
        name=files.name,
        path=files.resolved.path,
        checkpoint=files.checkpoint,
        model=model,
        text=text,
        threads=threads,
        context=plan.context,
        num_blocks=plan.cache_tokens // BLOCK_SIZE,
        cache_dtype=dtype,
        sampling=_sampling(files.resolved, files.checkpoint),
        memory=use,
        num_window_blocks=plan.window_tokens // BLOCK_SIZE,
        num_states=plan.num_states,
        draft_model=draft_model,
        has_draft_heads=bool(head_specs(model)),
        expert_pool=streaming,
        settings=settings,
        notes=(
            *_notes(files.asked, files.resolved, files.checkpoint),
            *_shorter(settings.context, context, plan.context, model.context_length),
        ),
    )


def _check_sizes(
    context: int | None, cache_bytes: int | None, cache_tokens: int | None, conversations: int
) -> None:
    for what, value, most in (
        ("context", context, MAX_TOKENS),
        ("cache_bytes", cache_bytes, MAX_CACHE_BYTES),
        ("cache_tokens", cache_tokens, MAX_TOKENS),
        ("conversations", conversations, MAX_TOKENS),
    ):
        if value is not None:
            check_whole(what, value, 1, most)


@dataclass(frozen=True)
class _Files:
    """What is loaded: the files of a model and of its draft model, and who makes its tokenizer."""

    asked: str  # the name that it was asked for by; "" is the default
    name: str
    resolved: hub.ResolvedModel
    checkpoint: Checkpoint
    drafting: DraftCheckpoint | None
    draft_heads: bool  # whether the model's own are wanted
    tokenizer: TokenizerThread


def _open(
    name: str | os.PathLike[str] | None,
    speculate: str,
    *,
    with_tokenizer: bool | None,
    progress: Callable[[hub.Progress], None] | None,
) -> _Files:
    """Find the files, download them first if they are not here, and read their headers."""
    resolved = hub.resolve(None if name is None else os.fspath(name), progress=progress)
    checkpoint = open_checkpoint(resolved.path)
    models.family_of(checkpoint)  # an unsupported architecture is reported first
    draft = draft_name(speculate)
    drafting = None if draft is None else open_draft(draft, progress)
    tokenizer = TokenizerThread(
        None if with_tokenizer is False else checkpoint, drafting, required=bool(with_tokenizer)
    )
    return _Files(
        asked="" if name is None else os.fspath(name),
        name=_label(resolved),
        resolved=resolved,
        checkpoint=_without_vocabulary(checkpoint),
        drafting=drafting,
        draft_heads=speculate in ("auto", "heads"),
        tokenizer=tokenizer,
    )


def finish_loading(
    asked: str,
    resolved: hub.ResolvedModel,
    checkpoint: Checkpoint,
    model: Model,
    *,
    threads: int,
    context: int,
    num_blocks: int,
    cache_dtype: CacheDtype,
    memory: MemoryUse,
) -> LoadedModel:
    """Return a model whose layers are loaded, here or elsewhere, with its tokenizer and settings.

    asked: the name that it was asked for by. Raises TokenizerError.
    """
    tokenizer = TokenizerThread(checkpoint, None, required=False)
    tokenizer.start()
    text = tokenizer.result()
    checkpoint = _without_vocabulary(checkpoint)
    return LoadedModel(
        name=_label(resolved),
        path=resolved.path,
        checkpoint=checkpoint,
        model=model,
        text=text,
        threads=threads,
        context=context,
        num_blocks=num_blocks,
        cache_dtype=cache_dtype,
        sampling=_sampling(resolved, checkpoint),
        memory=memory,
        settings=resolved.settings,
        notes=_notes(asked, resolved, checkpoint),
    )


def _sampling(resolved: hub.ResolvedModel, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the defaults of sampling: the catalogue's, the makers', and the store's over them.

    Lengths and stops of generation_config.json are for other programs' loops; only a store's hold.
    """
    recommended = resolved.entry.sampling if resolved.entry is not None else {}
    others = {"max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty"}
    made = {k: v for k, v in checkpoint.generation_config.items() if k not in others}
    chosen = {k: v for k, v in resolved.settings.sampling.items() if k in SAMPLING_FIELDS}
    return {**recommended, **made, **chosen}


def _notes(asked: str, resolved: hub.ResolvedModel, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Say whose model it is, and what of its store's settings is not used."""
    settings, notes, entry = resolved.settings, [], resolved.entry
    if entry is not None and asked.casefold() not in ("", entry.name.casefold()):
        notes.append(f"{asked} is {entry.title}: {entry.lineage or entry.publisher}")
    if resolved.owner not in ("dure", "you"):
        notes.append(f"{resolved.name} is {resolved.owner}'s, in {resolved.path}")
    if settings.template_note:
        own = "Ollama's template is not run: the model's own chat template is used"
        notes.append(own if checkpoint.chat_template else settings.template_note)
    return (*notes, *settings.notes)


def _shorter(wanted: int | None, asked: int | None, context: int, longest: int) -> tuple[str, ...]:
    """Say that the context is less than a store or preset wants, where no other was asked for."""
    if asked is not None or wanted is None or context >= wanted:
        return ()
    why = "the most that the model was made for" if context == longest else "as much as fits"
    return (f"num_ctx is {wanted:,}, and the context is {context:,} tokens: {why}",)


def _label(resolved: hub.ResolvedModel) -> str:
    """Return the model's display name: of a path its last part."""
    is_path = Path(resolved.name).expanduser() == resolved.path
    return resolved.path.absolute().name if is_path else resolved.name


def _without_vocabulary(checkpoint: Checkpoint) -> Checkpoint:
    """Drop a GGUF's tokens and merges, which are not read again."""
    metadata = checkpoint.metadata
    kept = {
        key: metadata[key] for key in metadata if not isinstance(metadata[key], (list, StringArray))
    }
    return replace(checkpoint, metadata=kept)
