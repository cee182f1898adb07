"""Replicas on real Ray nodes: the same bits from each, also from one that is killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, oracle, saved

from dure.cluster import load as load_module
from dure.cluster.load import load_replicas
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

PARAMS = SamplingParams(max_tokens=20, temperature=0.8, seed=3, logprobs=4, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist()
    for length in (90, 33, 7, 1, 60, 12)
]


def told(requests: list[Request]) -> list[Any]:
    assert [each.error for each in requests] == [None] * len(requests)
    return [(each.output_ids, each.logprobs) for each in requests]


def process_of(chain: Any) -> int:
    """The process id of the actor of a replica's first stage."""
    return int(chain.stages[0].actor.ask("process", seconds=30))


def test_a_killed_replica_goes_on_with_the_same_bits_beside_one_that_is_not(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "finish_loading", lambda *_args, **_options: None)
    folder = saved("qwen3_moe", oracle("qwen3_moe", num_hidden_layers=5), tmp_path)
    model: Any = load_model(open_checkpoint(folder), exact=True)
    alone = Engine(ModelRunner(model, num_blocks=64, cache_dtype="f32"))
    requests = [alone.add(prompt, PARAMS) for prompt in PROMPTS]
    while alone.has_work:
        alone.step()
    expected = told(requests)

    options = {"threads": 1, "context": 256, "exact": True}
    _, runners, pipelines = load_replicas(
        folder, address=cluster.address, replicas=2, stages=2, **options
    )
    try:
        nodes = {chain.stages[0].actor.node.id for chain in pipelines.chains}
        assert len(nodes) == 2  # each has a node of its own, while there are as many
        engines = [Engine(runner) for runner in runners]
        asked = [[engine.add(prompt, PARAMS) for prompt in PROMPTS] for engine in engines]
        step = 0
        while any(engine.has_work for engine in engines):
            for engine in engines:
                engine.step()
            step += 1
            if step == 6:
                os.kill(process_of(pipelines.chains[0]), signal.SIGKILL)
        assert [told(each) for each in asked] == [expected, expected]
        assert [chain.restarts for chain in pipelines.chains] == [1, 0]
        left = [process_of(chain) for chain in pipelines.chains]
    finally:
        pipelines.close()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in left):
        assert time.monotonic() < until, "a stage outlived its server"
        time.sleep(0.1)
