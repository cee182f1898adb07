"""dure run as a client: a model that a server has in memory answers, and is not loaded again."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from fake_model import alphabet

import dure.llm
from dure.cli import main
from dure.cli.chat import Chat
from dure.cli.served_model import ServedModel, served_model
from dure.engine.params import SamplingParams
from dure.hub import server_client
from dure.hub.server_client import ServerClient, ServerStream

Run = Any


@pytest.fixture
def run(scripted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function of arguments of `dure run` to (code, stdout, stderr); to load is an error."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(dure.llm, "LLM", load)
    monkeypatch.setenv("DURE_URL", scripted.url)
    monkeypatch.setenv("DURE_API_KEY", scripted.key)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as ended:
            main(["run", *arguments])
        captured = capsys.readouterr()
        return int(str(ended.value.code)), captured.out, captured.err

    return command


@pytest.fixture
def in_memory(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> ServedModel:
    """The server's model, which was asked once and is in memory."""
    monkeypatch.setenv("DURE_URL", scripted.url)
    monkeypatch.setenv("DURE_API_KEY", scripted.key)
    model = served_model(scripted.model, fallback={"temperature": 0.7})
    assert model is not None
    return model


def test_a_key_is_sent_to_no_server_that_was_not_named(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    ask = ServerClient._ask

    def watched(self: ServerClient, path: str, body: Any = None) -> dict[str, Any]:
        sent.append(self.key)
        return ask(self, path, body)

    monkeypatch.setattr(ServerClient, "_ask", watched)
    monkeypatch.setattr(server_client, "DEFAULT_URL", scripted.url)
    monkeypatch.delenv("DURE_URL", raising=False)
    monkeypatch.setenv("DURE_API_KEY", scripted.key)
    told: list[str] = []
    assert served_model(scripted.model, fallback={}, tell=told.append) is None  # it wants a key
    assert sent == [""]
    assert "answered 401. The model is loaded here; DURE_URL and DURE_API_KEY ask it" in told[0]
    monkeypatch.setenv("DURE_URL", scripted.url)
    served_model(scripted.model, fallback={})
    assert set(sent[1:]) == {scripted.key}


def test_the_server_answers_and_it_is_said(run: Run, in_memory: ServedModel) -> None:
    code, out, err = run("fake", "Think", "--temperature", "0")
    assert (code, out.strip()) == (0, "It is 4.")
    assert err.startswith("(the server at http://127.0.0.1:")
    assert "has fake in memory; --local loads it here)" in err
    value = json.loads(run("fake", "Think", "--json")[1])
    assert (value["text"].strip(), value["finish_reason"]) == ("It is 4.", "stop")
    assert value["reasoning"].strip() == "They want a number."
    assert value["tokens"]["completion"] > value["tokens"]["cached"] >= 0


@pytest.mark.parametrize("option", [("--local",), ("--context", "64"), ("--raw",)])
def test_who_wants_it_here_gets_it_here(
    run: Run, in_memory: ServedModel, option: tuple[str, ...]
) -> None:
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("fake", "Hello", *option)


def test_a_server_without_the_model_is_not_asked(run: Run) -> None:
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("/another/one.gguf", "Hello")


def test_a_chat_goes_on_over_the_server(
    in_memory: ServedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["Think", "Hello", "/show info"])

    def read(_prompt: str, _text: str = "") -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    chat = Chat(in_memory, SamplingParams(temperature=0), think=True, read=read)
    chat.run()
    out = capsys.readouterr().out
    assert "It is 4." in out
    assert "Hello, you. Fine day." in out
    assert "server     http://127.0.0.1:" in out
    assert [m["role"] for m in chat.talk.messages] == ["user", "assistant"] * 2


def test_a_text_is_completed_to_its_end(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(alphabet)
    monkeypatch.setenv("DURE_URL", f"http://127.0.0.1:{server.port}")
    model = served_model("fake", fallback={})
    assert model is not None
    chunks = list(model.stream("a"))  # as of a model without a chat template
    assert "".join(chunk.text for chunk in chunks) == "bcdefghijklmnopqrstuvwxyz"
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.finish_reason == "stop"
    few = list(model.stream("a", SamplingParams(max_tokens=3)))
    assert "".join(chunk.text for chunk in few) == "bcd"


def test_an_answer_that_is_stopped_while_the_server_is_asked_is_left(
    in_memory: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ServerClient.stream

    def slow(client: ServerClient, *request: Any) -> ServerStream:
        stream = begin(client, *request)
        in_memory.driver.interrupted.set()  # Ctrl-C, before anyone holds the stream
        return stream

    monkeypatch.setattr(ServerClient, "stream", slow)
    chunks = list(in_memory.stream([{"role": "user", "content": "Hello"}]))
    assert "".join(chunk.text for chunk in chunks) == ""


def test_what_the_server_refuses_is_its_own_sentence(run: Run, in_memory: ServedModel) -> None:
    code, out, err = run("fake", "x " * 5000)
    assert (code, out) == (1, "")
    assert "and the context holds 1,024" in err


def test_a_program_that_is_no_dure_is_sent_no_prompt(
    monkeypatch: pytest.MonkeyPatch, in_memory: ServedModel
) -> None:
    monkeypatch.setattr(ServerClient, "props", lambda *_: {"build_info": "another"})
    assert served_model("fake", fallback={}) is None


def test_a_named_server_that_refuses_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURE_API_KEY", "another-key")
    code, out, err = run("fake", "Hello")
    assert (code, out) == (1, "")
    assert "answered 401" in err
    assert "set DURE_API_KEY to one of its keys; --local loads the model here" in err
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("fake", "Hello", "--local")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", ""])
def test_a_named_server_that_is_not_there_is_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    monkeypatch.setattr(server_client, "DEFAULT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DURE_URL", url)
    with pytest.raises(AssertionError, match="a model was loaded"):
        run("/another/one.gguf", "Hello")
    said = capsys.readouterr().err
    assert ("No server of dure's answers at http://127.0.0.1:9" in said) == bool(url)


def test_an_address_that_is_none_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURE_URL", "ftp://x")
    code, _, err = run("fake", "Hello")
    assert (code, "'ftp://x' is not a server's address" in err) == (1, True)
