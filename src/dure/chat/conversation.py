"""Arranges a conversation so that a chat template shows every message, in its place.

Templates differ in what they have a place for. What one leaves out, or refuses, is written in the
nearest form that it shows:

- Several first messages of the system are one, with an empty line between them.
- A later message of the system stands between <system> and </system> in the user's turn that it
  comes before, or else after, or in a turn of its own. Where the template has no place for any
  message of the system, the first one begins the first user's turn.
- Results stand in the order of their calls. Where a message may hold one call only, each call is a
  message, followed by its result. Where it may not hold content and calls, the content comes first.
- Where only ids of nine letters and digits are taken, each id of a call becomes such a one.
- Messages of one role in a row are one where roles must alternate. Where calls and results do not
  count as turns, an empty turn stands after a result before a second turn of one role.
- Where messages of one role have different names, each begins with its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from dure.chat.template_probe import Needs

Message = dict[str, Any]
_SYSTEM = ("system", "developer")


def arranged(messages: Sequence[Message], needs: Needs) -> list[Message]:
    """Return the messages arranged for a template with these needs."""
    made = list(messages) if needs.names else _named(messages)
    if needs.calls and not (needs.several_calls and needs.content_with_calls):
        made = _split_calls(made, needs)
    if needs.calls and not needs.any_id:
        made = _with_short_ids(made)
    made = _placed_systems(made, needs)
    if not needs.turns_in_a_row:
        made = _with_empty_turns(_alternating(made, needs), needs)
    return made if needs.empty_answers else [_with_a_part(message) for message in made]


def _with_a_part(message: Message) -> Message:
    """Give an answer without a text one part without a text, which looks like content."""
    if message["role"] != "assistant" or message["content"] or message.get("tool_calls"):
        return message
    return {**message, "content": [{"type": "text", "text": ""}]}


def _with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Replace ids of calls and results by nine hexadecimal digits, if they are not as short.

    Calls of the older form, which have none, and their results get ids, too.
    """
    made: list[Message] = []
    waiting: list[str] = []  # ids of calls whose results may follow
    for index, message in enumerate(messages):
        made.append(dict(message))
        if message.get("tool_calls"):
            waiting = [
                _short_id(call.get("id") or f"{index}-{number}")
                for number, call in enumerate(message["tool_calls"])
            ]
            made[-1]["tool_calls"] = [
                {**call, "id": short}
                for call, short in zip(message["tool_calls"], waiting, strict=True)
            ]
        elif message.get("tool_call_id"):
            made[-1]["tool_call_id"] = _short_id(message["tool_call_id"])
        elif message["role"] == "tool" and waiting:
            made[-1]["tool_call_id"] = waiting.pop(0)
    return made


def _short_id(given: Any) -> str:
    text = str(given)
    if len(text) == 9 and text.isascii() and text.isalnum():
        return text
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()[:9]


def _named(messages: Sequence[Message]) -> list[Message]:
    """Write the names of a role's speakers before their texts, where it has several."""
    speakers: dict[str, set[Any]] = {}
    for message in messages:
        speakers.setdefault(message["role"], set()).add(str(message.get("name") or ""))
    made = []
    for message in messages:
        name, role, text = message.get("name"), message["role"], message["content"]
        if role != "tool" and isinstance(name, str) and name and len(speakers[role]) > 1:
            text = f"{name}: {text or ''}"
        made.append({**message, "content": text})
    return made


def results_in_order(messages: Sequence[Message]) -> list[Message]:
    """Put the results after a message with calls in the order of these."""
    made: list[Message] = []
    index = 0
    while index < len(messages):
        message = messages[index]
        made.append(message)
        index += 1
        if not message.get("tool_calls"):
            continue
        end = index
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        ids = [call.get("id") for call in message["tool_calls"]]
        results = list(messages[index:end])
        if all(result.get("tool_call_id") in ids for result in results):
            results.sort(key=lambda result: ids.index(result.get("tool_call_id")))
        made += results
        index = end
    return made


def _split_calls(messages: Sequence[Message], needs: Needs) -> list[Message]:
    """Split messages that hold more calls, or content beside calls, than the template shows."""
    made: list[Message] = []
    waiting: list[Message] = []  # calls that follow once their predecessor has its result
    for message in messages:
        if waiting and message["role"] == "tool":
            while waiting and _answers(message, waiting[0]):
                made.append(waiting.pop(0))
            made.append(message)
            continue
        made += waiting
        parts = _parts(message, needs)
        # Content, if it is apart, and the first call come now.
        now = 1 + ("tool_calls" not in parts[0] and len(parts) > 1)
        made += parts[:now]
        waiting = parts[now:]
    return made + waiting


