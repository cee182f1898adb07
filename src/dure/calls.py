"""Calls that Python itself refuses: which argument was meant, in place of a bare TypeError."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from dure.errors import CallError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")

# What other libraries call it (vLLM, transformers, sentence-transformers, llama-cpp-python, Ollama,
# OpenAI's client): where a function has no such argument, the first of these that it has is meant.
_ELSEWHERE: Mapping[str, Sequence[str]] = {
    "n_ctx": ("context",),
    "num_ctx": ("context",),
    "max_model_len": ("context",),
    "n_threads": ("threads",),
    "num_threads": ("threads",),
    "model_path": ("model",),
    "model_name": ("model",),
    "model_id": ("model",),
    "max_num_seqs": ("max_sequences",),
    "kv_cache_dtype": ("cache_dtype",),
    "quantization": ("quantize",),
    "load_in_4bit": ("quantize",),
    "load_in_8bit": ("quantize",),
    "draft_model": ("speculate",),
    "speculative_config": ("speculate",),
    "gpu_memory_utilization": ("memory",),
    "max_memory": ("memory",),
    "sampling_params": ("params",),
    "options": ("params",),
    "use_tqdm": ("progress",),
    "response_format": ("format",),
    "enable_thinking": ("think",),
    "thinking": ("think",),
    "prompt": ("prompts", "messages", "texts"),
    "messages": ("prompt", "prompts"),
    "input": ("texts", "prompts", "messages"),
    "inputs": ("texts", "prompts", "messages"),
    "sentences": ("texts",),
    "normalize_embeddings": ("normalize",),
    "truncate_dim": ("dimensions",),
    "top_k": ("top_n",),
    "max_new_tokens": ("max_tokens",),
    "max_completion_tokens": ("max_tokens",),
    "max_length": ("max_tokens",),
    "num_predict": ("max_tokens",),
    "n_predict": ("max_tokens",),
    "temp": ("temperature",),
    "do_sample": ("temperature",),
    "repeat_penalty": ("repetition_penalty",),
    "stop_strings": ("stop",),
    "top_logprobs": ("logprobs",),
    "random_seed": ("seed",),
    "num_return_sequences": ("n",),
}


def explained(*, beside: type | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function answer a call that does not fit its signature with a CallError.

    beside: a class whose fields callers give to the function by mistake, as SamplingParams'.
    """

    def explain(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                trace = error.__traceback__
                if trace is not None and trace.tb_next is not None:
                    raise  # the call did fit; this is from within
                reason = _reason(function, args, kwargs, beside)
                if reason is None:
                    raise
            raise reason

        if inspect.iscoroutinefunction(function) and sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(called)
        return called

    return explain


def explained_class(kind: type[C]) -> type[C]:
    """Make the constructor of a dataclass answer as `explained` does."""
    kind.__init__ = explained()(kind.__init__)  # type: ignore[method-assign]
    return kind


def bound(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    beside: type | None = None,
) -> dict[str, Any]:
    """Return the arguments that the function would get, defaults too; call nothing.

    beside: as for `explained`. Raises CallError for a call that does not fit.
    """
    reason = _reason(function, args, kwargs, beside)
    if reason is not None:
        raise reason
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments


def _reason(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    beside: type | None,
) -> CallError | None:
    """Return what is wrong with a call; None if it fits."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        said = str(error)
    else:
        return None
    name = function.__qualname__.removesuffix(".__init__")
    known = {key: each for key, each in signature.parameters.items() if key != "self"}
    unknown = [key for key in kwargs if key not in known]
    if unknown:
        return CallError(
            f"{name} has no argument {unknown[0]}.", hint=_hint(name, unknown[0], known, beside)
        )
    placed = [key for key, each in known.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    given = len(args) - ("self" in signature.parameters)
    if given > len(placed):
        others = ", ".join(f"{key}=…" for key in known if key not in placed)
        return CallError(
            f"{name} takes {_counted(placed)} without a name, and was given {given}.",
            hint=f"name the others: {others}" if others else "leave out the others",
        )
    needed = [key for key, each in known.items() if each.default is each.empty]
    missing = [key for key in needed if key not in kwargs and key not in placed[:given]]
    if missing:
        return CallError(
            f"{name} needs {' and '.join(missing)}.",
            hint=f"{name}({', '.join(f'{key}=…' for key in needed)})",
        )
    return CallError(f"{name} cannot be called so: {said}.", hint=f"it takes {', '.join(known)}")


def _hint(
    name: str, unknown: str, known: Mapping[str, inspect.Parameter], beside: type | None
) -> str:
    """Return what to do about an argument that a function does not have."""
    meant = _meant(unknown, known)
    if meant:
        return f"do you mean {meant}?"
    fields = () if beside is None else inspect.signature(beside).parameters
    meant = unknown if unknown in fields else _meant(unknown, fields)
    if beside is not None and meant:
        made = f"{beside.__name__}({meant}=…)"
        takes_it = "params" in known
        return f"{name}({next(iter(known))}, {made})" if takes_it else f"{made}, given to each call"
    return f"it takes {', '.join(known)}"


def _meant(unknown: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the argument that may be meant; empty if none is like it."""
    named = [each for each in _ELSEWHERE.get(unknown, ()) if each in known]
    near = difflib.get_close_matches(unknown, list(known), 1, 0.7)
    return next(iter([*named, *near]), "")


def _counted(names: Sequence[str]) -> str:
    listed = f" ({', '.join(names)})" if names else ""
    return f"{len(names)} argument{'' if len(names) == 1 else 's'}{listed}"
