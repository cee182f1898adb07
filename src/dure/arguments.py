"""Checks of what a Python caller passes to `LLM`: a clear sentence in place of a guess.

Types alone are checked here. What a value must be for a model is checked where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from dure.chat.request import ChatRequest, Format, Thinking
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.loading.draft import SETTINGS
from dure.loading.memory import MAX_TOKENS, check_memory, check_whole, parse_size

MAX_SEQUENCES = 65_536
"""Sequences in one step: more would wait for rows of it anyway."""

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MESSAGES = '[{"role": "user", "content": "…"}]'


def check_options(options: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError for a wrong argument of LLM that `load` does not check itself."""
    model = options["model"]
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise InvalidRequestError(
            f"A model is a name or a path, not {model!r:.60}.", hint='LLM("smollm2:135m")'
        )
    speculate = options["speculate"]
    if not isinstance(speculate, str) or not speculate:
        raise InvalidRequestError(
            f"speculate is a word or a model's name, not {speculate!r:.60}.",
            hint=f"{', '.join(SETTINGS)}, or the name of a smaller model",
        )
    check_whole("max_sequences", options["max_sequences"], 1, MAX_SEQUENCES)
    check_flag("exact", options["exact"])
    check_choice("quantize", options["quantize"], ("q8", "q6", "q4"), optional=True)
    check_choice("cache_dtype", options["cache_dtype"], ("f16", "q8"), optional=False)
    for name in ("download_progress", "load_progress"):
        check_callable(name, options[name])


def check_text(name: str, value: object) -> str | None:
    """Return `value`; InvalidRequestError unless it is a text, or None."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a text, but is {_shown(value)}.")
    return value


def check_pooling(
    *, dimensions: object = None, normalize: object = None, truncate: object = False
) -> None:
    """Raise InvalidRequestError for a wrong argument of `embed` or `rank`."""
    if dimensions is not None:
        check_whole("dimensions", dimensions, 1, MAX_TOKENS)
    if normalize is not None:
        check_flag("normalize", normalize)
    if not isinstance(truncate, bool):
        check_whole("truncate", truncate, 1, MAX_TOKENS)


def check_ranking(query: object, documents: object, top_n: object) -> None:
    """Raise InvalidRequestError unless these are a text, a list of texts, and a number or None."""
    if not isinstance(query, str):
        raise InvalidRequestError(f"A query is a text, not {_shown(query)}.")
    if not _is_list(documents) or not all(isinstance(each, str) for each in documents):  # type: ignore[attr-defined]
        raise InvalidRequestError(
            f"Documents are a list of texts, not {_shown(documents)}.",
            hint='llm.rank("What is a panda?", ["A bear of China.", "A car of Italy."])',
        )
    if top_n is not None:
        check_whole("top_n", top_n, 1, MAX_TOKENS)


def check_flag(name: str, value: object) -> None:
    """Raise InvalidRequestError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be True or False, but is {_shown(value)}.")


def check_choice(name: str, value: object, allowed: Sequence[str], *, optional: bool) -> None:
    """Raise InvalidRequestError unless `value` is one of `allowed`, or None if that is optional."""
    known = isinstance(value, str) and value in allowed
    if not known and not (value is None and optional):
        raise InvalidRequestError(
            f"{name} must be one of {', '.join(allowed)}, but is {_shown(value)}."
        )


def check_callable(name: str, value: object) -> None:
    """Raise InvalidRequestError unless `value` can be called, or is None."""
    if value is not None and not callable(value):
        raise InvalidRequestError(f"{name} must be a function, but is {_shown(value)}.")


def memory_budget(memory: object) -> int | None:
    """Return the bytes that `memory` means: a number, a text such as "8GB", or None.

    Raises InvalidRequestError for anything else.
    """
    if memory is None:
        return None
    if isinstance(memory, str):
        return parse_size(memory)
    return check_memory(memory)


def check_params(params: object) -> None:
    """Raise InvalidRequestError unless `params` are SamplingParams, or None."""
    if params is not None and not isinstance(params, SamplingParams):
        raise InvalidRequestError(
            f"Sampling parameters must be a SamplingParams, but are {_shown(params)}.",
            hint="SamplingParams(max_tokens=64, temperature=0)",
        )


