"""What a chat template needs calls to look like, and what it leaves out: found by trying."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from dure.errors import TemplateError

if TYPE_CHECKING:
    from dure.chat.template import ChatTemplate

_TOOL_NAME, _NAME, _KEY, _RESULT = "probed_tool", "probed_function", "probed_key", "probed_result"


@dataclass(frozen=True)
class Needs:
    """arguments_as_text: as a JSON string and no object. no_content: None where it is empty.

    tools, calls, results: whether the template has a place for them.
    """

    arguments_as_text: bool = False
    no_content: bool = False
    tools: bool = True
    calls: bool = True
    results: bool = True


def needs_of(template: ChatTemplate) -> Needs:
    """Return the first form of a call that the template shows with its name and its arguments.

    Most write an object with `tojson` or go through its items; DeepSeek's own join texts, and
    would fail or show Python's form of a dict. Some take "" for an answer, some fail on None.
    """
    tools = _TOOL_NAME in _rendered(template, _QUESTION)
    results = False
    for as_text, no_content in product((False, True), (True, False)):
        text = _rendered(template, _conversation(as_text, no_content))
        results = results or _RESULT in text
        shown = _NAME in text and _KEY in text
        if shown and f"'{_KEY}'" not in text and "None" not in text:
            return Needs(as_text, no_content, tools, results=results)
    return Needs(tools=tools, calls=False, results=results)


def _rendered(template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    """Return what the template makes of the messages and a tool; nothing if it refuses them."""
    try:
        return template.render(messages, tools=[_TOOL])
    except TemplateError:
        return ""


_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": "none",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
_QUESTION = [{"role": "user", "content": "question"}]


def _conversation(as_text: bool, no_content: bool) -> list[dict[str, Any]]:
    arguments = f'{{"{_KEY}": "value"}}' if as_text else {_KEY: "value"}
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": _NAME, "arguments": arguments},
    }
    return [
        *_QUESTION,
        {"role": "assistant", "content": None if no_content else "", "tool_calls": [call]},
        {"role": "tool", "content": _RESULT, "tool_call_id": "call00001"},
    ]
