"""Finds out what a chat template needs messages to look like, by rendering small conversations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from dure.errors import TemplateError

if TYPE_CHECKING:
    from dure.chat.template import ChatTemplate

_TOOL_NAME, _NAME, _KEY, _RESULT = "probed_tool", "probed_function", "probed_key", "probed_result"
_USER, _ASSISTANT, _SYSTEM = "probed_user", "probed_answer", "probed_system"
Message = dict[str, Any]


@dataclass(frozen=True)
class Needs:
    """What a template has a place for, and the form it wants calls in.

    arguments_as_text: as a JSON string, not an object. no_content: None where it is empty.
    """

    arguments_as_text: bool = False
    no_content: bool = False
    tools: bool = True
    calls: bool = True
    results: bool = True
    # Calls are the assistant's messages whose `metadata` is the name, results an "observation".
    metadata_calls: bool = False
    calls_alone: bool = True  # calls where the request has no tools
    several_calls: bool = True  # in one message
    content_with_calls: bool = True  # in one message
    any_id: bool = True  # of a call; else only ids of nine letters and digits, as Mistral's
    system: bool = True  # a first message of the system
    systems: bool = True  # several of them
    later_systems: bool = True  # anywhere later, in their place
    developer: bool = True  # that role, first
    later_developers: bool = True  # that role, anywhere later
    turns_in_a_row: bool = True  # two messages of one role, one after the other
    empty_answers: bool = True  # an answer without a text; else it needs a part, if an empty one
    names: bool = False  # the name of who speaks
    # Where turns must alternate, and calls and results are none: the text of the answer between a
    # result and the user, and of the user's between a result and the answer, if an answer came
    # before the call; None where none is needed.
    answer_between: str | None = None
    question_between: str | None = None


def needs_of(template: ChatTemplate) -> Needs:
    """Probe a template: what it shows of each role, and the first form of a call that it shows.

    Most write arguments with `tojson` or go through their items; DeepSeek's own join texts, and
    would fail or show Python's form of a dict. Some take "" for an answer, some fail on None.
    """
    if not _shows(template, [_user(1)]):
        return Needs()  # broken, or refusing: the real rendering says why
    shown: dict[str, Any] = {name: _shows_all(template, cases) for name, cases in _ROLES.items()}
    found = replace(
        _call_needs(template),
        **shown,
        empty_answers=_takes_empty_answers(template),
        developer="developer" in template.source
        and _shows(template, [_said("developer", _SYSTEM), _user(1)]),
        names="probed_name" in _rendered(template, [{**_user(1), "name": "probed_name"}]),
    )
    if found.turns_in_a_row or not found.calls:
        return found
    called = [_calls(found.arguments_as_text, None if found.no_content else "", "1"), _result("1")]
    answer = _said("assistant", _ASSISTANT)
    return replace(
        found,
        answer_between=_between(template, [_user(1), *called], "assistant", _user(2)),
        question_between=_between(template, [_user(1), answer, *called], "user", answer),
    )


def _takes_empty_answers(template: ChatTemplate) -> bool:
    """Return whether an answer may have no text, or whether a part without one is no help."""
    before, after = [_user(1)], [_user(2)]
    wanted = (f"{_USER}1", f"{_USER}2")
    empty, part = _said("assistant", ""), [{"type": "text", "text": ""}]
    return _shows(template, [*before, empty, *after], *wanted) or not _shows(
        template, [*before, {**empty, "content": part}, *after], *wanted
    )


def _between(
    template: ChatTemplate, before: list[Message], role: str, after: Message
) -> str | None:
    """Return the shortest text of a turn that must come before `after`, or None if none must."""
    wanted = [each["content"] for each in (before[0], before[-1], after)]
    if _shows(template, [*before, after], *wanted):
        return None
    for text in ("", " "):
        if _shows(template, [*before, _said(role, text), after], *wanted):
            return text
    return None


def _call_needs(template: ChatTemplate) -> Needs:
    tools = _TOOL_NAME in _rendered(template, [_user(1)], tools=True)
    results = False
    for as_text, no_content in product((False, True), (True, False)):
        call = _calls(as_text, None if no_content else "", "1")
        text = _rendered(template, [_user(1), call, _result("1")], tools=True)
        results = results or _RESULT in text
        shown = f"{_NAME}1" in text and f"{_KEY}1" in text
        if not shown or f"'{_KEY}1'" in text or "None" in text:
            continue
        both = [_user(1), _calls(as_text, _ASSISTANT, "1"), _result("1")]
        several = [
            _user(1),
            _calls(as_text, None if no_content else "", "1", "2"),
            _result("1"),
            _result("2"),
        ]
        texts = (f"{_NAME}1", f"{_KEY}1", f"{_NAME}2", f"{_KEY}2")
        long_ids = [_with_id(each, "call_of-probe") for each in (call, _result("1"))]
        return Needs(
            as_text,
            no_content,
            tools,
            results=results,
            calls_alone=f"{_NAME}1" in _rendered(template, [_user(1), call, _result("1")]),
            content_with_calls=_shows(template, both, _ASSISTANT, f"{_NAME}1", f"{_KEY}1"),
            several_calls=_shows(template, several, *texts),
            any_id=_shows(template, [_user(1), *long_ids], f"{_NAME}1", f"{_KEY}1"),
        )
    named = [_user(1), *metadata_call(f"{_NAME}1", f"{_KEY}1"), metadata_result(_result("1"))]
    return Needs(
        tools=tools,
        calls=False,
        results=results,
        metadata_calls=_shows(template, named, f"{_NAME}1", f"{_KEY}1", f"{_RESULT}1"),
    )


def metadata_call(name: str, arguments: str) -> list[Message]:
    """Return a call as GLM-4's template takes it."""
    return [{"role": "assistant", "metadata": name, "content": arguments}]


