"""Checks of what a Python caller passes to `LLM`: a clear sentence in place of a guess.

Types alone are checked here. What a value must be for a model is checked where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from dure.chat.request import ChatRequest, Format, Thinking
from dure.engine.params import SamplingParams
from dure.errors import DureError, InvalidRequestError
from dure.loading.draft import SETTINGS
from dure.loading.memory import MAX_TOKENS, check_memory, check_whole, parse_size
from dure.metering.meter import Meter
from dure.progress import ProgressReport

T = TypeVar("T")
Message = Mapping[str, Any]
Chat = Sequence[Message] | ChatRequest
Prompt = str | Sequence[int] | Chat
"""Text, token ids, the messages of a chat, or all that a chat may ask."""

MAX_SEQUENCES = 65_536
"""Sequences in one step: more would wait for rows of it anyway."""

MAX_STAGES = 256
"""Parts of one model: more than any has layers to give them."""

MAX_REPLICAS = 64
"""Engines of one model in one process: their Python shares a lock, so that more gain nothing."""

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MESSAGES = '[{"role": "user", "content": "…"}]'
_RANKING = 'llm.rank("What is a panda?", ["A bear of China.", "A car of Italy."])'


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
    check_text("ray", options["ray"])
    if options["stages"] != "auto":
        check_whole("stages", options["stages"], 2, MAX_STAGES, hint="or auto: one on each node")
    check_whole("replicas", options["replicas"], 1, MAX_REPLICAS, hint="1: the model once")
    check_whole("max_sequences", options["max_sequences"], 1, MAX_SEQUENCES)
    check_flag("exact", options["exact"])
    check_flag("require_tokenizer", options["require_tokenizer"])
    check_choice("quantize", options["quantize"], ("q8", "q6", "q4"), optional=True)
    check_choice("cache_dtype", options["cache_dtype"], ("f16", "q8"), optional=False)
    for name in ("download_progress", "load_progress"):
        check_callable(name, options[name])
    meter = options["meter"]
    if meter is not None and not isinstance(meter, Meter):
        raise InvalidRequestError(
            f"meter must be a Meter, but is {_shown(meter)}.", hint="Meter.of_this_machine()"
        )
    fallback = options["fallback_sampling"]
    if fallback is not None:
        if not isinstance(fallback, Mapping) or not all(isinstance(key, str) for key in fallback):
            raise InvalidRequestError(
                f"fallback_sampling must be a dictionary, but is {_shown(fallback)}.",
                hint='{"temperature": 0.7}',
            )
        SamplingParams(**fallback)  # which says what is wrong with it


def check_text(name: str, value: object) -> str | None:
    """Return `value`; InvalidRequestError unless it is a text, or None."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(
            f"{name} must be a text, but is {_shown(value)}.", hint=f'{name}="…"'
        )
    return value


def check_pooling(
    *, dimensions: object = None, normalize: object = None, truncate: object = False
) -> None:
    """Raise InvalidRequestError for a wrong argument of `embed` or `rank`."""
    if dimensions is not None:
        check_whole("dimensions", dimensions, 1, MAX_TOKENS, hint="leave it out for all")
    if normalize is not None:
        check_flag("normalize", normalize)
    if not isinstance(truncate, bool):
        hint = "True cuts a text to what the model takes, False makes it an error"
        check_whole("truncate", truncate, 1, MAX_TOKENS, hint=hint)


def check_ranking(query: object, documents: object, top_n: object) -> None:
    """Raise InvalidRequestError unless these are a text, a list of texts, and a number or None."""
    if not isinstance(query, str):
        raise InvalidRequestError(f"A query is a text, not {_shown(query)}.", hint=_RANKING)
    if not _is_list(documents) or not all(isinstance(each, str) for each in documents):  # type: ignore[attr-defined]
        raise InvalidRequestError(
            f"Documents are a list of texts, not {_shown(documents)}.",
            hint=_RANKING,
        )
    if top_n is not None:
        check_whole("top_n", top_n, 1, MAX_TOKENS, hint="leave it out for all")


