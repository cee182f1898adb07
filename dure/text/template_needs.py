"""What a chat template needs earlier calls to look like: found by trying."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from dure.errors import TemplateError

if TYPE_CHECKING:
    from dure.text.template import ChatTemplate

_NAME, _KEY = "probed_function", "probed_key"


@dataclass(frozen=True)
class Needs:
    """arguments_as_text: as a JSON string and no object. no_content: None where it is empty."""

    arguments_as_text: bool = False
    no_content: bool = False


def needs_of(template: ChatTemplate) -> Needs:
    """The first form of a call that the template shows with its name and its arguments.

    Most write an object with `tojson` or go through its items; DeepSeek's own join texts, and
    would fail or show Python's form of a dict. Some take "" for an answer, some fail on None.
    """
    for as_text, no_content in product((False, True), (True, False)):
        try:
            text = template.render(_conversation(as_text, no_content), tools=[_TOOL])
        except TemplateError:
            continue
        shown = _NAME in text and _KEY in text
        if shown and f"'{_KEY}'" not in text and "None" not in text:
            return Needs(as_text, no_content)
    return Needs()


_TOOL = {
    "type": "function",
    "function": {
        "name": "another",
        "description": "none",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}


def _conversation(as_text: bool, no_content: bool) -> list[dict[str, Any]]:
    arguments = f'{{"{_KEY}": "value"}}' if as_text else {_KEY: "value"}
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": _NAME, "arguments": arguments},
    }
    return [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": None if no_content else "", "tool_calls": [call]},
        {"role": "tool", "content": "result", "tool_call_id": "call00001"},
    ]
