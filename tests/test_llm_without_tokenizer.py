"""A model without a tokenizer: token ids go in and come out, and texts are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import config_of, parameters_of, write_folder, write_gguf
from tiny_models import loaded, prefill_logits

from dure import LLM, AsyncLLM, SamplingParams, TokenizerError
from dure.chat.request import Format

CONFIG = {**config_of("qwen2"), "eos_token_id": [7, 9]}
IDS = [3, 14, 15, 92, 65]
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
OPTIONS: dict[str, Any] = {"threads": 1, "context": 128, "exact": True}


@pytest.fixture(scope="module", params=["folder", "gguf"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without a tokenizer."""
    made = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        return write_folder(made, CONFIG, parameters_of(CONFIG))
    write_gguf(made / "model.gguf", CONFIG, parameters_of(CONFIG))
    return made / "model.gguf"


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    """The model, loaded."""
    with LLM(path, **OPTIONS) as made:
        yield made


def test_logits_are_those_of_the_model(path: Path, llm: LLM) -> None:
    assert np.array_equal(llm.logits(IDS), prefill_logits(loaded(path), IDS))


def test_ids_are_generated_and_streamed_and_have_no_text(llm: LLM) -> None:
    expected: list[int] = []
    for _ in range(6):
        expected.append(int(llm.logits([*IDS, *expected])[-1].argmax()))
    [answer] = llm.generate([IDS], GREEDY)
    assert (list(answer.token_ids), answer.text) == (expected, "")
    assert [chunk.token_id for chunk in llm.stream(IDS, GREEDY)] == expected


def test_an_id_that_the_config_calls_an_end_ends_the_answer(path: Path, llm: LLM) -> None:
    if path.is_dir():
        assert llm.tokenizer.eos_ids == {7, 9}
    params = SamplingParams(max_tokens=6, temperature=0, logit_bias={7: 100.0})
    [answer] = llm.generate([IDS], params)
    if path.is_dir():
        assert (list(answer.token_ids), answer.finish_reason) == ([7], "stop")
    else:  # which does not say how a generation ends
        assert answer.finish_reason == "length"


def test_embeddings_of_ids_need_no_tokenizer(llm: LLM) -> None:
    [one] = llm.embed([IDS])
    assert len(one.vector) == CONFIG["hidden_size"]


ASKED_FOR_TEXT: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate("a text"),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "a text"}]),
    "stream": lambda llm: llm.stream("a text"),
    "embed": lambda llm: llm.embed("a text"),
    "chat_prompt": lambda llm: llm.chat_prompt([{"role": "user", "content": "a text"}]),
    "encode": lambda llm: llm.tokenizer.encode("a text"),
    "decode": lambda llm: llm.tokenizer.decode(IDS),
    "stop": lambda llm: llm.generate([IDS], SamplingParams(stop=["a text"])),
    "format": lambda llm: llm.prepare(IDS, format=Format("json_object")),
    "prediction": lambda llm: llm.prepare(IDS, prediction="a text"),
}


@pytest.mark.parametrize("asked", ASKED_FOR_TEXT)
def test_a_text_is_refused_in_a_sentence(llm: LLM, asked: str) -> None:
    with pytest.raises(TokenizerError, match="takes token ids, and gives no text") as caught:
        ASKED_FOR_TEXT[asked](llm)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_whoever_wants_texts_is_told_before_the_model_is_loaded(path: Path) -> None:
    read: list[tuple[int, int]] = []
    with pytest.raises(TokenizerError, match="no tokenizer"):
        LLM(path, **OPTIONS, require_tokenizer=True, load_progress=lambda *at: read.append(at))
    assert not read or read[-1][0] < read[-1][1]


def test_coroutines_have_ids_too(path: Path) -> None:
    async def ask() -> list[int]:
        async with AsyncLLM(path, **OPTIONS) as llm:
            [answer] = await llm.generate([IDS], GREEDY)
            return list(answer.token_ids)

    with LLM(path, **OPTIONS) as llm:
        assert asyncio.run(ask()) == list(llm.generate([IDS], GREEDY)[0].token_ids)