def _parts(message: Message, needs: Needs) -> list[Message]:
    """Return a message as messages of no more calls, or content beside them, than is shown."""
    calls = message.get("tool_calls") or []
    if not calls:
        return [message]
    first = message
    parts: list[Message] = []
    apart: Message = {
        "role": message["role"],
        "content": None if needs.no_content else "",
        "tool_calls": calls,
    }
    if message["content"] and not needs.content_with_calls:
        parts.append({name: each for name, each in message.items() if name != "tool_calls"})
        first = apart
    if needs.several_calls:
        return [*parts, first]
    return [
        *parts,
        {**first, "tool_calls": calls[:1]},
        *({**apart, "tool_calls": [call]} for call in calls[1:]),
    ]


def _answers(result: Message, message: Message) -> bool:
    """Return whether a result is that of the message's call."""
    given = result.get("tool_call_id")
    return given is not None and given == message["tool_calls"][0].get("id")


def _placed_systems(messages: Sequence[Message], needs: Needs) -> list[Message]:
    """Place the messages of the system where the template shows them."""
    first = 0
    while first < len(messages) and messages[first]["role"] in _SYSTEM:
        first += 1
    head, made = _first_systems(messages[:first], needs), []
    before = ""  # texts of the system that the next user's turn begins with
    for index, message in enumerate(messages[first:], first):
        role = message["role"]
        if role == "developer" and not needs.later_developers:
            role = "system"
        if role not in _SYSTEM or (needs.later_systems if role == "system" else True):
            text = before + (message["content"] or "") if before else message["content"]
            made.append({**message, "role": role, "content": text})
            before = ""
            continue
        said = f"<system>\n{message['content']}\n</system>"
        later = messages[index + 1]["role"] if index + 1 < len(messages) else ""
        if later == "user" or (before and later in _SYSTEM):
            before += f"{said}\n\n"
        elif before:
            made.append({"role": "user", "content": before + said})
            before = ""
        elif made and made[-1]["role"] == "user":
            made[-1] = {**made[-1], "content": f"{made[-1]['content']}\n\n{said}"}
        else:
            made.append({"role": "user", "content": said})
    if head and not needs.system:
        text = "\n\n".join(message["content"] for message in head)
        if made and made[0]["role"] == "user":
            return [{**made[0], "content": f"{text}\n\n{made[0]['content']}"}, *made[1:]]
        return [{"role": "user", "content": text}, *made]
    return [*head, *made]


def _first_systems(messages: Sequence[Message], needs: Needs) -> list[Message]:
    """Return the first messages of the system, as one where the template shows only one."""
    made = [
        {**message, "role": message["role"] if needs.developer else "system"}
        for message in messages
    ]
    if len(made) < 2 or (needs.systems and all(each["role"] == "system" for each in made)):
        return made
    text = "\n\n".join(message["content"] for message in made if message["content"])
    return [{**made[0], "content": text}]


def _alternating(messages: Sequence[Message], needs: Needs) -> list[Message]:
    """Join messages of the user, or of the assistant, that follow each other."""
    made: list[Message] = []
    for message in messages:
        last = made[-1] if made else None
        plain = message["role"] in ("user", "assistant") and not message.get("reasoning_content")
        if message.get("tool_calls") and not needs.content_with_calls:
            plain = False
        if last and plain and last["role"] == message["role"] and not last.get("tool_calls"):
            texts = [text for text in (last["content"], message["content"]) if text]
            made[-1] = {**last, **message, "content": "\n\n".join(texts)}
        else:
            made.append(message)
    return made


def _with_empty_turns(messages: Sequence[Message], needs: Needs) -> list[Message]:
    """Insert a turn after a result where the next turn has the role of the one before the call."""
    between = {"user": ("assistant", needs.answer_between)}
    between["assistant"] = ("user", needs.question_between)
    made: list[Message] = []
    last = ""  # the role of the last turn that counts
    for message in messages:
        role = message["role"]
        if role in between and not message.get("tool_calls"):
            other, text = between[role]
            if role == last and text is not None and made[-1]["role"] == "tool":
                made.append({"role": other, "content": text})
            last = role
        made.append(message)
    return made
