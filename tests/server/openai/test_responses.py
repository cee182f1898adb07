"""OpenAI's responses: items as a chat, answers as numbered events, and what is kept of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from said import ASKED, CACHED, call, chunks, text, thought

from dure.chat.request import Format, Thinking, ToolChoice
from dure.errors import InvalidRequestError
from dure.server.errors import HTTPError
from dure.server.openai.responses_request import chat_request, sampling, seal
from dure.server.openai.responses_schemas import ResponsesBody
from dure.server.openai.responses_writer import ResponseWriter
from dure.server.serving.response_store import Store, StoredResponse

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
TIME = {"type": "function", "name": "time", "parameters": {"type": "object"}}


def body(given: Any = "Hi", **more: Any) -> ResponsesBody:
    return ResponsesBody.model_validate({"model": "m", "input": given, **more})


def said(given: Any, **more: Any) -> list[dict[str, Any]]:
    return [dict(message) for message in chat_request(body(given, **more)).messages]


def test_a_text_is_a_message_and_instructions_come_first() -> None:
    assert said("Hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_what_the_model_thought_said_and_called_is_one_message() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "3°"},
        {"type": "function_call_output", "call_id": "c2", "output": "noon"},
    ]
    user, assistant, first, second = said(items)
    assert user == {"role": "user", "content": "Weather?"}
    assert (assistant["content"], assistant["reasoning_content"]) == ("I look.", "Hm.")
    assert [each["function"]["name"] for each in assistant["tool_calls"]] == ["weather", "time"]
    assert first == {"role": "tool", "tool_call_id": "c1", "content": "3°"}
    assert second["content"] == "noon"


def test_thoughts_come_back_from_what_only_their_client_kept() -> None:
    item = {"type": "reasoning", "summary": [], "encrypted_content": seal("Früh.")}
    assert said([item, {"role": "user", "content": "?"}])[0]["reasoning_content"] == "Früh."
    with pytest.raises(InvalidRequestError, match=r"input\[0\]\.encrypted_content"):
        said([{**item, "encrypted_content": "dure:%%%"}])


def test_settings_take_our_names() -> None:
    schema = {"type": "object"}
    wanted = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    request = chat_request(
        body(
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "weather"},
            parallel_tool_calls=False,
            reasoning={"effort": "low", "summary": "auto"},
            text=wanted,
        )
    )
    assert request.tool_choice == ToolChoice("named", "weather")
    assert request.parallel_tool_calls is False
    assert request.thinking == Thinking(effort="low")
    assert request.format == Format("json_schema", schema)
    assert request.tools[0]["function"]["strict"] is True
    params = sampling(body(max_output_tokens=7, temperature=0.0))
    assert (params.max_tokens, params.temperature, params.top_p) == (7, 0.0, None)


def test_of_allowed_tools_the_model_sees_no_others() -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "time"}],
    }
    request = chat_request(body(tools=[WEATHER, TIME], tool_choice=allowed))
    assert [tool["function"]["name"] for tool in request.tools] == ["time"]
    assert request.tool_choice == ToolChoice("required")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "web_search"),
        ({"tools": [{"type": "custom", "name": "patch"}], "tool_choice": "required"}, "custom"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"response_format": {"type": "json_object"}}, "text.format"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"max_tokens": 5}, "max_output_tokens"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"text": {"format": {"type": "xml"}}}, "xml"),
    ],
)
def test_what_is_not_done_is_refused_by_name(bad: dict[str, Any], named: str) -> None:
    asked = body(**{"given": bad.pop("input", "Hi"), **bad})
    with pytest.raises(InvalidRequestError, match=named):
        chat_request(asked)
        sampling(asked)


def test_fields_that_change_no_answer_are_tolerated() -> None:
    chat_request(
        body(
            background=False,
            service_tier="auto",
            prompt_cache_key="k",
            safety_identifier="s",
            max_tool_calls=3,
            truncation="disabled",
            include=["reasoning.encrypted_content"],
        )
    )


def written(answer: list[Any], **more: Any) -> tuple[list[dict[str, Any]], ResponseWriter]:
    writer = ResponseWriter(body(**more), "m", stored=True)
    start = json.loads(json.dumps(list(writer.start())))
    return [*start, *(event for chunk in answer for event in writer.push(chunk))], writer


def test_events_are_numbered_and_in_openais_order() -> None:
    answer = chunks([*thought("Hm"), *text("Hey"), *call("weather", "{}")])
    events, _ = written(answer)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []


def test_the_last_event_has_the_whole_response() -> None:
    events, writer = written(chunks([*thought("Let me see."), *text("It is cold.")]))
    response = events[-1]["response"]
    assert response == writer.response
    assert response["status"] == "completed"
    thoughts, message = response["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert thoughts["encrypted_content"] is None
    assert message["content"][0]["text"] == "It is cold."
    assert response["usage"]["input_tokens"] == ASKED
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == CACHED
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 4
    assert writer.message() == {
        "role": "assistant",
        "content": "It is cold.",
        "reasoning_content": "Let me see.",
    }


def test_an_answer_cut_short_is_incomplete_and_says_why() -> None:
    events, _ = written(chunks(text("It is"), reason="length"))
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"


def test_thoughts_are_sealed_if_the_client_asks() -> None:
    events, _ = written(
        chunks([*thought("Hm."), *text("x")]), include=["reasoning.encrypted_content"]
    )
    sealed = events[-1]["response"]["output"][0]["encrypted_content"]
    assert sealed == seal("Hm.")


def test_a_failure_in_midstream_is_an_event() -> None:
    writer = ResponseWriter(body(), "m", stored=True)
    events = [*writer.start(), *writer.push(chunks(text("a"))[0]), *writer.fail("It broke.")]
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "It broke."}


def kept(identity: str, tenant: str = "a", words: str = "") -> StoredResponse:
    return StoredResponse(tenant, {"id": identity, "words": words})


def test_a_store_gives_each_tenant_its_own_alone() -> None:
    store = Store(most=4, most_bytes=10_000)
    store.keep(kept("r1", "a"))
    assert store.find("r1", "a").id == "r1"
    with pytest.raises(HTTPError) as caught:
        store.find("r1", "b")
    assert caught.value.status == 404
    store.drop(store.find("r1", "a"))
    assert len(store) == 0


def test_a_store_forgets_what_was_used_longest_ago() -> None:
    store = Store(most=2, most_bytes=10_000)
    for identity in ("r1", "r2"):
        store.keep(kept(identity))
    store.find("r1", "a")
    store.keep(kept("r3"))
    assert store.find("r1", "a")
    with pytest.raises(HTTPError):
        store.find("r2", "a")


def test_a_store_holds_no_more_bytes_than_it_may() -> None:
    store = Store(most=100, most_bytes=1000)
    for number in range(10):
        store.keep(kept(f"r{number}", words="x" * 300))
    assert 1 <= len(store) <= 3
    store.keep(kept("huge", words="x" * 2000))
    assert len(store) == 0
