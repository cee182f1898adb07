"""Normalizes messages from any client to the one form that chat templates read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dure.chat.template_probe import Needs
from dure.errors import InvalidRequestError

_REASONING = ("reasoning_content", "reasoning", "thinking")

_SWITCH = re.compile(r"^\s*/(?P<first>no_)?think(?=\s)|(?:^|\s)/(?P<last>no_)?think\s*$")
"""Qwen's and Hunyuan's switches for reasoning, where their models expect them."""

_END = 20  # characters, more than a switch has

Recall = Callable[[str], str | None]
"""Returns the reasoning before the call of an id, if it is remembered."""


def prepared(
    messages: Sequence[Mapping[str, Any]],
    needs: Needs,
    *,
    recall: Recall | None = None,
    continued: bool = False,
) -> list[dict[str, Any]]:
    """Return the messages with text as content, calls as the template needs them, and reasoning.

    recall: finds reasoning that a client dropped. continued: the last message is the beginning of
    an answer, so that its parts are one text.
    Raises InvalidRequestError for a part that is not text, or a call without a name.
    """
    last = len(messages) - 1
    return [
        _prepared(message, needs, recall, between="" if continued and index == last else "\n")
        for index, message in enumerate(messages)
    ]


def with_suffix(messages: Sequence[dict[str, Any]], suffix: str) -> list[dict[str, Any]]:
    """Return the messages with `suffix` at the end of the user's last one."""
    made = list(messages)
    users = [index for index, message in enumerate(made) if message["role"] == "user"]
    if suffix and users and not made[users[-1]]["content"].endswith(suffix):
        message = made[users[-1]]
        made[users[-1]] = {**message, "content": message["content"] + suffix}
    return made


def said_thinking(messages: Sequence[Mapping[str, Any]]) -> bool | None:
    """Return what the newest /think or /no_think in the messages says; None if there is none."""
    for message in reversed(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ("user", "system"):
            continue
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
        found = _SWITCH.search(_ends("\n".join(text for text in texts if isinstance(text, str))))
        if found:
            return not (found["first"] or found["last"])
    return None


def _ends(text: str) -> str:
    """Return a text whose two ends are those of `text`: a search of megabytes takes long."""
    bare = text.strip()
    return bare if len(bare) < 2 * _END else f"{bare[:_END]}.\n.{bare[-_END:]}"


def shown_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of which every chat template writes all but the white space around them.

    Those of the assistant are not among them: templates leave its reasoning out.
    """
    found: list[str] = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") == "assistant":
            continue
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                found.append(text.strip())
    return found


def _prepared(
    message: Mapping[str, Any], needs: Needs, recall: Recall | None, *, between: str
) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequestError("A message has no role.", hint='{"role": "user", "content": "…"}')
    made = {key: value for key, value in message.items() if value is not None}
    made["content"] = content_text(made.get("content", made.get("refusal")), between)
    if made["role"] == "function":  # OpenAI's older name for the role and, below, for the call
        made["role"] = "tool"
    reasoning = next((made[name] for name in _REASONING if isinstance(made.get(name), str)), None)
    calls = message.get("tool_calls")
    if not calls and made.get("function_call"):
        calls = [{"type": "function", "function": made.pop("function_call")}]
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidRequestError(
                "A message's tool_calls must be a list.",
                hint='[{"id": …, "type": "function", "function": {"name": …, "arguments": "{…}"}}]',
            )
        made["tool_calls"] = [_call(call, as_text=needs.arguments_as_text) for call in calls]
        ids = [call["id"] for call in made["tool_calls"] if isinstance(call.get("id"), str)]
        if reasoning is None and recall is not None:
            reasoning = next((found for each in ids if (found := recall(each))), None)
        if needs.no_content and not made["content"]:
            made["content"] = None
    else:
        made.pop("tool_calls", None)  # templates ask whether it is there, not whether it is empty
    if reasoning is not None:
        made["reasoning_content"] = reasoning
    return made


def content_text(content: Any, between: str = "\n") -> str:
    """Return the text of a content, with `between` between its parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, Sequence) else [content]:
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequestError(
                f"A message's content has a part of type {str(kind)[:40]!r}; only text is read.",
                hint='{"type": "text", "text": …}',
            )
        texts.append(text)
    return between.join(texts)


def _call(call: Any, *, as_text: bool) -> dict[str, Any]:
    """Return the call with its arguments as an object, or as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(
            "A tool call in a message has no function name.",
            hint='{"id": …, "type": "function", "function": {"name": …, "arguments": "{…}"}}',
        )
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if not isinstance(arguments, Mapping):
        # A model's own broken call, sent back: the template still has to show something.
        arguments = {"arguments": arguments}
    if as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _loads(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
