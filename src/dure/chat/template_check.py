"""Checks that a chat template shows every message of a conversation, in its place.

A template is a program: it may pass over a message without an error. So a conversation of the same
shape, with words of its own in place of the texts, is rendered and looked through for them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dure.errors import InvalidRequestError, TemplateError

if TYPE_CHECKING:
    from dure.chat.template import ChatTemplate

MAX_SHAPES = 1024
"""How many shapes of conversations are remembered: 32 bytes each."""

_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "none", "parameters": {"type": "object"}},
}


class TemplateCheck:
    """Checks the conversations of one template. Thread-safe."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known: OrderedDict[bytes, int | None] = OrderedDict()
        self._lock = threading.Lock()

    def check(
        self, messages: Sequence[Mapping[str, Any]], *, tools: bool, variables: Mapping[str, Any]
    ) -> None:
        """Raise InvalidRequestError if the template leaves out a message, or moves it."""
        index = self._left_out(messages, tools=tools, variables=variables)
        if index is None:
            return
        message = messages[index]
        what = "the tool calls or the text" if message.get("tool_calls") else "the text"
        raise InvalidRequestError(
            f"The model's chat template does not show {what} of message {index + 1} of "
            f"{len(messages)} (role {str(message.get('role'))[:40]!r}) in its place.",
            hint="leave that message out, give its text to the user's role, or use another "
            "template",
        )

    def _left_out(
        self, messages: Sequence[Mapping[str, Any]], *, tools: bool, variables: Mapping[str, Any]
    ) -> int | None:
        """Return the index of the first message that is not shown in its place, or None."""
        probes = [_probe(index, message) for index, message in enumerate(messages)]
        shape = json.dumps([probes, tools, variables], default=str, sort_keys=True)
        key = hashlib.blake2b(shape.encode(), digest_size=16).digest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        try:
            text = self._template.render(probes, tools=[_TOOL] if tools else None, **variables)
        except TemplateError:
            return None  # it reads the texts, and accepted the real ones
        found = _first_missing(text, probes)
        with self._lock:
            self._known[key] = found
            while len(self._known) > MAX_SHAPES:
                self._known.popitem(last=False)
        return found


def _probe(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of the same shape with words of its own as texts."""
    content = message.get("content")
    made: dict[str, Any] = {"role": message.get("role"), "content": content}
    if isinstance(content, str):
        made["content"] = f"probe{index:06}text" if content.strip() else content
    if message.get("reasoning_content"):
        made["reasoning_content"] = f"probe{index:06}thought"
    for name in ("tool_call_id", "name"):
        if name in message:
            made[name] = "probe0000"
    if message.get("tool_calls"):
        made["tool_calls"] = [
            _call(f"probe{index:06}call{number}", call["function"].get("arguments"))
            for number, call in enumerate(message["tool_calls"])
        ]
    return made


def _call(word: str, arguments: Any) -> dict[str, Any]:
    probed = {f"{word}key": "value"} if arguments and arguments != "{}" else {}
    as_text = json.dumps(probed) if isinstance(arguments, str) else probed
    function = {"name": f"{word}name", "arguments": as_text}
    return {"id": "probe0000", "type": "function", "function": function}


def _words(probe: Mapping[str, Any]) -> list[str]:
    """Return the words of a probe that must be shown."""
    content = probe["content"]
    words = [content] if isinstance(content, str) and content.strip() else []
    for call in probe.get("tool_calls", ()):
        function = call["function"]
        words.append(function["name"])
        if function["arguments"] not in ({}, "{}"):
            words.append(function["name"].removesuffix("name") + "key")
    return words


def _first_missing(text: str, probes: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the first probe whose words do not come after those before it.

    First messages of the system may stand anywhere: some families write them in the last turn.
    """
    at, first = 0, True
    for index, probe in enumerate(probes):
        words = _words(probe)
        first = first and probe["role"] in ("system", "developer")
        if any(word not in text for word in words):
            return index
        if words and not first:
            places = [text.find(word, at) for word in words]
            if min(places) < 0:
                return index
            at = min(places)
    return None
