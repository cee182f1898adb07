"""Logits with more rows than the tokenizer has tokens, and tokenizers with more than the logits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import END, VOCAB_SIZE, ByteTokenizer, ScriptModel, loaded

import dure.llm
from dure import LLM, SamplingParams
from dure.batch import Batch
from dure.chat.request import Format
from dure.errors import InvalidRequestError

PADDED = VOCAB_SIZE + 200  # more than the 32 to which a grammar's mask is rounded up
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}},
    "required": ["kind"],
    "additionalProperties": False,
}


class PaddedModel(ScriptModel):
    """Likes the rows without a token best of all; the others are noise."""

    vocab_size = PADDED

    def forward(self, batch: Batch, cache: Any) -> np.ndarray:
        logits = super().forward(batch, cache)
        for out, row in zip(logits, batch.logit_rows, strict=True):
            seed = int(batch.positions[row]) * 7919 + int(batch.tokens[row])
            out[:VOCAB_SIZE] = np.random.default_rng(seed).normal(size=VOCAB_SIZE)
            out[END] = 3.0
            out[VOCAB_SIZE:] = 50.0
        return logits


class SparseTokenizer(ByteTokenizer):
    """Leaves ids out between others, which the model likes best of all."""

    HOLES = frozenset({3, 100, 200})

    def rows_without_token(self, rows: int) -> list[int]:
        return sorted({*super().rows_without_token(rows), *self.HOLES})


class HoleModel(PaddedModel):
    def forward(self, batch: Batch, cache: Any) -> np.ndarray:
        logits = super().forward(batch, cache)
        logits[:, sorted(SparseTokenizer.HOLES)] = 40.0
        return logits


class LargeTokenizer(ByteTokenizer):
    """Has a mark and an end of generation beyond the model's last row."""

    vocab_size = VOCAB_SIZE + 40
    added_ids = ByteTokenizer.added_ids | {VOCAB_SIZE + 30}
    eos_ids = frozenset({END, VOCAB_SIZE + 39})
    eos_id = VOCAB_SIZE + 39

    def token_bytes(self, token_id: int) -> bytes:
        return b"cat" if token_id >= VOCAB_SIZE else super().token_bytes(token_id)


def make_llm(
    monkeypatch: pytest.MonkeyPatch, model: ScriptModel, tokenizer: ByteTokenizer | None = None
) -> LLM:
    made = loaded(model, context=1024, num_blocks=64)
    if tokenizer is not None:
        object.__setattr__(made, "text", tokenizer)
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: made)
    return LLM("fake")


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.0, "seed": 1, "n": 3, "top_p": 0.9, "repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 2, "logit_bias": {PADDED - 1: 100.0}},
    ],
)
def test_a_row_without_a_token_is_never_drawn(
    monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    llm = make_llm(monkeypatch, PaddedModel())
    asked = SamplingParams(max_tokens=30, ignore_eos=True, logprobs=5, prompt_logprobs=4, **params)
    [answer] = llm.driver.answer([llm.prepare("?", asked)])
    for choice in answer.choices or (answer,):
        assert len(choice.token_ids) == 30
        assert max(choice.token_ids) < VOCAB_SIZE
        assert all(token < VOCAB_SIZE for each in choice.logprobs for token, _ in each.top)
        assert all(np.isfinite(each.logprob) for each in choice.logprobs)


def test_top_logprobs_hold_no_row_without_a_token_however_many_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ByteTokenizer, "vocab_size", 12)
    llm = make_llm(monkeypatch, PaddedModel())
    [answer] = llm.driver.answer(
        [llm.prepare("?", SamplingParams(max_tokens=2, logprobs=20, ignore_eos=True))]
    )
    for each in answer.logprobs:
        assert sorted(token for token, _ in each.top) == list(range(12))


def test_an_id_that_the_tokenizer_leaves_out_is_never_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = make_llm(monkeypatch, HoleModel(), SparseTokenizer())
    for temperature in (0.0, 1.0):
        asked = SamplingParams(
            max_tokens=40, temperature=temperature, seed=2, ignore_eos=True, logprobs=6
        )
        [answer] = llm.driver.answer([llm.prepare("?", asked)])
        listed = {token for each in answer.logprobs for token, _ in each.top}
        assert not SparseTokenizer.HOLES & {*answer.token_ids, *listed}
        assert max(listed) < VOCAB_SIZE


def test_log_probabilities_count_every_row_as_in_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = make_llm(monkeypatch, HoleModel(), SparseTokenizer())
    prompt = [65, 3, VOCAB_SIZE + 7, 66]  # ids without a token are taken, as vLLM takes them
    asked = SamplingParams(max_tokens=1, temperature=0, logprobs=3, prompt_logprobs=3)
    [answer] = llm.generate([prompt], asked)
    logits = torch.from_numpy(llm.logits([*prompt]))
    wanted = torch.log_softmax(logits.double(), dim=-1).numpy()
    entries = [*(answer.prompt_logprobs or ())[1:], *answer.logprobs]
    for row, entry, token in zip(wanted, entries, [*prompt[1:], *answer.token_ids], strict=True):
        assert entry is not None
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token], abs=1e-5)
        for listed, value in entry.top:
            assert value == pytest.approx(row[listed], abs=1e-5)


def test_an_end_of_generation_that_only_the_config_knows_ends_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tokenizer(ByteTokenizer):
        eos_ids = frozenset({END, PADDED - 1})

        def rows_without_token(self, rows: int) -> list[int]:
            return sorted({*super().rows_without_token(rows)} - self.eos_ids)

    llm = make_llm(monkeypatch, PaddedModel(), Tokenizer())
    [answer] = llm.generate(["?"], SamplingParams(max_tokens=9, temperature=0))
    assert (answer.text, answer.finish_reason) == ("", "stop")


@pytest.mark.parametrize("seed", range(4))
def test_a_format_is_kept_to_where_logits_reach_beyond_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    llm = make_llm(monkeypatch, PaddedModel())
    asked = SamplingParams(max_tokens=60, temperature=1.0, seed=seed)
    prepared = llm.prepare("?", asked, format=Format("json_schema", SCHEMA))
    [answer] = llm.driver.answer([prepared])
    assert json.loads(answer.text)["kind"] in ("cat", "dog")


def test_a_grammar_alone_forbids_every_row_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm(monkeypatch, PaddedModel())
    grammar = llm.prepare("?", format=Format("json_schema", SCHEMA)).grammar
    assert grammar is not None
    assert set(range(VOCAB_SIZE, PADDED)) <= set(grammar.start().forbidden().tolist())


def test_a_format_is_kept_to_where_the_tokenizer_reaches_beyond_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = make_llm(monkeypatch, ScriptModel(lambda _: "x"), LargeTokenizer())
    asked = SamplingParams(max_tokens=60, temperature=1.0, seed=1, min_tokens=3)
    prepared = llm.prepare("?", asked, format=Format("json_schema", SCHEMA))
    [answer] = llm.driver.answer([prepared])
    assert json.loads(answer.text)["kind"] in ("cat", "dog")
    assert answer.finish_reason == "stop"


def test_a_prompt_id_beyond_the_logits_is_refused_with_the_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = make_llm(monkeypatch, ScriptModel(), LargeTokenizer())
    with pytest.raises(InvalidRequestError, match=f"0 to {VOCAB_SIZE - 1}"):
        llm.generate([[65, VOCAB_SIZE + 30]])