def metadata_result(message: Message) -> Message:
    """Return a result as GLM-4's template takes it."""
    return {"role": "observation", "content": message["content"]}


def _shows(template: ChatTemplate, messages: list[Message], *texts: str) -> bool:
    """Return whether the template shows these texts, or all the messages', in their order.

    Texts that are named are those of calls: a tool is then given, too.
    """
    shown, at = _rendered(template, messages, tools=bool(texts)), 0
    for text in texts or [message["content"] for message in messages]:
        at = shown.find(text, at)
        if at < 0:
            return False
    return True


def _shows_all(template: ChatTemplate, cases: list[list[Message]]) -> bool:
    return all(_shows(template, messages) for messages in cases)


def _rendered(template: ChatTemplate, messages: list[Message], *, tools: bool = False) -> str:
    """Render the messages; return an empty text if the template refuses them."""
    try:
        return template.render(messages, tools=[_TOOL] if tools else None)
    except TemplateError:
        return ""


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _user(number: int) -> Message:
    return _said("user", f"{_USER}{number}")


def _calls(as_text: bool, content: str | None, *numbers: str) -> Message:
    calls = []
    for number in numbers:
        key = f"{_KEY}{number}"
        function = {
            "name": f"{_NAME}{number}",
            "arguments": f'{{"{key}": "value"}}' if as_text else {key: "value"},
        }
        calls.append({"id": f"call0000{number}", "type": "function", "function": function})
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(number: str) -> Message:
    return {"role": "tool", "content": f"{_RESULT}{number}", "tool_call_id": f"call0000{number}"}


def _with_id(message: Message, call_id: str) -> Message:
    """Return a message with calls or a result, with another id."""
    if message["role"] == "tool":
        return {**message, "tool_call_id": call_id}
    return {**message, "tool_calls": [{**call, "id": call_id} for call in message["tool_calls"]]}


def _later(role: str) -> list[list[Message]]:
    """Return conversations in which a message of `role` comes later."""
    first, answer = _said("system", f"{_SYSTEM}1"), _said("assistant", _ASSISTANT)
    later = _said(role, f"{_SYSTEM}2")
    return [
        [first, _user(1), answer, later, _user(2)],
        [_user(1), answer, later, _user(2)],
        [first, _user(1), later],
    ]


_ROLES: dict[str, list[list[Message]]] = {
    "system": [[_said("system", _SYSTEM), _user(1)]],
    "systems": [[_said("system", f"{_SYSTEM}1"), _said("system", f"{_SYSTEM}2"), _user(1)]],
    "later_systems": _later("system"),
    "later_developers": _later("developer"),
    "turns_in_a_row": [
        [_user(1), _user(2)],
        [_user(1), *[_said("assistant", f"{_ASSISTANT}{number}") for number in (1, 2)], _user(2)],
    ],
}

_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": "none",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
