"""Through the engine, every family still computes what transformers does: chunked, batched, from a
reused prefix, and after it was preempted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_models import MODELS, RECURRENT, oracle_logits

from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams

TOLERANCE, RECURRENT_TOLERANCE = 1e-4, 5e-4


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def distance(request: Request, oracle: Any) -> float:
    """How far the 20 highest log-probabilities of any output are from the oracle's, at most."""
    start = len(request.prompt_ids)
    logits = oracle_logits(oracle, [*request.prompt_ids, *request.output_ids])[start - 1 : -1]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert len(request.logprobs) == len(expected) == len(request.output_ids)
    return max(
        abs(row[token] - value)
        for row, told in zip(expected, request.logprobs, strict=True)
        for token, value in (*told.top, (told.token_id, told.logprob))
    )


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_transformers_after_prefix_reuse_and_preemption(
    tiny: Callable[[str], Any], name: str
) -> None:
    small = tiny(name)
    engine = Engine(
        ModelRunner(small.model, num_blocks=5, num_states=128, cache_dtype="f32"),
        max_batch_tokens=33,
    )
    prompt, other, short, _ = small.sequences
    params = SamplingParams(max_tokens=60, temperature=0.8, seed=1, logprobs=20, ignore_eos=True)
    engine.add(prompt, SamplingParams(max_tokens=1))
    finish(engine)
    requests = [engine.add([*prompt[:70], *short], params) for short in (short, other[:9])]
    requests += [engine.add(each, params) for each in (other, short)]
    finish(engine)
    assert max(request.num_cached_tokens for request in requests) >= 64
    assert engine.stats.preemptions > 0 == engine.stats.failed
    tolerance = RECURRENT_TOLERANCE if MODELS[name][0] in RECURRENT else TOLERANCE
    assert max(distance(request, small.oracle) for request in requests) < tolerance
