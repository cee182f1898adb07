"""Converts the bodies of OpenAI's Responses API to a ChatRequest and SamplingParams."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Sequence
from typing import Any, Literal

from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.server.openai.responses_schemas import (
    Choice,
    InputBody,
    Item,
    Part,
    Reasoning,
    ResponsesBody,
    TextFormat,
    Tool,
)
from dure.server.wire.thinking import thinking_of, variables_of
from dure.server.wire.validation import (
    CHAT_ONLY,
    check_schema,
    given,
    missing,
    refuse,
    unsupported_type,
)

log = logging.getLogger("dure.server")
Message = dict[str, Any]

_UNSUPPORTED = {
    **CHAT_ONLY,
    "messages": 'it is "input" here',
    "max_tokens": 'it is "max_output_tokens" here',
    "max_completion_tokens": 'it is "max_output_tokens" here',
    "response_format": 'it is "text.format" here',
    "stop": "/v1/chat/completions takes it",
    "top_k": "/v1/chat/completions takes it",
    "background": "an answer is computed while its client waits",
    "conversation": 'chain answers by "previous_response_id"',
    "prompt": "this server keeps no prompt templates",
    "top_logprobs": "/v1/chat/completions gives log probabilities",
    "context_management": "nothing is ever cut from a context",
    "moderation": "this server moderates nothing",
}
_ITEMS = "message, function_call, function_call_output and reasoning are taken"
_PARTS = "this server reads text: input_text, output_text"
_LOGPROBS = "message.output_text.logprobs"
_SEALED = "dure:"  # the prefix of our `encrypted_content`: reasoning in base64, not a secret


def chat_request(body: InputBody, before: Sequence[Message] = ()) -> ChatRequest:
    """Convert the body to a ChatRequest that continues the messages `before` it.

    Raises InvalidRequestError for what is not supported.
    """
    refuse(body, _UNSUPPORTED)
    if body.truncation not in (None, "disabled"):
        raise unsupported_type("truncation", body.truncation, "nothing is ever cut from a context")
    messages = [*before, *input_messages(body)]
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    if not messages:
        raise missing("The request", "input")
    choice, allowed = _choice(body.tool_choice)
    tools = [_tool(tool) for tool in _functions(body)]
    if allowed is not None:
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
    return ChatRequest(
        messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=_thinking(body),
        format=_format(body.text.format if body.text else None),
        template_variables=variables_of(body),
    )


def sampling(body: ResponsesBody) -> SamplingParams:
    """Read the sampling parameters; fields left out take the model's defaults."""
    if _LOGPROBS in (body.include or ()):
        raise InvalidRequestError(f"include: {_LOGPROBS!r} is not supported.", hint="leave it out")
    return SamplingParams(
        **given(max_tokens=body.max_output_tokens, temperature=body.temperature, top_p=body.top_p)
    )


def input_messages(body: InputBody) -> list[Message]:
    """Convert the input to messages; all items of one assistant turn become one message."""
    if body.input is None or isinstance(body.input, str):
        return [{"role": "user", "content": body.input}] if body.input else []
    messages: list[Message] = []
    for index, item in enumerate(body.input):
        _add(messages, item, f"input[{index}]")
    return messages


def seal(thoughts: str) -> str:
    """Encode reasoning as an opaque text, for clients that store only `encrypted_content`."""
    return _SEALED + base64.b64encode(thoughts.encode()).decode()


