"""Converts Anthropic's request bodies to a ChatRequest and SamplingParams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.server.anthropic.schemas import Block, Choice, CountBody, Message, MessagesBody, Tool
from dure.server.wire.thinking import switch_of, thinking_of, variables_of
from dure.server.wire.validation import (
    CHAT_ONLY,
    check_schema,
    given,
    missing,
    refuse,
    unsupported_type,
)

BILLING_HEADER = "x-anthropic-billing-header:"
"""Claude Code begins its system prompt with this and a new number each time. It means nothing to
the model, and would keep the prefix cache from finding the prompt before."""

_UNSUPPORTED = {
    **CHAT_ONLY,
    "max_completion_tokens": 'it is "max_tokens" here',
    "response_format": 'it is "output_config.format" here',
    "stop": 'it is "stop_sequences" here',
    "mcp_servers": "this server calls no tools itself",
    "container": "this server runs no code",
    "fallbacks": "one model answers",
    "compaction": "nothing is ever cut from a context",
    "thread": "this server keeps no threads",
}
_BLOCKS = "text, thinking, tool_use and tool_result are taken"


def chat_request(body: CountBody) -> ChatRequest:
    """Convert the body to a ChatRequest. Raises InvalidRequestError for what is not supported."""
    refuse(body, _UNSUPPORTED)
    messages = _system(body.system)
    for index, message in enumerate(body.messages):
        where = f"messages[{index}]"
        if message.role == "user":
            _add_user(messages, message, where)
        elif message.role == "assistant":
            messages.append(_assistant(message, where))
        elif message.role == "system":
            messages += _system(message.content, where)
        else:
            raise unsupported_type(f"{where}: a role", message.role, "user and assistant are taken")
    last = messages[-1] if messages else {}
    if last.get("tool_calls"):
        raise InvalidRequestError(
            "The last message uses a tool, and its result is missing.",
            hint="send a user message with a tool_result block",
        )
    if last.get("role") == "assistant":
        last = messages[-1] = _begun(body.messages[-1], last)
    return ChatRequest(
        messages,
        tools=[_tool(tool) for tool in body.tools or ()],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=not (
            body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
        ),
        thinking=_thinking(body),
        format=_format(body),
        template_variables=variables_of(body),
        continue_final=last.get("role") == "assistant",
    )


def sampling(body: MessagesBody) -> SamplingParams:
    """Read the sampling parameters; fields left out take the model's defaults."""
    return SamplingParams(
        **given(
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            stop=body.stop_sequences,
        )
    )


def _system(content: str | Sequence[Block] | None, where: str = "system") -> list[dict[str, Any]]:
    if content is None:
        return []
    if not isinstance(content, str):
        content = [block for block in content if not (block.text or "").startswith(BILLING_HEADER)]
    text = _text(content, where)
    return [{"role": "system", "content": text}] if text else []


def _text(content: str | Sequence[Block] | None, where: str) -> str:
    """Return the text of content that may be text only; blocks are joined by an empty line."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n\n".join(_block_text(block, f"{where}[{i}]") for i, block in enumerate(content))


def _block_text(block: Block, where: str) -> str:
    if block.type == "text":
        if block.text is None:
            raise missing(f"{where} of type text", "text")
        return block.text
    if block.type == "document" and block.source is not None and block.source.type == "text":
        return "\n".join(part for part in (block.title, block.source.data) if part)
    raise unsupported_type(f"{where}: content", block.type, _BLOCKS)


def _add_user(messages: list[dict[str, Any]], message: Message, where: str) -> None:
    """Append the turn's texts and tool results to the messages, in their order."""
    blocks = message.content
    if isinstance(blocks, str):
        blocks = [Block(type="text", text=blocks)]
    texts: list[str] = []
    for index, block in enumerate(blocks):
        at = f"{where}.content[{index}]"
        if block.type != "tool_result":
            texts.append(_block_text(block, at))
            continue
        _add_text(messages, texts)
        texts = []
        if block.tool_use_id is None:
            raise missing(f"{at} of type tool_result", "tool_use_id")
        result = _text(block.content, at)
        messages.append(
            {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "content": f"Error: {result}" if block.is_error else result,
            }
        )
    _add_text(messages, texts)


def _add_text(messages: list[dict[str, Any]], texts: list[str]) -> None:
    """Append user text; adjacent user turns are merged, as in Anthropic's API."""
    if not texts:
        return
    text = "\n\n".join(texts)
    if messages and messages[-1]["role"] == "user":
        text = f"{messages.pop()['content']}\n\n{text}"
    messages.append({"role": "user", "content": text})


def _begun(message: Message, made: dict[str, Any]) -> dict[str, Any]:
    """Return the last message as the beginning of the answer, its blocks one text."""
    text = made["content"]
    if not isinstance(message.content, str):
        blocks = [block for block in message.content if "thinking" not in block.type]
        text = "".join(_block_text(block, "The last message") for block in blocks)
    if text != text.rstrip():
        raise InvalidRequestError(
            "The last message is the beginning of the answer, and ends with white space.",
            hint="remove it: the answer begins with its own",
        )
    return {**made, "content": text}


def _assistant(message: Message, where: str) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(message.content):
        at = f"{where}.content[{index}]"
        if block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            if block.id is None or block.name is None:
                raise missing(f"{at} of type tool_use", "id" if block.id is None else "name")
            arguments = json.dumps(block.input or {}, ensure_ascii=False)
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.type != "redacted_thinking":  # encrypted: only Anthropic can read it
            texts.append(_block_text(block, at))
    made: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(texts)}
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return made


def _tool(tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise unsupported_type(
            f"The tool {tool.name[:60]!r}", tool.type, "tools with an input_schema are taken"
        )
    if tool.input_schema is None:
        raise missing(f"The tool {tool.name[:60]!r}", "input_schema")
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": check_schema(tool.input_schema, tool.name[:60]),
        **given(strict=tool.strict),
    }
    return {"type": "function", "function": function}


def _choice(choice: Choice | None) -> ToolChoice:
    if choice is None or choice.type == "auto":
        return ToolChoice()
    if choice.type == "none":
        return ToolChoice("none")
    if choice.type == "any":
        return ToolChoice("required")
    if choice.type == "tool":
        if not choice.name:
            raise missing("tool_choice of type tool", "name")
        return ToolChoice("named", choice.name)
    raise unsupported_type("tool_choice", choice.type, "auto, any, tool and none are taken")


def _thinking(body: CountBody) -> Thinking:
    """Read the thinking settings. Without any, thinking is off."""
    effort = body.output_config.effort if body.output_config else None
    config = body.thinking
    kind = config.type if config else None
    if kind not in (None, "enabled", "adaptive", "disabled"):
        raise unsupported_type("thinking", kind, "enabled, adaptive and disabled are taken")
    budget = config.budget_tokens if config and kind == "enabled" else None
    said = thinking_of(body, switch=switch_of(kind), effort=effort, budget=budget)
    return Thinking("off") if config is None and said == Thinking() else said


def _format(body: CountBody) -> Format | None:
    wanted = body.output_config.format if body.output_config else None
    wanted = wanted or body.output_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type != "json_schema":
        raise unsupported_type("A format", wanted.type, "json_schema is taken")
    if wanted.schema_ is None:
        raise missing("A format of type json_schema", "schema")
    return Format("json_schema", check_schema(wanted.schema_, "the format"))
