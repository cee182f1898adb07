"""Answers as tests want them: chunks whose events say what a model is to have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dure.chat.dialects import Event
from dure.chat.output import Chunk, Completion
from dure.chat.usage import Usage

ASKED, CACHED = 30, 20


def thought(text: str) -> list[Event]:
    return [Event("reasoning", piece) for piece in _pieces(text)]


def text(text: str) -> list[Event]:
    return [Event("content", piece) for piece in _pieces(text)]


def call(name: str, arguments: str, index: int = 0, *, whole: bool = True) -> list[Event]:
    begun = Event("call", index=index, id=f"call_{index}", name=name)
    pieces = [Event("arguments", piece, index=index) for piece in _pieces(arguments)]
    return [begun, *pieces, *([Event("call_end", index=index)] if whole else [])]


def chunks(events: Sequence[Event], *, reason: str = "stop", **completion: Any) -> list[Chunk]:
    """A chunk an event, and a last one without any that has the completion."""
    made = [Chunk(event.text, 7, events=(event,)) for event in events]
    done = Completion(
        text="".join(event.text for event in events),
        token_ids=tuple(range(len(events) + 1)),
        logprobs=None,
        finish_reason=reason,
        usage=Usage(
            prompt_tokens=ASKED,
            cached_tokens=CACHED,
            output_tokens=len(events) + 1,
            reasoning_tokens=sum(event.kind == "reasoning" for event in events),
            prefill_s=0.5,
            decode_s=0.25,
        ),
        content="".join(event.text for event in events if event.kind == "content"),
        reasoning="".join(event.text for event in events if event.kind == "reasoning"),
        tool_calls=_calls(events),
    )
    return [*made, Chunk("", 8, replace(done, **completion))]


def _pieces(text: str) -> list[str]:
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def _calls(events: Sequence[Event]) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = []
    for event in events:
        if event.kind == "call":
            function = {"name": event.name, "arguments": ""}
            found.append({"id": event.id, "type": "function", "function": function})
        elif event.kind == "arguments":
            found[-1]["function"]["arguments"] += event.text
    return tuple(found)