def _add(messages: list[Message], item: Item, where: str) -> None:
    kind = item.type or "message"
    if kind == "message":
        text = _text(item.content, f"{where}.content")
        if item.role == "assistant":
            _turn(messages, holds=_only_thought(messages))["content"] = text
        elif item.role in ("user", "system", "developer"):
            role = "user" if item.role == "user" else "system"
            messages.append({"role": role, "content": text})
        else:
            raise unsupported_type(f"{where}: a role", item.role, "user, assistant, developer")
    elif kind == "reasoning":
        turn = _turn(messages, holds=False)
        turn["reasoning_content"] = _thoughts(item, where)
    elif kind in ("function_call", "custom_tool_call"):
        if item.call_id is None or item.name is None:
            lacks = "call_id" if item.call_id is None else "name"
            raise missing(f"{where} of type {kind}", lacks)
        arguments = item.arguments or "{}"
        if kind == "custom_tool_call":
            arguments = json.dumps({"input": item.input or ""}, ensure_ascii=False)
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        _turn(messages, holds=True).setdefault("tool_calls", []).append(call)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        if item.call_id is None:
            raise missing(f"{where} of type {kind}", "call_id")
        output = _text(item.output, f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    else:
        raise unsupported_type(f"{where}: an item", kind, _ITEMS)


def _turn(messages: list[Message], *, holds: bool) -> Message:
    """Return the assistant turn that an item belongs to: the last one if `holds`, or a new one."""
    if not holds or not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _only_thought(messages: list[Message]) -> bool:
    """Check whether the last turn has neither text nor calls yet."""
    return bool(messages) and not (messages[-1]["content"] or messages[-1].get("tool_calls"))


def _text(content: str | Sequence[Part] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type not in ("input_text", "output_text", "text", "summary_text", "refusal"):
            raise unsupported_type(f"{where}[{index}]: content", part.type, _PARTS)
        texts.append(part.text or part.refusal or "")
    return "\n\n".join(texts)


def _thoughts(item: Item, where: str) -> str:
    """Return the reasoning of an item: its content, our `encrypted_content`, or its summary."""
    if isinstance(item.content, list) and item.content:
        return "".join(part.text or "" for part in item.content)
    sealed = item.encrypted_content or ""
    if sealed.startswith(_SEALED):
        try:
            return base64.b64decode(sealed[len(_SEALED) :], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidRequestError(f"{where}.encrypted_content is damaged.") from None
    return "\n".join(part.text or "" for part in item.summary or ())


def _functions(body: InputBody) -> list[Tool]:
    """Return the tools that are functions.

    Coding agents declare tools of other types (custom, local_shell, web_search) in every request.
    These are left out of the prompt, so the model never calls one; that is logged. Raises
    InvalidRequestError if no other tool is left and one must be called.
    """
    others = sorted({tool.type[:60] for tool in body.tools or () if tool.type != "function"})
    found = [tool for tool in body.tools or () if tool.type == "function"]
    if others:
        if not found and body.tool_choice == "required":
            raise unsupported_type("A tool", others[0], "tools of type function are taken")
        log.info("tools of these types are not offered to the model: %s", ", ".join(others))
    return found


def _tool(tool: Tool) -> dict[str, Any]:
    if not tool.name:
        raise missing("A tool of type function", "name")
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": check_schema(
            tool.parameters or {"type": "object", "properties": {}}, tool.name[:60]
        ),
        **given(strict=tool.strict),
    }
    return {"type": "function", "function": function}


def _choice(
    choice: Literal["none", "auto", "required"] | Choice | None,
) -> tuple[ToolChoice, set[str] | None]:
    """Return the tool choice, and the names of the allowed tools, or None for all."""
    if choice is None:
        return ToolChoice(), None
    if isinstance(choice, str):
        return ToolChoice(choice), None
    if choice.type == "function":
        if not choice.name:
            raise missing("tool_choice of type function", "name")
        return ToolChoice("named", choice.name), None
    if choice.type == "allowed_tools":
        mode = ToolChoice("required" if choice.mode == "required" else "auto")
        return mode, {tool.name for tool in choice.tools or () if tool.name}
    raise unsupported_type("tool_choice", choice.type, "function and allowed_tools are taken")


def _thinking(body: InputBody) -> Thinking:
    said = body.reasoning or Reasoning()
    return thinking_of(body, switch=said.enabled, effort=said.effort, budget=said.max_tokens)


def _format(wanted: TextFormat | None) -> Format | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Format("json_object")
    if wanted.type != "json_schema":
        raise unsupported_type("text.format", wanted.type, "text, json_object and json_schema")
    if wanted.schema_ is None:
        raise missing("text.format of type json_schema", "schema")
    return Format("json_schema", check_schema(wanted.schema_, "text.format"))
