"""Draft heads: a head that knows the next state guesses all, if it is given the right rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from prefix_model import STATES, VOCAB_SIZE, random_prompt, run

from dure.batch import BLOCK_SIZE, Batch, KVCacheSpec
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.engine.sampler import Sampler
from dure.engine.spec_decode.draft import StepResult
from dure.engine.spec_decode.heads import DraftHeads
from dure.kernels import sampling_reference

RNG = np.random.default_rng(31)


class HeadedModel:
    """Its hidden state is a number that follows from the one before it and the token.

    The head computes the same from a hidden state and the token after it. Its cache must have what
    it was given at the position before: a row that nobody showed it is noticed.
    """

    vocab_size, context_length = VOCAB_SIZE, 512
    kv_cache_specs = (KVCacheSpec("gqa", 1, 1),)
    draft_cache_specs = (KVCacheSpec("gqa", 1, 1),)
    num_draft_heads = 1

    def __init__(self, wrong: float = 0.0) -> None:
        self.wrong = wrong
        self.rng = np.random.default_rng(5)

    def embed(self, batch: Batch) -> np.ndarray:
        return batch.tokens.astype(np.float32)[:, None]

    def run(self, x: np.ndarray, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        hidden = np.zeros((len(x), 1), np.float32)
        for row, (token, position) in enumerate(zip(x[:, 0], batch.positions, strict=True)):
            before = STATES - 1.0 if position == 0 else self._at(batch, row, -1, cache)[0]
            hidden[row] = step(before, token, position)
            self._at(batch, row, 0, cache)[:] = hidden[row, 0], token
        return hidden

    def draft_hidden(self, x: np.ndarray) -> np.ndarray:
        return x

    def logits(self, x: np.ndarray) -> np.ndarray:
        words = [
            np.frombuffer(hashlib.shake_128(row.tobytes()).digest(4 * VOCAB_SIZE), "<u4")
            for row in x.astype(np.float32)
        ]
        return (np.array(words).reshape(-1, VOCAB_SIZE) / 2**32 * 8 - 4).astype(np.float32)

    def forward(self, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        return self.logits(self.run(self.embed(batch), batch, cache)[batch.logit_rows])

    def draft(
        self, hidden: np.ndarray, batch: Batch, cache: Sequence[np.ndarray], *, head: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        assert head == 0
        made = np.zeros_like(hidden)
        for row, (token, position) in enumerate(zip(batch.tokens, batch.positions, strict=True)):
            if position > 0:
                state, following = self._at(batch, row, -1, cache)
                assert step(state, following, position) == hidden[row], "a row is missing"
            self._at(batch, row, 0, cache)[:] = hidden[row, 0], token
            made[row] = step(hidden[row, 0], token, position + 1)
        made = made[batch.logit_rows]
        logits = self.logits(made)
        for each in logits:
            if self.rng.random() < self.wrong:
                each[:] = -each
        return made, logits

    def _at(self, batch: Batch, row: int, by: int, cache: Sequence[np.ndarray]) -> np.ndarray:
        """Two numbers of a position."""
        position = int(batch.positions[row]) + by
        block = batch.block_tables[batch.sequences[row], position // BLOCK_SIZE]
        assert block >= 0
        return cache[0][block].reshape(-1)[position % BLOCK_SIZE :: BLOCK_SIZE][:2]


def step(state: float, token: float, position: int) -> float:
    return (int(state) * 1103 + int(token) * 7 + int(position) + 12345) % STATES


class Always:
    """Takes all that draft heads guess, up to `max_drafts` tokens."""

    def __init__(self, source: DraftHeads, max_drafts: int) -> None:
        self.source, self.max_drafts = source, max_drafts

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> Sequence[Sequence[int]]:
        drafts = self.source.propose(requests, limits, lambda place, kinds: True)
        return [draft.token_ids for draft in drafts]

    def observe(self, step: StepResult) -> None:
        self.source.observe(step, wanted=True)

    def forget(self, request: Request) -> None:
        self.source.forget(request)


def engine_of(depth: int, wrong: float = 0.0) -> Engine:
    runner = ModelRunner(HeadedModel(wrong), num_blocks=64, draft_heads=depth > 0)
    return Engine(
        runner,
        max_batch_tokens=24,
        max_sequences=8,
        sampling=sampling_reference,
        drafter=Always(DraftHeads(runner, Sampler(sampling_reference)), depth) if depth else None,
    )


PARAMS = [
    SamplingParams(max_tokens=40, temperature=0),
    SamplingParams(max_tokens=33, temperature=1, seed=3),
    SamplingParams(max_tokens=37, temperature=0.8, seed=4, top_k=20, top_p=0.9),
    SamplingParams(max_tokens=20, temperature=1.3, seed=5, min_p=0.02, logprobs=2),
]


def answers(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Request]:
    requests = [engine.add(p, PARAMS[i % 4]) for i, p in enumerate(prompts)]
    run(engine)
    assert not any(request.error for request in requests), [r.error for r in requests]
    return requests


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_heads_see_every_row_once_it_is_sure_and_guess_the_rest(depth: int, wrong: float) -> None:
    """Prompts in chunks, chains of guesses, rejected ones: each row's hidden state comes once."""
    prompts = [[i, *random_prompt(RNG, int(n))] for i, n in enumerate((0, 9, 30, 31, 32, 60))]
    expected = answers(engine_of(0), prompts)
    engine = engine_of(depth, wrong)
    actual = answers(engine, prompts)
    assert [r.output_ids for r in actual] == [r.output_ids for r in expected]
    assert [r.logprobs for r in actual] == [r.logprobs for r in expected]
    stats = engine.stats
    assert stats.drafted_tokens > 60
    if wrong:
        assert 0 < stats.accepted_tokens < stats.drafted_tokens
    else:
        assert stats.accepted_tokens == stats.drafted_tokens
    assert engine.pool.num_free == 64
