"""Every answer that dure can give is accepted as history, and reads back as what it was."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from test_conversation import TEMPLATES, builder, said, template

from dure.chat.dialects import StreamParser
from dure.chat.prompt import RequestBuilder
from dure.chat.request import ChatRequest, tool_schemas

ARGUMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "one": {"text": "Oslo"},
    "letters": {"text": "Ünïcödé — 東京 🌍"},
    "quotes": {"text": 'it\'s "quoted" and \\ escaped'},
    "lines": {"text": "one\n\n  two\tthree\n"},
    "marks": {"text": "<b>&amp;</b> {{ x }} {% if %} {a} ]"},
    "types": {"text": "7", "count": 7, "ratio": 0.5, "on": True, "none": None},
    "nested": {"list": [1, "a", {"b": []}], "object": {"a": {"b": "c"}, "d": [None, False]}},
    "empty": {"text": "", "list": [], "object": {}},
}
TYPES = {
    "text": "string",
    "count": "integer",
    "ratio": "number",
    "on": "boolean",
    "none": "null",
    "list": "array",
    "object": "object",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Does it.",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in TYPES.items()},
            },
        },
    }
    for name in ("do_it", "do_more")
]
SCHEMAS = tool_schemas(TOOLS)


def call(number: int, arguments: dict[str, Any]) -> dict[str, Any]:
    name = "do_it" if number % 2 == 0 else "do_more"
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{number:024}", "type": "function", "function": function}


NULLS = ("arguments: types", "arguments: nested")
NONE_FOR_NULL = ("qwen3", "gemma-4", "lfm2.5", "seed-oss")
ONE, TWO = [call(0, {"text": "Oslo"})], [call(0, {"text": "Oslo"}), call(1, {"count": 3})]
ANSWERS: dict[str, dict[str, Any]] = {
    "content": {"content": "It is cold."},
    "nothing": {"content": ""},
    "reasoning and content": {"content": "It is cold.", "reasoning_content": "Hm, Oslo."},
    "reasoning alone": {"content": "", "reasoning_content": "Hm, Oslo."},
    "a call": {"content": None, "tool_calls": ONE},
    "a call and reasoning": {"content": "", "tool_calls": ONE, "reasoning_content": "Hm."},
    "a call and content": {"content": "I look.", "tool_calls": ONE},
    "two calls": {"content": None, "tool_calls": TWO},
    "two calls and all": {"content": "I look.", "tool_calls": TWO, "reasoning_content": "Hm."},
    "three calls": {"content": "", "tool_calls": [*TWO, call(2, {})]},
    **{
        f"arguments: {name}": {"content": None, "tool_calls": [call(0, arguments)]}
        for name, arguments in ARGUMENTS.items()
    },
}


def after(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation in which the assistant gave the answer, and which goes on."""
    results = [
        said("tool", f"result {index}", tool_call_id=each["id"])
        for index, each in enumerate(answer.get("tool_calls", ()))
    ]
    return [said("user", "Begin here."), {"role": "assistant", **answer}, *results]


@pytest.fixture(scope="module")
def builders() -> dict[str, RequestBuilder]:
    return {name: builder(template(name)) for name in TEMPLATES}


def calls_in(made: RequestBuilder, prompt: str) -> list[tuple[str, Any]]:
    """The calls that a prompt shows, as the model's own dialect reads them."""
    turns = prompt.rpartition("Begin here.")[2]
    # The calls of Llama and GLM-4 begin a turn, and have no mark of their own.
    bare = made.dialect.bare_calls or made.dialect.name == "GLM-4"
    pieces = re.split(r"<\|end_header_id\|>\n\n|<\|assistant\|>", turns) if bare else [turns]
    found: list[tuple[str, Any]] = []
    for piece in pieces:
        parser = StreamParser(made.dialect, tools=SCHEMAS)
        events = [*parser.push(piece), *parser.finish()]
        assert parser.unparsed == 0, piece
        for event in events:
            if event.kind == "call":
                texts = [e.text for e in events if e.kind == "arguments" and e.index == event.index]
                found.append((event.name, json.loads("".join(texts) or "{}")))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [True, False], ids=["tools", "no tools"])
def test_every_answer_is_accepted_as_history(
    builders: dict[str, RequestBuilder], name: str, tools: bool
) -> None:
    for kind, answer in ANSWERS.items():
        messages = after(answer)
        for more in ([], [said("assistant", "Done."), said("user", "And now?")]):
            request = ChatRequest([*messages, *more], TOOLS if tools else ())
            prompt = builders[name].render(request)
            for text in ("Begin here.", answer["content"] or "", *(m["content"] for m in more)):
                assert text in prompt, kind
            # These templates write null so themselves; it is read as null again.
            if kind not in NULLS or not name.startswith(NONE_FOR_NULL):
                assert "None" not in prompt.rpartition("Begin here.")[2], kind


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_call_in_the_history_reads_back_as_it_was(
    builders: dict[str, RequestBuilder], name: str
) -> None:
    made = builders[name]
    if made.dialect.calls is None:
        pytest.skip("the dialect has no calls")
    for kind, answer in ANSWERS.items():
        if "tool_calls" not in answer:
            continue
        if name == "minimax-m3" and kind == "arguments: nested":
            continue  # its elements have no types but the schema's, which says none of inner values
        prompt = made.render(ChatRequest(after(answer), TOOLS))
        wanted = [
            (each["function"]["name"], json.loads(each["function"]["arguments"]))
            for each in answer["tool_calls"]
        ]
        if name == "minimax-m3":  # its template leaves out what is null
            wanted = [(f, {k: v for k, v in given.items() if v is not None}) for f, given in wanted]
        assert calls_in(made, prompt) == wanted, (kind, prompt.rpartition("Begin here.")[2])
