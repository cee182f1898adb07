"""Drafts from a grammar: what it leaves no choice about, and no answer changes by asking."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fake_drafter import TryAll
from fake_model import END, VOCAB_SIZE, ByteTokenizer, ScriptModel, loaded

import dure.assembly
import dure.engine.grammar as limits
import dure.llm
from dure import LLM
from dure.batch import Batch
from dure.chat.request import Format
from dure.engine.grammar import GrammarCompiler, GrammarState
from dure.engine.request import Request, SamplingParams
from dure.engine.spec_decode.forced import GrammarDrafter

SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["alpha", "alphabet", "beta"]},
        "when": {"type": "integer"},
    },
    "required": ["first_name", "kind", "when"],
    "additionalProperties": False,
}
GRAMMARS = [
    f"start: %json {json.dumps(SCHEMA)}",
    'start: "The fox" (" jumps" | " jumped") " over"',
    'start: /[ab]{3}(xyz)+/ "END"',
    'start: "a" start | "b"',
    'start: /a/ "bc" | "ab" "cd"',
    'start: e\ne: e "+" e | "1"',
    "start: /(?:(?:(?:a?){100}){100}){100}/",  # which meets the limits on the way
]


def start(grammar: str, *, deferred: bool = False) -> GrammarState:
    """The first state of a grammar whose tokens are bytes."""
    compiler = GrammarCompiler(ByteTokenizer(), VOCAB_SIZE)  # type: ignore[arg-type]
    return compiler.compile(grammar).start(deferred=deferred)


def write(state: GrammarState, text: str) -> None:
    """Advance by a text, a token a byte."""
    for token_id in text.encode():
        state.accept(token_id)


def test_keys_and_constants_are_forced_and_choices_are_not() -> None:
    state = start(GRAMMARS[1])
    assert bytes(state.forced_tokens(100)) == b"The fox jump"
    assert bytes(state.forced_tokens(3)) == b"The"
    write(state, "The fox jump")
    assert state.forced_tokens(100) == []
    write(state, "s")
    assert bytes(state.forced_tokens(100)) == b" over"
    schema = start(GRAMMARS[0])
    write(schema, '{"fir')
    assert bytes(schema.forced_tokens(100)) == b'st_name"'
    write(schema, 'st_name": "Ada", "kind": "b')
    assert bytes(schema.forced_tokens(100)) == b'eta"'


def test_before_a_grammar_begins_it_forces_nothing() -> None:
    state = start(GRAMMARS[1], deferred=True)
    assert state.forced_tokens(100) == []
    state.begin()
    assert bytes(state.forced_tokens(3)) == b"The"


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_what_is_allowed_is_the_same_whether_forced_tokens_are_asked_for_or_not(
    grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_SLOW_SECONDS", float("inf"))  # no clock decides
    rng = np.random.default_rng(3)
    for _ in range(5):
        state, plain = start(grammar), start(grammar)
        for _ in range(40):
            forced = state.forced_tokens(50) if rng.random() < 0.8 else []
            with_it, without = _forbidden(state), _forbidden(plain)
            assert with_it == without
            if without is None:
                break
            allowed = sorted(set(range(VOCAB_SIZE)) - set(without))
            if forced:
                assert allowed == [forced[0]]
            letters = [token for token in allowed if token < 256] or allowed
            token_id = int(rng.choice(letters))
            assert state.accept(token_id) == plain.accept(token_id)


def _forbidden(state: GrammarState) -> list[int] | None:
    """What must not come next; None where the grammar's limits were met."""
    try:
        return state.forbidden().tolist()
    except limits.InvalidRequestError:
        return None


def test_a_grammar_that_is_slow_to_ask_is_not_asked_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(limits.time, "thread_time", lambda: next(clock) * 0.01)
    state = start(GRAMMARS[3])
    state.forced_tokens(1)
    assert state._forced_steps == 1
    for _ in range(10):
        state.forced_tokens(1)
    assert 1 < state._forced_steps < 5


def test_a_request_without_a_grammar_is_not_guessed_for() -> None:
    drafter = GrammarDrafter()
    params = SamplingParams().resolve({})
    plain = Request("r", (1,), params, seed=0, max_output=9, root=b"")
    assert drafter.propose(plain, 9).token_ids == ()
    bound = Request(
        "r", (1,), params, seed=0, max_output=9, root=b"", constraint=start(GRAMMARS[1])
    )
    draft = drafter.propose(bound, 3)
    assert bytes(draft.token_ids) == b"The"
    assert draft.kinds == ("grammar",) * 3
    drafter.forget(bound)


class NoiseModel(ScriptModel):
    """Wants anything at all: its logits are noise, the same for the same text."""

    def forward(self, batch: Batch, cache: Any) -> np.ndarray:
        logits: np.ndarray = super().forward(batch, cache)
        for out, row in zip(logits, batch.logit_rows, strict=True):
            seed = int(batch.positions[row]) * 7919 + int(batch.tokens[row])
            out[:] = np.random.default_rng(seed).normal(size=self.vocab_size)
            out[END] = 3.0
        return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_the_same_with_forced_tokens_as_drafts_and_steps_are_fewer(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    answers, steps = [], []
    for drafter in (None, TryAll(GrammarDrafter())):
        monkeypatch.setattr(
            dure.llm, "load", lambda *_, **__: loaded(NoiseModel(lambda _: "x"), context=256)
        )
        monkeypatch.setattr(dure.assembly, "make_drafter", lambda *_, made=drafter, **__: made)
        llm = LLM("fake")
        params = SamplingParams(temperature=temperature, seed=5, logprobs=1, max_tokens=150)
        form = Format("json_schema", SCHEMA)
        answers.append(llm.chat([{"role": "user", "content": "?"}], params, format=form))
        steps.append(llm.engine.stats.steps)
    plain, drafted = answers
    assert set(json.loads(plain.text)) == set(SCHEMA["required"])
    assert plain.token_ids == drafted.token_ids
    assert plain.logprobs == drafted.logprobs
    assert drafted.usage.drafted_tokens == drafted.usage.accepted_tokens > 20
    assert steps[1] <= steps[0] - 20
