"""Anthropic's messages: bodies as chats, and answers as blocks and events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from said import ASKED, CACHED, call, chunks, text, thought

from dure.chat.request import Format, Thinking, ToolChoice
from dure.errors import InvalidRequestError
from dure.server.anthropic.messages import MessageWriter
from dure.server.anthropic.request import chat_request, sampling
from dure.server.anthropic.schemas import MessagesBody

WEATHER = {"name": "weather", "description": "Now.", "input_schema": {"type": "object"}}


def body(*messages: dict[str, Any], **more: Any) -> MessagesBody:
    listed = list(messages) or [{"role": "user", "content": "Hi"}]
    return MessagesBody.model_validate({"model": "m", "max_tokens": 9, "messages": listed, **more})


def said(*messages: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [dict(message) for message in chat_request(body(*messages, **more)).messages]


def test_a_turn_of_thoughts_text_and_a_call_is_one_message() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Zürich"}},
    ]
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "3°"}],
    }
    messages = said(
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    )
    assert messages[1] == {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {
                "id": "t1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
            }
        ],
    }
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "3°"},
        {"role": "user", "content": "And?"},
    ]


def test_a_failed_tool_says_so_to_the_model() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    failed = {"type": "tool_result", "tool_use_id": "t1", "content": "no net", "is_error": True}
    messages = said({"role": "assistant", "content": [use]}, {"role": "user", "content": [failed]})
    assert messages[-1]["content"] == "Error: no net"


def test_turns_of_the_user_that_follow_each_other_are_one() -> None:
    messages = said({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    assert messages == [{"role": "user", "content": "a\n\nb"}]


def test_a_billing_header_that_changes_each_time_leaves_the_prompt_as_it_was() -> None:
    def prompt(number: int) -> list[dict[str, Any]]:
        header = f"x-anthropic-billing-header: cc_version=2.1; cch={number:05x};"
        system = [
            {"type": "text", "text": header},
            {"type": "text", "text": "You code.", "cache_control": {"type": "ephemeral"}},
        ]
        return said(system=system)

    assert prompt(1) == prompt(2)
    assert prompt(1)[0] == {"role": "system", "content": "You code."}


def test_the_assistants_last_message_is_gone_on_from() -> None:
    request = chat_request(
        body({"role": "user", "content": "Count"}, {"role": "assistant", "content": "One,"})
    )
    assert request.continue_final


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Thinking("off")),
        ({"thinking": {"type": "disabled"}}, Thinking("off")),
        ({"thinking": {"type": "adaptive"}}, Thinking()),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, Thinking("on", budget=2048)),
        ({"output_config": {"effort": "low"}}, Thinking(effort="low")),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}},
            Thinking(effort="max"),
        ),
    ],
)
def test_thinking_is_off_unless_asked_for(more: dict[str, Any], expected: Thinking) -> None:
    assert chat_request(body(**more)).thinking == expected


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "tool", "name": "weather"}, ToolChoice("named", "weather"), True),
        ({"type": "none"}, ToolChoice("none"), True),
    ],
)
def test_every_tool_choice_has_its_name(
    choice: dict[str, Any], expected: ToolChoice, parallel: bool
) -> None:
    request = chat_request(body(tools=[WEATHER], tool_choice=choice))
    assert request.tool_choice == expected
    assert request.parallel_tool_calls is parallel
    function = request.tools[0]["function"]
    assert function["name"] == "weather"
    assert function["parameters"] == {"type": "object"}


def test_both_places_for_a_format_are_read() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "schema": schema}
    expected = Format("json_schema", schema)
    assert chat_request(body(output_format=wanted)).format == expected
    assert chat_request(body(output_config={"format": wanted})).format == expected


def test_sampling_keeps_what_is_given_and_leaves_the_rest_to_the_model() -> None:
    params = sampling(body(stop_sequences=["END"], temperature=0.5, top_k=3))
    assert (params.max_tokens, params.temperature, params.top_k) == (9, 0.5, 3)
    assert tuple(params.stop) == ("END",)
    assert params.top_p is None


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"mcp_servers": [{"type": "url", "url": "http://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"stop": ["x"]}, "stop_sequences"),
        ({"seed": 7}, "seed"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"thinking": {"type": "deep"}}, "deep"),
        ({"tool_choice": {"type": "maybe"}}, "maybe"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
    ],
)
def test_what_is_not_done_is_refused_by_name(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        chat_request(body(**bad))


def test_fields_that_change_no_answer_are_tolerated() -> None:
    chat_request(
        body(
            metadata={"user_id": "u"},
            service_tier="auto",
            context_management={"edits": []},
            betas=["x"],
            mcp_servers=[],
        )
    )


def written(answer: list[Any], **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a stream, and the whole message."""
    writer = MessageWriter("m", prompt_tokens=ASKED, **more)
    events = [*writer.start(), *(event for chunk in answer for event in writer.push(chunk))]
    return events, writer.message()


def test_events_come_in_anthropics_order() -> None:
    events, _ = written(chunks([*thought("Hmm"), *text("Hey"), *call("weather", '{"a":1}')]))
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == [0, 1, 2]


def test_deltas_join_to_the_whole_message() -> None:
    said_ = [*thought("Let me see."), *text("It is "), *call("weather", '{"city": "Bern"}')]
    events, message = written(chunks(said_))
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    joined = {
        kind: "".join(delta[field] for delta in deltas if delta["type"] == kind)
        for kind, field in {
            "thinking_delta": "thinking",
            "signature_delta": "signature",
            "text_delta": "text",
            "input_json_delta": "partial_json",
        }.items()
    }
    first, second, third = message["content"]
    assert first["thinking"] == joined["thinking_delta"] == "Let me see."
    assert first["signature"] == joined["signature_delta"] != ""
    assert second["text"] == joined["text_delta"] == "It is "
    assert third["input"] == json.loads(joined["input_json_delta"]) == {"city": "Bern"}
    assert message["stop_reason"] == "tool_use"


def test_usage_leaves_cached_tokens_out_of_the_input() -> None:
    events, message = written(chunks(text("Hello")))
    assert message["usage"] == {
        "input_tokens": ASKED - CACHED,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    assert events[-2]["usage"] == message["usage"]


@pytest.mark.parametrize(
    ("answer", "reason", "sequence"),
    [
        (chunks(text("a")), "end_turn", None),
        (chunks(text("a"), reason="length"), "max_tokens", None),
        (chunks(text("a"), stopped="END"), "stop_sequence", "END"),
        (chunks(call("f", "{}")), "tool_use", None),
    ],
)
def test_why_it_ended_is_said(answer: list[Any], reason: str, sequence: str | None) -> None:
    events, message = written(answer, stops=("END",))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_call_that_was_cut_short_is_text_and_no_call() -> None:
    _, message = written(chunks(call("weather", '{"city": "Be', whole=False), reason="length"))
    assert message["content"] == [
        {"type": "text", "text": 'weather({"city": "Be', "citations": None}
    ]


def test_line_breaks_between_thoughts_and_a_call_are_no_block() -> None:
    _, message = written(chunks([*thought("Hm"), *text("\n\n"), *call("f", "{}")]))
    assert [block["type"] for block in message["content"]] == ["thinking", "tool_use"]
