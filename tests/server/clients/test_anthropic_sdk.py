"""The anthropic package against a running server: its own types read every answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Now.", "input_schema": CITY}
THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def anthropic() -> Any:
    """The package: seconds to import, and one of the processes that share the tests has to."""
    return pytest.importorskip("anthropic", minversion="0")


@pytest.fixture(scope="module")
def client(anthropic: Any, scripted: Any) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=scripted.url, api_key=scripted.key, max_retries=0) as made:
        yield made


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def strictly(value: Any) -> None:
    """Nothing, or an error: what came is of the SDK's own type, field by field."""
    type(value).model_validate_json(value.model_dump_json(by_alias=True, warnings="error"))


def test_a_message(client: Any, scripted: Any) -> None:
    made = client.messages.create(model=scripted.model, max_tokens=99, messages=asked("Hello"))
    strictly(made)
    assert [block.text for block in made.content] == ["Hello, you. Fine day."]
    assert made.stop_reason == "end_turn"
    assert made.usage.output_tokens > 0


def test_a_name_of_anthropics_is_the_model_served(client: Any, scripted: Any) -> None:
    made = client.messages.create(
        model="claude-of-tomorrow", max_tokens=99, messages=asked("Hello")
    )
    assert made.model == scripted.model


def test_thoughts_are_a_block_of_their_own_and_only_if_asked_for(
    client: Any, scripted: Any
) -> None:
    asked_for = {"model": scripted.model, "max_tokens": 2048, "messages": asked("Think")}
    made = client.messages.create(**asked_for, thinking=THINKING)
    strictly(made)
    thought, said = made.content
    assert (thought.type, thought.thinking.strip()) == ("thinking", "They want a number.")
    assert thought.signature
    assert said.text == "It is 4."
    without = client.messages.create(**asked_for)
    assert [block.text for block in without.content] == ["It is 4."]


def test_a_stream_is_joined_by_the_sdk_to_what_the_whole_would_be(
    client: Any, scripted: Any
) -> None:
    asked_for = {
        "model": scripted.model,
        "max_tokens": 2048,
        "messages": asked("Think"),
        "thinking": THINKING,
    }
    whole = client.messages.create(**asked_for)
    with client.messages.stream(**asked_for) as stream:
        kinds = [event.type for event in stream]
        joined = stream.get_final_message()
    strictly(joined)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert [block.model_dump() for block in joined.content] == [
        block.model_dump() for block in whole.content
    ]
    assert joined.stop_reason == whole.stop_reason
    assert joined.usage.output_tokens == whole.usage.output_tokens
    assert joined.usage.cache_read_input_tokens > 0
    total = joined.usage.input_tokens + joined.usage.cache_read_input_tokens
    assert total == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_tools_are_used_and_their_results_answered(client: Any, scripted: Any) -> None:
    asked_for: dict[str, Any] = {"model": scripted.model, "max_tokens": 500, "tools": [WEATHER]}
    messages: list[Any] = asked("Weather twice")
    with client.messages.stream(**asked_for, messages=messages) as stream:
        made = stream.get_final_message()
    strictly(made)
    assert made.stop_reason == "tool_use"
    uses = [block for block in made.content if block.type == "tool_use"]
    assert [use.input for use in uses] == [{"city": "Zurich"}, {"city": "Bern"}]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "3"} for use in uses]
    messages += [
        {"role": "assistant", "content": made.content},
        {"role": "user", "content": results},
    ]
    answered = client.messages.create(**asked_for, messages=messages)
    assert answered.content[0].text == "It is 3 degrees."


def test_a_tool_can_be_demanded(client: Any, scripted: Any) -> None:
    made = client.messages.create(
        model=scripted.model,
        max_tokens=500,
        messages=asked("Weather"),
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    )
    assert [block.name for block in made.content] == ["weather"]


def test_a_stop_sequence_ends_the_message_and_is_named(client: Any, scripted: Any) -> None:
    made = client.messages.create(
        model=scripted.model, max_tokens=99, messages=asked("Hello"), stop_sequences=[". Fine"]
    )
    assert made.content[0].text == "Hello, you"
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", ". Fine")


def test_max_tokens_is_a_ceiling_that_may_be_above_the_context(client: Any, scripted: Any) -> None:
    made = client.messages.create(
        model=scripted.model, max_tokens=1_000_000, messages=asked("Hello"), timeout=60
    )
    assert made.stop_reason == "end_turn"
    short = client.messages.create(model=scripted.model, max_tokens=2, messages=asked("Hello"))
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)


def test_tokens_are_counted_as_they_are_used(client: Any, scripted: Any) -> None:
    counted = client.messages.count_tokens(
        model=scripted.model, messages=asked("Hello"), tools=[WEATHER], system="Be brief."
    )
    made = client.messages.create(
        model=scripted.model,
        max_tokens=99,
        messages=asked("Hello"),
        tools=[WEATHER],
        system="Be brief.",
    )
    used = made.usage.input_tokens + made.usage.cache_read_input_tokens
    assert counted.input_tokens == used


def test_the_beta_path_is_the_same(client: Any, scripted: Any) -> None:
    made = client.beta.messages.create(
        model=scripted.model,
        max_tokens=99,
        messages=asked("Hello"),
        betas=["interleaved-thinking-2025-05-14"],
    )
    assert made.content[0].text == "Hello, you. Fine day."


def test_errors_are_the_sdks_own(anthropic: Any, client: Any, scripted: Any) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model=scripted.model, max_tokens=9, messages=asked("x" * 5000))
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert "1,024" in caught.value.body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nobody", max_tokens=9, messages=asked("Hello"))
    with (
        anthropic.Anthropic(base_url=scripted.url, api_key="wrong-key", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model=scripted.model, max_tokens=9, messages=asked("Hello"))