def check_format(form: object) -> None:
    """Raise InvalidRequestError unless `form` is a Format, or None."""
    if form is not None and not isinstance(form, Format):
        raise InvalidRequestError(
            f"format must be a Format, but is {_shown(form)}.",
            hint='Format("json_object"), or Format("json_schema", {…})',
        )


def check_think(think: object) -> None:
    """Raise InvalidRequestError unless `think` is True, False, None or a number of tokens."""
    if think is not None and not isinstance(think, bool):
        whole = isinstance(think, Integral)
        if not whole or (isinstance(think, Real) and think < 0):
            raise InvalidRequestError(
                "think must be True, False or a number of tokens from 0 on, "
                f"but is {_shown(think)}."
            )


def check_prompt(prompt: object) -> None:
    """Raise InvalidRequestError unless `prompt` is a text or a list of token ids."""
    if isinstance(prompt, str):
        return
    if isinstance(prompt, (bytes, bytearray, memoryview)):
        raise InvalidRequestError(
            "A prompt is text or a list of token ids, not bytes.", hint="decode it: prompt.decode()"
        )
    if not _is_list(prompt):
        raise InvalidRequestError(
            f"A prompt is text or a list of token ids, not {_shown(prompt)}.",
            hint='give a list of prompts: ["Once upon a time"], or [[1, 2, 3]]',
        )


def check_prompts(prompts: object) -> list[Any]:
    """Return the prompts as a list; InvalidRequestError unless they are a text or a list."""
    if isinstance(prompts, str):
        return [prompts]
    if not _is_list(prompts):
        check_prompt(prompts)
    listed: list[Any] = list(prompts)  # type: ignore[call-overload]
    for prompt in listed:
        check_prompt(prompt)
    return listed


def check_messages(messages: object) -> None:
    """Raise InvalidRequestError unless `messages` are those of a chat, or a ChatRequest."""
    if isinstance(messages, ChatRequest):
        return
    if isinstance(messages, str):
        raise InvalidRequestError(
            "A chat takes messages, and this is plain text.",
            hint=f"chat({_MESSAGES}), or generate() to complete a text",
        )
    if not _is_list(messages):
        raise InvalidRequestError(
            f"A chat takes a list of messages, not {_shown(messages)}.", hint=_MESSAGES
        )
    for number, message in enumerate(messages, 1):  # type: ignore[var-annotated,arg-type]
        _check_message(number, message)


def check_prediction(prediction: object) -> None:
    """Raise InvalidRequestError unless `prediction` is a text, or None."""
    if prediction is not None and not isinstance(prediction, str):
        raise InvalidRequestError(
            f"prediction must be a text that the answer may be, but is {_shown(prediction)}."
        )


def check_tools(tools: object) -> None:
    """Raise InvalidRequestError unless `tools` are a list, or None."""
    if tools is not None and not (_is_list(tools) and isinstance(tools, Sequence)):
        raise InvalidRequestError(
            f"tools must be a list of tools, but is {_shown(tools)}.",
            hint='[{"type": "function", "function": {"name": …, "parameters": {…}}}]',
        )


def thinking(think: bool | int | None) -> Thinking:
    """Return `think` (on, off, a number of tokens, None for the template's default)."""
    if think is None:
        return Thinking()
    if isinstance(think, bool):
        return Thinking("on" if think else "off")
    return Thinking("on", budget=think)


def _check_message(number: int, message: object) -> None:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(
            f"Message {number} must be a dictionary, but is {_shown(message)}.", hint=_MESSAGES
        )
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequestError(
            f"Message {number} has the role {_shown(role)}.", hint=f"one of {', '.join(_ROLES)}"
        )
    has_more = any(message.get(key) for key in ("tool_calls", "function_call", "reasoning_content"))
    if content is None and not has_more:
        raise InvalidRequestError(f"Message {number} has no content.", hint=_MESSAGES)
    if content is not None and not isinstance(content, str) and not _is_list(content):
        raise InvalidRequestError(
            f"The content of message {number} must be text or a list of parts, "
            f"but is {_shown(content)}."
        )


def _is_list(value: object) -> bool:
    """Check whether the value is a sequence in the widest sense: a list, an array, a range."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping, set, frozenset)):
        return False
    try:
        len(value)  # type: ignore[arg-type]  # an array without dimensions has no length
    except TypeError:
        return False
    return hasattr(value, "__getitem__")


def _shown(value: object) -> str:
    """Return the value and its type as text for an error."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
