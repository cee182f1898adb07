"""Thinking on, off or capped: by the request, by words in messages, and what comes back of it."""

from __future__ import annotations

from typing import Any

import pytest
from chat_requests import ASK, HERMES_CALL, TOOLS, MakeLLM, ask, prompt
from fake_model import ByteTokenizer

from dure.chat.messages import said_thinking
from dure.chat.request import ChatRequest, Thinking


@pytest.mark.parametrize(
    "name, thinking, ending",
    [
        ("qwen3", Thinking(), "assistant\n"),
        ("qwen3", Thinking("on"), "assistant\n"),
        ("qwen3", Thinking("off"), "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3", Thinking(effort="none"), "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3.5", Thinking(), "assistant\n<think>\n"),
        ("deepseek-v3.1", Thinking(), "<｜Assistant｜><think></think>"),
        ("deepseek-v3.1", Thinking(effort="low"), "<｜Assistant｜><think>"),
        ("deepseek-v4", Thinking("off"), "<｜Assistant｜></think>"),
        ("deepseek-v4", Thinking(budget=9), "<｜Assistant｜><think>"),
        ("minimax-m2", Thinking(), "]~b]ai\n<think>\n"),
        # No switch: the thoughts end before they begin.
        ("minimax-m2", Thinking("off"), "]~b]ai\n<think>\n</think>\n\n"),
        ("deepseek-r1", Thinking(budget=0), "<｜Assistant｜><think>\n</think>\n\n"),
        (
            "hunyuan-3",
            Thinking(),
            "<｜hy_Assistant:opensource｜><think:opensource></think:opensource>",
        ),
        ("hunyuan-3", Thinking(effort="medium"), "<｜hy_Assistant:opensource｜><think:opensource>"),
        ("minimax-m3", Thinking(), "]~b]ai\n"),
        ("minimax-m3", Thinking("on"), "]~b]ai\n<mm:think>"),
        ("minimax-m3", Thinking("off"), "]~b]ai\n</mm:think>"),
        ("hunyuan-7b", Thinking("off"), "<|extra_0|><think>\n\n</think>\n"),
        ("ernie-4.5-thinking", Thinking("off"), "<think>\n</think>\n\n\n"),
        ("qwen2.5", Thinking("on", "high", 50), "assistant\n"),
    ],
)
def test_a_wish_about_thinking_reaches_the_template(
    make_llm: MakeLLM, name: str, thinking: Thinking, ending: str
) -> None:
    assert prompt(make_llm(name), ChatRequest(ASK, thinking=thinking)).endswith(ending)


def test_template_variables_of_the_request_come_last(make_llm: MakeLLM) -> None:
    request = ChatRequest(
        ASK, thinking=Thinking("on"), template_variables={"enable_thinking": False}
    )
    assert prompt(make_llm(), request).endswith("</think>\n\n")


def ponder(text: str) -> str | None:
    """Thinks for ever; once made to stop, answers 42."""
    said = text.rpartition("assistant\n")[2]
    if "</think>" in said:
        return {"": "4", "4": "2"}.get(said.rpartition("</think>\n\n")[2])
    opening = "<think>"
    return opening[len(said)] if len(said) < len(opening) else "h"


@pytest.mark.parametrize("max_tokens", [30, 60])
def test_a_cap_leaves_tokens_for_the_answer(make_llm: MakeLLM, max_tokens: int) -> None:
    request = ChatRequest(ASK, thinking=Thinking(budget=1000))
    completion = ask(make_llm(words=ponder), request, max_tokens=max_tokens)
    assert (completion.content, completion.finish_reason) == ("42", "stop")
    assert len(completion.token_ids) <= max_tokens


def test_thoughts_can_be_ended_while_they_are_thought(make_llm: MakeLLM) -> None:
    llm = make_llm(words=ponder)
    stream = llm.stream(ChatRequest(ASK))
    for _ in range(20):
        next(stream)
    [answer] = llm.driver._answers.values()
    written = len(answer.request.output_ids)  # a step may have brought more than were read
    answer.end_thinking()
    completion = list(stream)[-1].completion
    assert completion is not None
    thoughts = "h" * (written - len("<think>"))
    assert (completion.content, completion.reasoning) == ("42", thoughts)


