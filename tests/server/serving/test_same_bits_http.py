"""A request's tokens and log-probabilities are the same bits through HTTP, alone and under load."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from dure import LLM, SamplingParams

ASKED: dict[str, Any] = {
    "max_tokens": 12,
    "temperature": 0.8,
    "top_p": 0.9,
    "seed": 11,
    "logprobs": 5,
    "repetition_penalty": 1.1,
}


def numbers(choice: dict[str, Any]) -> tuple[Any, ...]:
    """The text and every float of an answer; JSON gives a double back as it was."""
    logprobs = choice["logprobs"]
    return choice["text"], tuple(logprobs["token_logprobs"]), str(logprobs["top_logprobs"])


@pytest.mark.model
def test_answers_are_the_same_bits_alone_in_python_and_under_load(serve_real, smollm2) -> None:
    prompts = [f"The {word} of the river" * 3 for word in ("sound", "colour", "length", "end")]
    llm = LLM(smollm2, context=512)
    expected = [
        tuple(entry.logprob for entry in llm.generate([prompt], params())[0].logprobs)
        for prompt in prompts
    ]
    server = serve_real(smollm2, context=512)
    alone = [ask(server, prompt) for prompt in prompts]
    assert expected == [answer[1] for answer in alone]
    found: list[tuple[Any, ...]] = []

    def one(number: int) -> None:
        found.append((number % 4, ask(server, prompts[number % 4])))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 16 == len(found)
    assert all(alone[number] == answer for number, answer in found)


def params() -> SamplingParams:
    return SamplingParams(**ASKED)


def ask(server: Any, prompt: str) -> tuple[Any, ...]:
    answer = server.post("/v1/completions", {**ASKED, "prompt": prompt})
    assert 200 == answer.status
    return numbers(answer.json["choices"][0])


@pytest.fixture
def serve_real(serve, monkeypatch):
    """A function from a model file to a server over it."""
    import dure.llm  # noqa: PLC0415 - before the fixture patches it

    real = dure.llm.load

    def start(path: Path, **options: Any) -> Any:
        def load(name: str) -> LLM:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(dure.llm, "load", real)
                return LLM(path, max_sequences=8, **options)

        return serve(make=load)

    return start
