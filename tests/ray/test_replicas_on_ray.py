"""Replicas on real Ray nodes: the same bits from each, also from one that is killed meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_server import AT_ONCE, served, under_load
from tiny_models import VOCAB_SIZE, oracle, saved

from dure import LLM
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


def test_streams_of_a_replica_that_no_node_has_room_for_go_on_at_the_other(
    cluster: Any, folders: dict[str, Path]
) -> None:
    asked = [
        {
            "prompt": f"Number {number} of them",
            "max_tokens": 150,
            "ignore_eos": True,
            "logprobs": 2,
            "stream": True,
            **({"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0}),
        }
        for number in range(8)
    ]
    opened: list[Any] = []

    def open_it() -> LLM:
        options = {"threads": 1, "context": 256, "max_sequences": AT_ONCE}
        opened.append(LLM(folders["qwen3_moe"], ray=cluster.address, replicas=2, **options))
        return opened[0]

    with served(open_it) as post:
        expected = under_load(post, asked)
        chain, engine = opened[0].stages.chains[0], opened[0].driver.drivers[0].engine
        chain._budget = 0  # of each node, from now on
        written = engine.stats.output_tokens

        def kill() -> None:
            while engine.stats.output_tokens < written + 60:
                time.sleep(0.01)
            os.kill(process_of(chain), signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        assert under_load(post, asked) == expected
        killing.join()
        assert not chain.is_whole
        assert opened[0].driver.drivers[1].engine.stats.taken_over > 0
        chain._budget = None
        until = time.monotonic() + 120
        while not chain.is_whole:  # nobody asks it for anything
            assert time.monotonic() < until, "it was not mended"
            time.sleep(0.1)
        assert under_load(post, asked) == expected
    opened[0].close()
