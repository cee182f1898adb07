"""Every family's transcripts say the same however they come, and nothing that comes is an error."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transcripts import TOOLS, TRANSCRIPTS, Transcript, merged

from dure.chat.dialects import Event, StreamParser


def read(transcript: Transcript, pieces: Sequence[str]) -> tuple[list[Event], int]:
    """The merged events of a text in pieces, and how many calls could not be read."""
    automaton = StreamParser(
        transcript.dialect,
        tools=TOOLS if transcript.tools else {},
        starts_in_reasoning=transcript.starts_in_reasoning,
        make_id=lambda: "id",
    )
    events = [event for piece in pieces for event in automaton.push(piece)]
    return merged([*events, *automaton.finish()]), automaton.unparsed


def label(transcript: Transcript) -> str:
    return f"{transcript.dialect.name}: {transcript.name}"


each = pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=label)


@each
def test_a_transcript_says_what_it_should(transcript: Transcript) -> None:
    events, unparsed = read(transcript, [transcript.text])
    assert transcript.events == events
    assert transcript.unparsed == unparsed


@each
def test_it_says_the_same_cut_at_any_point(transcript: Transcript) -> None:
    text = transcript.text
    for cut in range(len(text) + 1):
        assert transcript.events == read(transcript, [text[:cut], text[cut:]])[0], text[:cut]
    assert transcript.events == read(transcript, list(text))[0]


@each
def test_arguments_that_ended_are_json(transcript: Transcript) -> None:
    arguments: dict[int, str] = {}
    for event in read(transcript, [transcript.text])[0]:
        if event.kind == "arguments":
            arguments[event.index] = event.text
    for text in arguments.values():
        assert text.encode()  # no half of a surrogate pair
    if not transcript.unparsed:
        assert all(isinstance(json.loads(text), dict) for text in arguments.values())


@st.composite
def mangled(draw: st.DrawFn) -> tuple[Transcript, list[str]]:
    """A transcript of one family with pieces of others put in and taken out, in any pieces."""
    transcript = draw(st.sampled_from(TRANSCRIPTS))
    other = draw(st.sampled_from(TRANSCRIPTS)).text
    text = transcript.text
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 30)))
        put = draw(st.sampled_from(["", *'"{}\\\n<>', "\\u12", "é\udc80", "1e9"]))
        begin = draw(st.integers(0, len(other)))
        text = text[:start] + put + other[begin : begin + draw(st.integers(0, 20))] + text[stop:]
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    ends = [*cuts, len(text)]
    return transcript, [text[a:b] for a, b in zip([0, *cuts], ends, strict=True)]


@given(mangled())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_is_an_error_and_how_it_is_cut_never_matters(
    case: tuple[Transcript, list[str]],
) -> None:
    transcript, pieces = case
    whole, in_pieces = read(transcript, ["".join(pieces)]), read(transcript, pieces)
    assert whole == in_pieces
    began = [event for event in whole[0] if event.kind == "call"]
    ended = [event for event in whole[0] if event.kind == "call_end"]
    assert [event.index for event in began] == [event.index for event in ended]


def test_brackets_in_thousands_are_content() -> None:
    transcript = next(each for each in TRANSCRIPTS if each.name == "one call")
    text = '<tool_call>{"name": "now", "arguments": ' + '{"a": ' * 10_000
    events, unparsed = read(transcript, [text])
    assert unparsed == 1
    assert "".join(event.text for event in events).endswith('{"a": ' * 9000 + '{"a":')
