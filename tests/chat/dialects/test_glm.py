"""GLM's calls, with line ends (4.5, 4.6) and without (4.7), cut at any point."""

from __future__ import annotations

import json

import pytest

from dure.chat.dialects import StreamParser, dialect_of
from dure.chat.dialects.glm import GLM

TOOLS = {
    "get_weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {},
}
WEATHER = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
)
OSLO = ("get_weather", {"city": "Oslo", "days": 3})


def read(text: str, cut: int) -> tuple[str, str, list[tuple[str, dict[str, object]]]]:
    """Thoughts, answer and calls of a text in two pieces."""
    automaton = StreamParser(GLM, tools=TOOLS)
    events = [*automaton.push(text[:cut]), *automaton.push(text[cut:]), *automaton.finish()]
    said = {
        kind: "".join(e.text for e in events if e.kind == kind) for kind in ("reasoning", "content")
    }
    names = [event.name for event in events if event.kind == "call"]
    arguments = [
        "".join(e.text for e in events if e.kind == "arguments" and e.index == i)
        for i in range(len(names))
    ]
    calls = [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
    return said["reasoning"], said["content"], calls


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think>Hm.</think>\nCold.", ("Hm.", "Cold.", [])),
        (f"<think>Hm.</think>\nI look.\n{WEATHER}", ("Hm.", "I look.", [OSLO])),
        (f"{WEATHER}\n<tool_call>now\n</tool_call>", ("", "", [OSLO, ("now", {})])),
        (WEATHER.replace("\n", ""), ("", "", [OSLO])),
        ("<tool_call>\n</tool_call>", ("", "<tool_call>\n</tool_call>", [])),
    ],
)
def test_a_text_says_the_same_cut_at_any_point(text: str, expected: object) -> None:
    for cut in range(len(text) + 1):
        assert read(text, cut) == expected, text[:cut]


def test_it_is_found_from_its_template() -> None:
    template = "[gMASK]<sop>{{ x }}<tool_call>{function-name}\n<arg_key>{k}</arg_key>"
    assert dialect_of(template, lambda _: False) is GLM