def test_thoughts_that_a_client_dropped_come_back_by_the_calls_id(make_llm: MakeLLM) -> None:
    words = f"<think>\nOslo, then.\n</think>\n\n{HERMES_CALL}"
    llm = make_llm(words=words)
    first = llm.prepare(ChatRequest(ASK, TOOLS), cache_salt="a")
    completion = llm.driver.answer([first])[0]
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": list(completion.tool_calls)},
        {"role": "tool", "tool_call_id": completion.tool_calls[0]["id"], "content": "cold"},
    ]
    later = llm.prepare(ChatRequest(history, TOOLS), cache_salt="a")
    text = ByteTokenizer().decode(later.token_ids)
    assert "<think>\nOslo, then.\n</think>\n\n" + HERMES_CALL in text
    # The whole of what was said comes from the cache again.
    assert llm.driver.answer([later])[0].cached_tokens >= len(first.token_ids) + len(words)
    other = llm.prepare(ChatRequest(history, TOOLS), cache_salt="b")
    assert "Oslo, then." not in ByteTokenizer().decode(other.token_ids)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_are_accepted_under_either_name(make_llm: MakeLLM, name: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history = [
        *ASK,
        {"role": "assistant", "content": "", name: "What time?", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    assert "<think>\nWhat time?\n</think>" in prompt(make_llm(), ChatRequest(history, TOOLS))


@pytest.mark.parametrize(
    "content, ending",
    [
        ("How? /no_think", "<think>\n\n</think>\n\n"),
        ("/no_think How?", "<think>\n\n</think>\n\n"),
        ([{"type": "text", "text": "How? /no_think"}], "<think>\n\n</think>\n\n"),
        ("How? /think", "assistant\n"),
        ("What does /no_think do?", "assistant\n"),
    ],
)
def test_a_word_in_a_message_turns_thinking_off(
    make_llm: MakeLLM, content: Any, ending: str
) -> None:
    messages = [{"role": "user", "content": content}]
    assert prompt(make_llm(), ChatRequest(messages)).endswith(ending)


def test_the_newest_word_about_thinking_counts_and_the_requests_own_above_it(
    make_llm: MakeLLM,
) -> None:
    llm = make_llm("deepseek-v3.1")
    messages = [
        {"role": "system", "content": "Be brief. /no_think"},
        {"role": "user", "content": "Hi /think"},
        {"role": "assistant", "content": "Hi. /no_think"},
        *ASK,
    ]
    assert prompt(llm, ChatRequest(messages)).endswith("<｜Assistant｜><think>")
    off = ChatRequest(messages, thinking=Thinking("off"))
    assert prompt(llm, off).endswith("</think>")


def test_thoughts_that_were_not_wanted_end_as_they_begin(make_llm: MakeLLM) -> None:
    # Nothing in openPangu's template stops a model that does not heed its word.
    words = "[unused16]Hm.[unused17]42"
    llm = make_llm("openpangu-embedded", words=words)
    request = ChatRequest(ASK, thinking=Thinking("off"))
    assert prompt(llm, request).endswith("weather? /no_think[unused10][unused9]助手：")
    assert llm.prepare(request).reading.budget == 0


@pytest.mark.parametrize("text", ["/no_think Hi", "Hi /no_think", "/no_think", "  Hi\n/no_think  "])
@pytest.mark.parametrize("pad", ["", "x" * 1000])
def test_a_switch_is_found_at_either_end_of_a_text_of_any_length(text: str, pad: str) -> None:
    assert said_thinking([{"role": "user", "content": text.replace("Hi", f"Hi{pad}i")}]) is False


def test_a_switch_in_the_midst_of_a_text_is_none() -> None:
    for text in ("x" * 50 + " /no_think y" * 9, "x" * 18 + "/no_think" + "y" * 18, "a/no_think"):
        assert said_thinking([{"role": "user", "content": text}]) is None
