"""The openai package against a running server: its own types read every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
WEATHER_FLAT = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def openai() -> Any:
    """The package: seconds to import, and one of the processes that share the tests has to."""
    return pytest.importorskip("openai", minversion="1")


@pytest.fixture(scope="module")
def client(openai: Any, scripted: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=scripted.v1, api_key=scripted.key, max_retries=0) as made:
        yield made


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def strictly(value: Any) -> None:
    """Nothing, or an error: what came is of the SDK's own type, field by field.

    The SDK itself builds its objects without checking them.
    """
    type(value).model_validate_json(value.model_dump_json(by_alias=True, warnings="error"))


def test_a_chat(client: Any, scripted: Any) -> None:
    made = client.chat.completions.create(model=scripted.model, messages=asked("Hello"))
    strictly(made)
    assert made.choices[0].message.content == "Hello, you. Fine day."
    assert made.choices[0].finish_reason == "stop"
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens


def test_a_streamed_chat_has_its_usage_in_the_last_chunk(client: Any, scripted: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model=scripted.model,
            messages=asked("Hello"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for chunk in chunks:
        strictly(chunk)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == "Hello, you. Fine day."
    assert chunks[-1].usage.completion_tokens > 0
    assert [bool(chunk.choices) for chunk in chunks].count(False) == 1


def test_thoughts_are_beside_the_content(client: Any, scripted: Any) -> None:
    made = client.chat.completions.create(model=scripted.model, messages=asked("Think"))
    assert made.choices[0].message.content == "It is 4."
    assert made.choices[0].message.reasoning_content.strip() == "They want a number."
    assert made.choices[0].message.reasoning == made.choices[0].message.reasoning_content
    assert made.usage.completion_tokens_details.reasoning_tokens > 0
    off = client.chat.completions.create(
        model=scripted.model, messages=asked("Think"), reasoning_effort="none"
    )
    assert off.choices[0].message.content == "It is 4."
    assert not getattr(off.choices[0].message, "reasoning_content", None)


def test_a_tool_is_called_and_its_result_answered(client: Any, scripted: Any) -> None:
    messages: list[Any] = asked("Weather twice")
    made = client.chat.completions.create(model=scripted.model, messages=messages, tools=[WEATHER])
    strictly(made)
    message = made.choices[0].message
    assert made.choices[0].finish_reason == "tool_calls"
    assert [json.loads(each.function.arguments)["city"] for each in message.tool_calls] == [
        "Zurich",
        "Bern",
    ]
    messages.append(message)
    for each in message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": each.id, "content": "3"})
    answered = client.chat.completions.create(
        model=scripted.model, messages=messages, tools=[WEATHER]
    )
    assert answered.choices[0].message.content == "It is 3 degrees."


def test_the_sdks_own_stream_helper_joins_a_call(client: Any, scripted: Any) -> None:
    with client.chat.completions.stream(
        model=scripted.model, messages=asked("Weather"), tools=[WEATHER]
    ) as stream:
        for _ in stream:
            pass
        made = stream.get_final_completion()
    (call,) = made.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Zurich"}


def test_a_schema_holds(client: Any, scripted: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    made = client.chat.completions.create(
        model=scripted.model, messages=asked("A person"), response_format=wanted
    )
    assert json.loads(made.choices[0].message.content) == {"name": "Ada", "age": 36}


def test_a_schema_that_cannot_be_enforced_is_named(openai: Any, client: Any, scripted: Any) -> None:
    pets = {"type": "array", "items": {"not": {"type": "null"}}}
    schema = {"type": "object", "properties": {"pets": pets}}
    wanted = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    tool = {"type": "function", "function": {"name": "feed", "parameters": schema}}
    where = r'"not" at pets\[\] is not supported\. '
    with pytest.raises(openai.BadRequestError, match=f"The JSON schema .*{where}"):
        client.chat.completions.create(
            model=scripted.model, messages=asked("A person"), response_format=wanted
        )
    with pytest.raises(openai.BadRequestError, match=f"parameters of the tool 'feed' .*{where}"):
        client.chat.completions.create(
            model=scripted.model, messages=asked("Pets"), tools=[tool], tool_choice="required"
        )


def test_a_tool_that_cannot_be_enforced_spoils_no_schema(client: Any, scripted: Any) -> None:
    bad = {"type": "object", "properties": {"x": {"not": {}}}}
    made = client.chat.completions.create(
        model=scripted.model,
        messages=asked("A person"),
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}},
        tools=[{"type": "function", "function": {"name": "feed", "parameters": bad}}],
    )
    assert json.loads(made.choices[0].message.content) == {"name": "Ada", "age": 36}


def test_completions_with_logprobs(client: Any, scripted: Any) -> None:
    made = client.completions.create(
        model=scripted.model, prompt="ab", max_tokens=1, echo=True, logprobs=2
    )
    # The first token has none, as OpenAI's own API says it and its SDK's type does not.
    assert made.choices[0].text.startswith("ab")
    assert made.choices[0].logprobs.token_logprobs[0] is None


def test_errors_are_the_sdks_own(openai: Any, client: Any, scripted: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=asked("Hello"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=scripted.model, messages=asked("x" * 5000))
    assert caught.value.code == "context_length_exceeded"
    with (
        openai.OpenAI(base_url=scripted.v1, api_key="wrong-key", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_models_are_listed(client: Any, scripted: Any) -> None:
    assert scripted.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(scripted.model).id == scripted.model


def test_a_response(client: Any, scripted: Any) -> None:
    made = client.responses.create(model=scripted.model, input="Think", instructions="Be brief.")
    strictly(made)
    assert made.output_text == "It is 4."
    assert made.status == "completed"
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.usage.output_tokens_details.reasoning_tokens > 0


def test_a_streamed_response_comes_in_order(client: Any, scripted: Any) -> None:
    events = list(client.responses.create(model=scripted.model, input="Think", stream=True))
    for event in events:
        strictly(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    said = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert said == events[-1].response.output_text == "It is 4."


def test_the_sdks_own_helper_follows_a_response(client: Any, scripted: Any) -> None:
    with client.responses.stream(
        model=scripted.model, input="Weather", tools=[WEATHER_FLAT]
    ) as stream:
        for _ in stream:
            pass
        made = stream.get_final_response()
    (call,) = made.output
    assert json.loads(call.arguments) == {"city": "Zurich"}


def test_a_response_goes_on_from_the_one_before(client: Any, scripted: Any) -> None:
    first = client.responses.create(model=scripted.model, input="Weather", tools=[WEATHER_FLAT])
    (call,) = first.output
    second = client.responses.create(
        model=scripted.model,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "3"}],
        tools=[WEATHER_FLAT],
    )
    assert second.output_text == "It is 3 degrees."
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_response_can_be_found_until_it_is_deleted(
    openai: Any, client: Any, scripted: Any
) -> None:
    made = client.responses.create(model=scripted.model, input="Hello")
    assert client.responses.retrieve(made.id).output_text == made.output_text
    items = list(client.responses.input_items.list(made.id))
    assert items[0].content[0].text == "Hello"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    unkept = client.responses.create(model=scripted.model, input="Hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=scripted.model, input="x", previous_response_id=unkept.id)


def test_a_response_of_a_schema(client: Any, scripted: Any) -> None:
    wanted = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
    made = client.responses.create(model=scripted.model, input="A person", text=wanted)
    strictly(made)
    assert json.loads(made.output_text) == {"name": "Ada", "age": 36}


def test_a_responses_tokens_are_counted(client: Any, scripted: Any) -> None:
    counted = client.responses.input_tokens.count(model=scripted.model, input="Hello")
    made = client.responses.create(model=scripted.model, input="Hello")
    assert counted.input_tokens == made.usage.input_tokens


def test_a_tool_that_only_openai_has_cannot_be_required(
    openai: Any, client: Any, scripted: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match="web_search"):
        client.responses.create(
            model=scripted.model,
            input="Hello",
            tools=[{"type": "web_search"}],
            tool_choice="required",
        )
