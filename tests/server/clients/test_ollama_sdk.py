"""The ollama package against a running server: its own types read every answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ollama._client")  # tests/server/ollama is no such package
import ollama

from dure import hub

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def client(scripted: Any) -> Iterator[Any]:
    with ollama.Client(scripted.url, headers={"Authorization": f"Bearer {scripted.key}"}) as made:
        yield made


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_chat(client: Any, scripted: Any) -> None:
    made = client.chat(scripted.model, asked("Hello"))
    assert made.message.content == "Hello, you. Fine day."
    assert (made.done, made.done_reason) == (True, "stop")
    assert made.eval_count > 0
    assert made.total_duration >= made.eval_duration > 0


def test_a_streamed_chat_joins_to_the_whole(client: Any, scripted: Any) -> None:
    parts = list(client.chat(scripted.model, asked("Hello"), stream=True))
    assert "".join(part.message.content for part in parts) == "Hello, you. Fine day."
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_the_name_may_end_in_latest(client: Any, scripted: Any) -> None:
    made = client.chat(f"{scripted.model}:latest", asked("Hello"))
    assert made.message.content == "Hello, you. Fine day."


def test_thinking_is_a_switch(client: Any, scripted: Any) -> None:
    on = client.chat(scripted.model, asked("Think"), think=True)
    assert on.message.thinking.strip() == "They want a number."
    assert on.message.content == "It is 4."
    off = client.chat(scripted.model, asked("Think"), think=False)
    assert off.message.thinking is None
    assert off.message.content == "It is 4."


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_answered(client: Any, scripted: Any, stream: bool) -> None:
    messages: list[Any] = asked("Weather twice")
    made = client.chat(scripted.model, messages, tools=[WEATHER], stream=stream)
    parts = list(made) if stream else [made]
    calls = [call for part in parts for call in part.message.tool_calls or []]
    assert [call.function.arguments for call in calls] == [{"city": "Zurich"}, {"city": "Bern"}]
    messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    messages += [{"role": "tool", "content": "3", "tool_name": "weather"}] * 2
    answered = client.chat(scripted.model, messages, tools=[WEATHER])
    assert answered.message.content == "It is 3 degrees."


def test_a_schema_holds(client: Any, scripted: Any) -> None:
    made = client.chat(scripted.model, asked("A person"), format=PERSON)
    assert made.message.content == '{"name": "Ada", "age": 36}'


def test_generate(client: Any, scripted: Any) -> None:
    made = client.generate(scripted.model, "Hello")
    assert made.response == "Hello, you. Fine day."
    parts = list(client.generate(scripted.model, "Hello", stream=True))
    assert "".join(part.response for part in parts) == made.response
    raw = client.generate(
        scripted.model, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", raw=True
    )
    assert raw.response == made.response


def test_a_model_is_loaded_by_asking_it_nothing(client: Any, scripted: Any) -> None:
    made = client.generate(scripted.model)
    assert (made.response, made.done_reason) == ("", "load")
    assert [model.model for model in client.ps().models] == [scripted.model]


def test_models_are_listed(client: Any, scripted: Any) -> None:
    assert [model.model for model in client.list().models] == [scripted.model]


def test_errors_are_the_sdks_own(client: Any, scripted: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="nobody") as caught:
        client.chat("nobody", asked("Hello"))
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="65,536"):
        client.chat(scripted.model, asked("Hello"), options={"num_ctx": 65_536})


def test_presets_are_made_copied_and_deleted(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path))
    monkeypatch.setattr("dure.server.run.is_local", hub.is_known)
    hub.create(hub.Preset("base", "org/of-nobody"))
    served = serve(models=(), keys=("a-key-of-this-test",))
    headers = {"Authorization": f"Bearer {served.key}"}
    with ollama.Client(f"http://127.0.0.1:{served.port}", headers=headers) as client:
        asked = {"from_": "base", "system": "Be Mario.", "parameters": {"temperature": 0.5}}
        assert client.create("mario", **asked).status == "success"
        told = [each.status for each in client.create("luigi", **asked, stream=True)]
        assert told == ["success"]
        assert client.copy("mario", "wario").status == "success"
        assert client.delete("mario").status == "success"
        with pytest.raises(ollama.ResponseError, match="No model called"):
            client.delete("mario")
        assert client.pull("wario").status == "success"
    assert [preset.name for preset in hub.all_presets()] == ["base", "luigi", "wario"]
    assert hub.all_presets()[2].settings.system == "Be Mario."
