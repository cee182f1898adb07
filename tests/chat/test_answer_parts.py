"""From an answer to its parts: thoughts, content and calls, and where a stop string ends it."""

from __future__ import annotations

from typing import Any

import pytest
from chat_requests import ASK, HERMES_CALL, TOOLS, MakeLLM, ask

from dure import SamplingParams
from dure.chat.request import ChatRequest, ToolChoice


def test_an_answer_says_its_thoughts_content_and_calls(make_llm: MakeLLM) -> None:
    words = f"<think>\nOslo, then.\n</think>\n\nLet me see.\n{HERMES_CALL}"
    chunks = list(make_llm(words=words).stream(ChatRequest(ASK, TOOLS)))
    completion = chunks[-1].completion
    assert completion is not None
    assert (completion.reasoning, completion.content) == ("Oslo, then.", "Let me see.")
    [call] = completion.tool_calls
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert call["id"].startswith("call_")
    assert completion.text == words
    assert completion.reasoning_tokens == len("\nOslo, then.\n</think")
    events = [event for chunk in chunks for event in chunk.events]
    assert "".join(event.text for event in events if event.kind == "reasoning") == "Oslo, then."
    kinds = [event.kind for event in events if event.kind in ("call", "call_end")]
    assert kinds == ["call", "call_end"]
    # The arguments come with their tokens, and not only at the end.
    assert sum(event.kind == "arguments" for event in events) > 5


def test_a_plain_completion_is_all_content(make_llm: MakeLLM) -> None:
    [completion] = make_llm(
        words=lambda text: "<think>x"[len(text) - 1 : len(text)] or None
    ).generate("a")
    assert completion.text == completion.content == "<think>x"


def test_a_chunk_has_its_tokens_logprobs(make_llm: MakeLLM) -> None:
    chunks = list(make_llm(words="abc").stream(ChatRequest(ASK), SamplingParams(logprobs=1)))
    assert [chunk.logprobs.token_id for chunk in chunks if chunk.logprobs] == [
        chunk.token_id for chunk in chunks
    ]


def test_only_one_call_where_no_more_are_wanted(make_llm: MakeLLM) -> None:
    llm = make_llm(words=f"{HERMES_CALL}\n{HERMES_CALL}")
    assert len(ask(llm, ChatRequest(ASK, TOOLS)).tool_calls) == 2
    one = ask(llm, ChatRequest(ASK, TOOLS, parallel_tool_calls=False))
    assert (len(one.tool_calls), one.finish_reason) == (1, "stop")


def test_no_call_is_read_where_none_may_be(make_llm: MakeLLM) -> None:
    llm = make_llm(words=HERMES_CALL)
    for request in (ChatRequest(ASK), ChatRequest(ASK, TOOLS, ToolChoice("none"))):
        completion = ask(llm, request)
        assert (completion.content, completion.tool_calls) == (HERMES_CALL, ())


def test_a_broken_call_is_content_and_counted(make_llm: MakeLLM) -> None:
    completion = ask(make_llm(words="<tool_call>weather</tool_call>"), ChatRequest(ASK, TOOLS))
    assert completion.content == "<tool_call>weather</tool_call>"
    assert (completion.tool_calls, completion.unparsed_calls) == ((), 1)


BLOCK = '```json\n{"name": "now", "arguments": {}}\n```'


def test_a_call_in_a_block_of_code_is_one_unless_its_schema_must_be_kept_to(
    make_llm: MakeLLM,
) -> None:
    llm = make_llm("qwen2.5", words=BLOCK)
    completion = ask(llm, ChatRequest(ASK, TOOLS))
    [call] = completion.tool_calls
    assert (call["function"], completion.content) == ({"name": "now", "arguments": "{}"}, "")
    for request in (ChatRequest(ASK), ChatRequest(ASK, TOOLS, ToolChoice("none"))):
        assert ask(llm, request).content == BLOCK
    function = {"name": "now", "strict": True, "parameters": {"type": "object"}}
    strict = [{"type": "function", "function": function}]
    assert (
        make_llm("qwen2.5").prepare(ChatRequest(ASK, strict)).reading.dialect.fallback_parser
        is None
    )


def test_only_one_call_in_blocks_where_no_more_are_wanted(make_llm: MakeLLM) -> None:
    llm = make_llm("qwen2.5", words=f"{BLOCK}\n{BLOCK}")
    assert len(ask(llm, ChatRequest(ASK, TOOLS)).tool_calls) == 2
    one = ask(llm, ChatRequest(ASK, TOOLS, parallel_tool_calls=False))
    assert (len(one.tool_calls), one.content) == (1, "")


# --- stop strings --------------------------------------------------------------------------------


def test_a_stop_string_is_looked_for_in_the_content_only(make_llm: MakeLLM) -> None:
    words = f"<think>\nOne. Two STOP three.\n</think>\n\nLet me STOP here.\n{HERMES_CALL}"
    completion = ask(make_llm(words=words), ChatRequest(ASK, TOOLS), stop=["STOP"])
    assert completion.reasoning == "One. Two STOP three."
    assert (completion.content, completion.tool_calls) == ("Let me ", ())
    assert (completion.finish_reason, completion.stopped) == ("stop", "STOP")
    assert completion.text == words[: words.rindex("STOP")]


@pytest.mark.parametrize("stop", ["Oslo", '"', "}", "city", "get_", "</think>", "\n"])
def test_a_stop_string_within_reasoning_or_a_call_ends_nothing(
    make_llm: MakeLLM, stop: str
) -> None:
    words = f"<think>\nOslo, then.\n</think>\n\n{HERMES_CALL}"
    completion = ask(make_llm(words=words), ChatRequest(ASK, TOOLS), stop=[stop])
    [call] = completion.tool_calls
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert (completion.reasoning, completion.stopped) == ("Oslo, then.", None)
    assert completion.text == words


def test_a_stop_string_does_not_go_on_behind_a_call(make_llm: MakeLLM) -> None:
    words = f"I see EN{HERMES_CALL}D now"
    completion = ask(make_llm(words=words), ChatRequest(ASK, TOOLS), stop=["END"])
    assert (completion.content, completion.stopped) == ("I see END now", None)
    assert len(completion.tool_calls) == 1


@pytest.mark.parametrize("tools", [(), TOOLS])
def test_streamed_text_never_shows_what_a_stop_string_cuts_off(
    make_llm: MakeLLM, tools: Any
) -> None:
    words = "<think>\nEND\n</think>\n\nIt is EN route, at the END of it"
    chunks = list(
        make_llm(words=words).stream(ChatRequest(ASK, tools), SamplingParams(stop=["END"]))
    )
    completion = chunks[-1].completion
    assert completion is not None
    assert completion.content == "It is EN route, at the "
    events = [event for chunk in chunks for event in chunk.events]
    assert "".join(event.text for event in events if event.kind == "content") == completion.content
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert completion.text == words[: words.rindex("END")]
