"""Writes tools, calls and results into messages, for chat templates that leave them out.

The templates of DeepSeek V3.1, ERNIE 4.5, openPangu and SmolLM2 do not write tools. The system
message then describes them, in the dialect's form of a call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dure.chat.dialects.dialect import CallFormat
from dure.chat.template_probe import Needs, metadata_call, metadata_result
from dure.errors import InvalidRequestError

Message = dict[str, Any]

_INTRODUCTION = """# Tools

You may call functions to answer the user. Each line within <tools></tools> describes one:
<tools>
{tools}
</tools>

To call a function write its name, and its arguments as a JSON object, in exactly this form; write \
the form again for each further call:
{form}

The results come in <tool_response></tool_response>. Where no function is of use, just answer."""


def with_tools(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    needs: Needs,
    call_format: CallFormat,
) -> list[Message]:
    """Return the messages with what the template leaves out written into their texts."""
    made: list[Message] = []
    for message in messages:
        if message.get("tool_calls") and needs.metadata_calls:
            made += _as_metadata(message)
        elif message.get("tool_calls") and not needs.calls:
            made.append(_called(message, call_format))
        elif message["role"] == "tool" and needs.metadata_calls:
            made.append(metadata_result(message))
        elif message["role"] == "tool" and not needs.results:
            _add_result(made, message)
        else:
            made.append(dict(message))
    if tools and not needs.tools:
        _introduce(made, tools, call_format)
    return made


def _as_metadata(message: Message) -> list[Message]:
    """Return an assistant's message as one of its content, if it has any, and one of each call."""
    said = {name: value for name, value in message.items() if name != "tool_calls"}
    made = [said] if said["content"] else []
    for call in message["tool_calls"]:
        function = call["function"]
        made += metadata_call(function["name"], _json(function["arguments"]))
    return made


def _called(message: Message, call_format: CallFormat) -> Message:
    """Return an assistant's message with its calls written into its text."""
    calls = [
        call_format.text(call["function"]["name"], _json(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]
    said = [message["content"]] if message["content"] else []
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join([*said, *calls])}


def _add_result(made: list[Message], message: Message) -> None:
    """Append a result to the user's turn; results in a row share one turn."""
    text = f"<tool_response>\n{message['content']}\n</tool_response>"
    if made and made[-1]["role"] == "user" and made[-1]["content"].endswith("</tool_response>"):
        made[-1]["content"] += f"\n{text}"
    else:
        made.append({"role": "user", "content": text})


def _introduce(
    made: list[Message], tools: Sequence[Mapping[str, Any]], call_format: CallFormat
) -> None:
    listed = "\n".join(_json(tool.get("function", tool)) for tool in tools)
    text = _INTRODUCTION.format(tools=listed, form=call_format.text("NAME", "{ARGUMENTS}"))
    if made and made[0]["role"] == "system":
        made[0]["content"] = f"{made[0]['content']}\n\n{text}".lstrip()
    else:
        made.insert(0, {"role": "system", "content": text})


def _json(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"A tool or a call of one holds something that is not JSON: {error}.",
            hint="use texts, numbers, lists and dictionaries only",
        ) from error