def check_flag(name: str, value: object) -> None:
    """Raise InvalidRequestError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InvalidRequestError(
            f"{name} must be True or False, but is {_shown(value)}.", hint=f"{name}=True"
        )


def check_choice(name: str, value: object, allowed: Sequence[str], *, optional: bool) -> None:
    """Raise InvalidRequestError unless `value` is one of `allowed`, or None if that is optional."""
    known = isinstance(value, str) and value in allowed
    if not known and not (value is None and optional):
        raise InvalidRequestError(
            f"{name} must be one of {', '.join(allowed)}, but is {_shown(value)}.",
            hint=f'such as {name}="{allowed[0]}"',
        )


def check_callable(name: str, value: object) -> None:
    """Raise InvalidRequestError unless `value` is a function of (done, in all), or None."""
    if value is not None and not callable(value):
        raise InvalidRequestError(
            f"{name} must be a function, but is {_shown(value)}.",
            hint=f"{name}=lambda done, total: print(done, total)",
        )


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
                f"but is {_shown(think)}.",
                hint="think=False, or think=512 for that many tokens of reasoning at most",
            )


def check_prompt(prompt: object) -> None:
    """Raise InvalidRequestError unless `prompt` is a text or a list of token ids."""
    if isinstance(prompt, str):
        return
    if isinstance(prompt, (bytes, bytearray, memoryview)):
        raise InvalidRequestError(
            "A prompt is text or a list of token ids, not bytes.", hint="decode it: prompt.decode()"
        )
    if isinstance(prompt, ChatRequest) or (isinstance(prompt, Mapping) and "role" in prompt):
        raise _no_text(prompt)
    if not _is_list(prompt):
        raise InvalidRequestError(
            f"A prompt is text or a list of token ids, not {_shown(prompt)}.",
            hint='give a list of prompts: ["Once upon a time"], or [[1, 2, 3]]',
        )


def _no_text(prompt: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"This takes texts and token ids, and {_shown(prompt)} belongs to a chat.",
        hint=f"chat({_MESSAGES})",
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
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            raise _no_text(prompt)
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


def listed_chats(messages: object) -> list[Any] | None:
    """Return the chats of a list of them; None for a single one.

    Raises InvalidRequestError for what is neither.
    """
    several = _is_list(messages) and any(
        isinstance(each, ChatRequest) or _is_list(each)
        for each in messages  # type: ignore[attr-defined]
    )
    chats = list(messages) if several else [messages]  # type: ignore[call-overload]
    for number, chat in enumerate(chats, 1):
        _of(number if len(chats) > 1 else 0, "chat", _check_chat, chat)
    return chats if several else None


def _check_chat(messages: object) -> None:
    check_messages(messages)
    if not isinstance(messages, ChatRequest) and not len(messages):  # type: ignore[arg-type]
        raise InvalidRequestError("There are no messages.", hint=_MESSAGES)


def each_params(
    params: object, count: int, what: str, *, single: bool = False
) -> list[SamplingParams | None]:
    """Return the parameters of each of `count` requests, which `params` are or are for all.

    single: only one set is taken. Raises InvalidRequestError.
    """
    if single or params is None or not _is_list(params) or not isinstance(params, Sequence):
        check_params(params)
        return [cast("SamplingParams | None", params)] * count
    for each in params:
        check_params(each)
    if len(params) != count:
        raise InvalidRequestError(
            f"There are {count} {what} and {len(params)} sets of sampling parameters.",
            hint=f"give one set for all, or one for each of the {what}",
        )
    return list(params)


def of_each(
    what: str, make: Callable[[Any, Any], T], requests: Sequence[Any], params: Sequence[Any]
) -> list[T]:
    """Make something of each request and its parameters; an error says of which."""
    several = len(requests) > 1
    return [
        _of(number if several else 0, what, make, request, chosen)
        for number, (request, chosen) in enumerate(zip(requests, params, strict=True), 1)
    ]


def _of(number: int, what: str, make: Callable[..., T], *given: Any) -> T:
    """Return make(*given); if that fails, say of which of several, the first being 1."""
    try:
        return make(*given)
    except DureError as error:
        if number:
            said = f"Of {what} {number}: {error.message[:1].lower()}{error.message[1:]}"
            raise type(error)(said, hint=error.hint, detail=error.detail) from error
        raise


def reporter(progress: object) -> Callable[[int, int], None] | None:
    """Return what is told how many answers are there: nobody, stderr, or the caller's function."""
    if progress is True:
        return ProgressReport("answers")
    if progress is None or progress is False:
        return None
    check_callable("progress", progress)
    return cast("Callable[[int, int], None]", progress)


def request_of(prompt: object, tools: object, think: object) -> str | Sequence[int] | ChatRequest:
    """Return what a prompt of generate, chat or stream asks for.

    Raises InvalidRequestError for what is none, and for options that it has no place for.
    """
    check_tools(tools)
    check_think(think)
    if isinstance(prompt, ChatRequest):
        if tools is not None or think is not None:
            raise InvalidRequestError(
                "A ChatRequest brings its own tools and thinking.",
                hint='ChatRequest(messages, tools=[…], thinking=Thinking("on"))',
            )
        return prompt
    check_prompt(prompt)
    if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):  # type: ignore[arg-type,index]
        check_messages(prompt)
        return ChatRequest(
            cast("Sequence[Message]", prompt),
            cast("Sequence[Mapping[str, Any]]", tools or ()),
            thinking=thinking(cast("bool | int | None", think)),
        )
    if think is not None or tools is not None:
        raise InvalidRequestError(
            "Tools and thinking belong to a chat, and this prompt is plain text.",
            hint=f"give messages: {_MESSAGES}",
        )
    return cast("str | Sequence[int]", prompt)


def check_request(
    prompt: object,
    params: object,
    form: object,
    cache_salt: object,
    priority: object,
    prediction: object,
) -> None:
    """Raise InvalidRequestError for a wrong argument of `LLM.prepare`."""
    check_params(params)
    check_format(form)
    if not isinstance(prompt, ChatRequest):
        check_prompt(prompt)
    elif form is not None and prompt.format is not None:
        raise InvalidRequestError(
            "The ChatRequest has a format of its own, and another one is given beside it.",
            hint="leave out one of them",
        )
    if not isinstance(cache_salt, str):
        raise InvalidRequestError(
            f"cache_salt must be a text, but is {_shown(cache_salt)}.", hint='cache_salt="ada"'
        )
    if type(priority) is not int:
        raise InvalidRequestError(
            f"priority must be a whole number, but is {_shown(priority)}.", hint="priority=0"
        )
    if prediction is not None and not isinstance(prediction, str):
        raise InvalidRequestError(
            f"prediction must be a text that the answer may be, but is {_shown(prediction)}.",
            hint="the file that is to be edited, as it was read",
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
    return Thinking("on", budget=int(think))


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
            f"but is {_shown(content)}.",
            hint=_MESSAGES,
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
