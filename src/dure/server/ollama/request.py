"""Converts Ollama's request bodies to a ChatRequest and SamplingParams."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from dure.chat.request import ChatRequest, Format, Thinking
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.server.ollama.schemas import Asked, Call, ChatBody, GenerateBody, Message, Options
from dure.server.wire.prefill import is_prefill
from dure.server.wire.thinking import thinking_of, variables_of
from dure.server.wire.validation import (
    check_schema,
    check_tools,
    given,
    refuse,
    unsupported_type,
)

_IMAGES = "this server reads text"
_UNSUPPORTED = {
    "response_format": 'it is "format" here',
    "tool_choice": "/v1/chat/completions takes it",
    "images": _IMAGES,
    "template": "the model's own template is used (send raw to use none)",
    "context": "/api/chat takes the messages so far, and finds their prefix in the cache",
    "adapters": "this server loads no adapters",
    "width": "this server makes no images",
    "height": "this server makes no images",
}
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
FOR_EVER = -1.0


def chat_request(body: ChatBody) -> ChatRequest:
    """Convert the body to a ChatRequest. Raises InvalidRequestError for what is not supported."""
    refuse(body, _UNSUPPORTED)
    messages = body.messages or []
    check_tools(body.tools or ())
    return ChatRequest(
        _messages(messages),
        tools=body.tools or (),
        thinking=thinking(body),
        format=format_of(body),
        template_variables=variables_of(body),
        continue_final=bool(messages) and is_prefill(messages[-1]),
    )


def prompt_request(body: GenerateBody) -> ChatRequest:
    """Convert a prompt to a ChatRequest, for the model's chat template."""
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": body.prompt or ""})
    return ChatRequest(
        messages,
        thinking=thinking(body),
        format=format_of(body),
        template_variables=variables_of(body),
    )


@dataclass(frozen=True)
class GenerateRequest:
    """What /api/generate asks: a chat, or without one what follows the body's own prompt."""

    params: SamplingParams
    format: Format | None
    chat: ChatRequest | None

    @classmethod
    def of(cls, body: GenerateBody) -> GenerateRequest:
        """Read the body; InvalidRequestError for what we do not do."""
        check_generate(body)
        is_chat = not (body.raw or body.suffix)
        chat = prompt_request(body) if is_chat else None
        return cls(sampling(body), format_of(body), chat)


def check_generate(body: GenerateBody) -> None:
    """Raise InvalidRequestError if the body asks /api/generate for something unsupported."""
    refuse(body, _UNSUPPORTED)
    if (body.raw or body.suffix) and body.system:
        raise InvalidRequestError(
            "A raw prompt has no system message.", hint="write it into the prompt"
        )


def thinking(body: Asked) -> Thinking:
    """Read the thinking settings; without any, the model's default applies."""
    think = body.think
    if isinstance(think, bool):
        return thinking_of(body, switch=think)
    if isinstance(think, int):
        return thinking_of(body, budget=think)
    return thinking_of(body, effort=think)


def format_of(body: Asked) -> Format | None:
    """Read the output format; None if the text is unconstrained."""
    if not body.format:
        return None
    if body.format == "json":
        return Format("json_object")
    if isinstance(body.format, str):
        raise unsupported_type("format", body.format, 'it is "json" or a JSON schema')
    return Format("json_schema", check_schema(body.format, "format"))


def sampling(body: Asked) -> SamplingParams:
    """Read the sampling parameters; options left out take the model's defaults."""
    options = body.options or Options()
    refuse(options, {})
    unlimited = options.num_predict is not None and options.num_predict < 1
    remembers = options.repeat_last_n != 0  # 0 turns the penalty off
    return SamplingParams(
        **given(
            max_tokens=None if unlimited else options.num_predict,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p if options.top_p != 0 else 1e-6,  # the likeliest token alone
            min_p=options.min_p,
            seed=None if options.seed == -1 else options.seed,
            stop=options.stop,
            repetition_penalty=options.repeat_penalty if remembers else 1.0,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
    )


def check_context(body: Asked, context: int) -> None:
    """Raise InvalidRequestError if num_ctx is larger than the context that is served."""
    check_num_ctx(body.options, body.model, context)


def check_num_ctx(options: Options | None, model: str, context: int) -> None:
    """Raise InvalidRequestError if the options ask for a larger context than is served."""
    asked = options.num_ctx if options else None
    if asked is not None and asked > context:
        raise InvalidRequestError(
            f"num_ctx is {asked:,}, and {model} is served with a context of {context:,}.",
            hint="ask for less, or start `dure serve` with a larger --context",
        )


def keep_alive(value: str | float | None) -> float | None:
    """Return the seconds to keep a model in memory; below 0 means for ever.

    value: a number of seconds, or text such as "10m". Raises InvalidRequestError for other text.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        return float(value) if value >= 0 else FOR_EVER
    text = value.strip()
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    found = _PERIOD.findall(text[:40])
    if text.isascii() and text.isdigit() and len(text) < 12:
        seconds = float(text)
    elif found and "".join(number + unit for number, unit in found) == text:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in found)
    else:
        raise InvalidRequestError(
            f"keep_alive is {value[:40]!r}.", hint='seconds, or a time such as "10m" or "1h30m"'
        )
    return seconds if sign > 0 else FOR_EVER


def _messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Convert the messages to OpenAI's form. Calls without ids get some, in order."""
    made: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []  # calls without a result yet
    for index, message in enumerate(messages):
        if message.images:
            raise InvalidRequestError(
                f'"messages[{index}].images" is not supported: {_IMAGES}.', hint="leave it out"
            )
        value: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.role not in ("system", "user", "assistant", "tool"):
            raise unsupported_type(
                f"messages[{index}]: a role", message.role, "system, user, assistant, tool"
            )
        if message.thinking:
            value["reasoning_content"] = message.thinking
        if message.role == "assistant" and message.tool_calls:
            waiting = [
                _call(call, f"call_{index}_{number}")
                for number, call in enumerate(message.tool_calls)
            ]
            value["tool_calls"] = list(waiting)
        if message.role == "tool":
            value["tool_call_id"] = message.tool_call_id or _answered(waiting, message.tool_name)
            if message.tool_name:
                value["name"] = message.tool_name
        made.append(value)
    return made


def _call(call: Call, identity: str) -> dict[str, Any]:
    arguments = json.dumps(call.function.arguments or {}, ensure_ascii=False)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id or identity, "type": "function", "function": function}


def _answered(waiting: list[dict[str, Any]], name: str | None) -> str:
    """Return the call id for a result without one: the next open call, of that name if given."""
    for call in waiting:
        if name is None or call["function"]["name"] == name:
            waiting.remove(call)
            return str(call["id"])
    return f"call_{name or 'unknown'}"
