"""Stages as Ray actors on real nodes, through losses: the same bits, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_embedders import VOCAB_SIZE

from dure.cluster import load as load_module
from dure.cluster.load import load_pipeline
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

PARAMS = SamplingParams(max_tokens=20, temperature=0.8, seed=3, logprobs=4, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist()
    for length in (90, 33, 7, 1, 60, 12, 5, 81)
]

Opened = Callable[..., tuple[Any, Any]]


@pytest.fixture
def opened(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setattr(load_module, "finish_loading", lambda *_args, **_options: None)
    chains = []

    def open_it(folder: Path, **options: Any) -> tuple[Any, Any]:
        settings = {"threads": 1, "context": 256, "exact": True, **options}
        _, runner, chain = load_pipeline(folder, address=cluster.address, **settings)
        chains.append(chain)
        return runner, chain

    yield open_it
    for chain in chains:
        chain.close()


def expected_of(folder: Path) -> list[Any]:
    model: Any = load_model(open_checkpoint(folder), exact=True)
    engine = Engine(ModelRunner(model, num_blocks=64, num_states=16, cache_dtype="f32"))
    return finished(engine, [engine.add(prompt, PARAMS) for prompt in PROMPTS])


def finished(
    engine: Engine, requests: list[Request], between: Callable[[int], None] = lambda _: None
) -> list[Any]:
    got: dict[str, list[int]] = {request.id: [] for request in requests}
    step = 0
    while engine.has_work:
        for output in engine.step():
            got[output.request.id] += output.token_ids
        step += 1
        between(step)
    assert [each.error for each in requests] == [None] * len(requests)
    assert [got[each.id] for each in requests] == [each.output_ids for each in requests]
    return [(each.output_ids, each.logprobs) for each in requests]


def process_of(chain: Any, index: int) -> int:
    """The process id of a stage's actor."""
    return int(chain.stages[index].actor.ask("process", seconds=30))


def test_a_stage_that_is_killed_or_stopped_comes_back(
    folders: dict[str, Path], opened: Opened
) -> None:
    folder = folders["qwen3_moe"]
    expected = expected_of(folder)
    runner, chain = opened(folder, stages=3)
    engine = Engine(runner)

    def hurt(step: int) -> None:
        if step == 6:
            os.kill(process_of(chain, 0), signal.SIGKILL)
        if step == 14:
            os.kill(process_of(chain, 1), signal.SIGSTOP)

    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], hurt) == expected
    assert chain.restarts == 2


def test_a_request_that_ends_each_process_it_comes_to_ends_and_the_others_go_on(
    folders: dict[str, Path], opened: Opened
) -> None:
    folder, token = folders["qwen3_moe"], VOCAB_SIZE - 1
    params = replace(PARAMS, logit_bias={token: -100})
    prompts = [[each % token for each in prompt] for prompt in PROMPTS]
    model: Any = load_model(open_checkpoint(folder), exact=True)
    alone = Engine(ModelRunner(model, num_blocks=64, cache_dtype="f32"))
    expected = finished(alone, [alone.add(prompt, params) for prompt in prompts])
    runner, chain = opened(folder, stages=2)
    send, killed = chain.send, []

    def kill(batch: Any) -> None:
        if token not in batch.tokens:
            send(batch)
            return
        if chain.is_broken:
            chain.mend()
        killed.append(process_of(chain, 0))
        os.kill(killed[-1], signal.SIGSTOP)  # it takes the pass, and has no time to compute it
        send(batch)
        os.kill(killed[-1], signal.SIGKILL)

    chain.send = kill
    engine = Engine(runner)
    added = [engine.add(prompt, params) for prompt in prompts]
    wrong = engine.add([1, token, 1], params)
    while engine.has_work:
        engine.step()
    assert [(each.output_ids, each.logprobs) for each in added] == expected
    assert "lost 2 times while this request alone" in str(wrong.error)
    assert len(set(killed)) == 3  # once beside others, twice alone


def test_a_node_that_is_lost_is_done_without(
    cluster: Any, node_options: dict[str, Any], folders: dict[str, Path], opened: Opened
) -> None:
    folder = folders["qwen3_next"]
    expected = expected_of(folder)
    extra = cluster.add_node(**node_options)
    runner, chain = opened(folder, stages=4)
    assert len(chain.stages) == 3
    engine = Engine(runner)

    def lose(step: int) -> None:
        if step == 8:
            cluster.remove_node(extra, allow_graceful=False)

    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], lose) == expected
    # What the node ran may end a little later than its raylet.
    until = time.monotonic() + 60
    while chain.restarts == 0:
        assert time.monotonic() < until, "nobody saw that the node is lost"
        assert (
            finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], lambda step: None)
            == expected
        )
    assert chain.restarts == 1


def test_nothing_is_left_of_a_server_that_is_killed(cluster: Any, folders: dict[str, Path]) -> None:
    code = (
        "import sys; from dure.cluster import load\n"
        "load.finish_loading = lambda *a, **k: None\n"
        "_, _, chain = load.load_pipeline(sys.argv[1], address=sys.argv[2], threads=1,"
        " stages=3, context=256)\n"
        "print('stages', *(s.actor.ask('process', seconds=60) for s in chain.stages), flush=True)\n"
        "import time; time.sleep(600)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(folders["qwen3_moe"]), cluster.address],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    # Ray tells its warnings there, too.
    line = next(each for each in server.stdout if each.startswith("stages "))
    stages = [int(word) for word in line.split()[1:]]
    assert stages
    server.kill()
    server.wait()
    server.stdout.close()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in stages):
        assert time.monotonic() < until, "a stage outlived its server"
        time.sleep(0.1)


def test_nothing_is_left_of_a_pipeline_that_is_closed(
    folders: dict[str, Path], opened: Opened
) -> None:
    _, chain = opened(folders["qwen3_moe"], stages=3)
    stages = [process_of(chain, index) for index in range(len(chain.stages))]
    ports = [stage.address[1] for stage in chain.stages]
    chain.close()
    gc.collect()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in stages):
        assert time.monotonic() < until
        time.sleep(0.1)
    for port in ports:
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect((chain._door.address[0], port))
