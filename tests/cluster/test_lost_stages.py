"""Stages that die, hang, or find no room: every request goes on with the same bits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cluster import FakeActor, FakeCluster, FakeNode, cut, lose
from tiny_models import VOCAB_SIZE, oracle, saved

from dure.batch import Batch
from dure.cluster import chain as chain_module
from dure.cluster import load as load_module
from dure.cluster import plan as plan_module
from dure.cluster import subject as subject_module
from dure.cluster.nodes import ActorSilentError
from dure.cluster.split import Room
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.pipeline import Pipeline
from dure.engine.request import Request, SamplingParams
from dure.engine.stage import Stage
from dure.errors import DureError, InvalidRequestError, ModelFileError, NotEnoughMemoryError
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model

PARAMS = SamplingParams(max_tokens=16, temperature=0.8, seed=3, logprobs=4, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist()
    for length in (90, 33, 7, 1)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of six layers."""
    made = oracle("qwen3_moe", num_hidden_layers=6)
    return saved("qwen3_moe", made, tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny folder has none, and what is tested here needs none."""
    monkeypatch.setattr(load_module, "finish_loading", lambda *_args, **_options: None)
    monkeypatch.setattr(plan_module, "room_here", lambda *_: Room(1 << 40, 1e9))
    monkeypatch.setattr(chain_module, "_LOOK_SECONDS", 0.05)


Opened = Callable[..., tuple[Pipeline, FakeCluster]]


@pytest.fixture
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """A pipeline over fake nodes, which is closed in the end."""
    chains = []

    def open_it(*nodes: FakeNode, path: Path = folder, **options: Any) -> Any:
        cluster = FakeCluster(*nodes)
        monkeypatch.setattr(plan_module, "Cluster", lambda _address: cluster)
        settings = {"threads": 1, "context": 256, "exact": True, **options}
        _, runner, chain = load_module.load_pipeline(path, address="auto", **settings)
        chains.append(chain)
        return runner, cluster

    yield open_it
    for each in chains:
        if each is not None:
            each.close()


def expected_of(folder: Path) -> list[Any]:
    model: Any = load_model(open_checkpoint(folder), exact=True)
    engine = Engine(ModelRunner(model, num_blocks=32, cache_dtype="f32"))
    return finished(engine, [engine.add(prompt, PARAMS) for prompt in PROMPTS])


def finished(
    engine: Engine, requests: list[Request], between: Callable[[int], None] = lambda _: None
) -> list[Any]:
    """What the requests got; `between` is called after each step with its number."""
    got: dict[str, list[int]] = {request.id: [] for request in requests}
    step = 0
    while engine.has_work:
        for output in engine.step():
            got[output.request.id] += output.token_ids
        engine.scheduler.check()
        step += 1
        between(step)
    assert [each.error for each in requests] == [None] * len(requests)
    assert [got[each.id] for each in requests] == [each.output_ids for each in requests]
    return [(each.output_ids, each.logprobs) for each in requests]


def chain_of(runner: Pipeline) -> Any:
    return runner._chain


def test_stages_on_nodes_have_the_bits_of_one_process(folder: Path, opened: Opened) -> None:
    expected = expected_of(folder)
    for nodes in (2, 4):
        runner, cluster = opened(*(FakeNode(str(i)) for i in range(nodes)))
        engine = Engine(runner)
        assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS]) == expected
        spans = [stage.order.span for stage in chain_of(runner).stages]
        assert len(spans) == nodes - 1 == runner.passes - 1
        assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
        assert all(actor.node.id != "0" for actor in cluster.living)


def test_a_stage_that_is_killed_is_started_again(folder: Path, opened: Opened) -> None:
    expected = expected_of(folder)
    runner, cluster = opened(*(FakeNode(str(i)) for i in range(3)))
    engine = Engine(runner)

    def kill(step: int) -> None:
        if step in (2, 5, 9):
            cluster.living[step % 2].kill()

    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], kill) == expected
    assert chain_of(runner).restarts == 3
    assert len(cluster.living) == 2
    # and while nobody asks anything
    cluster.living[0].kill()
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS]) == expected


def test_a_stage_that_hangs_is_started_again(folder: Path, opened: Opened) -> None:
    expected = expected_of(folder)
    runner, cluster = opened(FakeNode("0"), FakeNode("1"))
    [actor] = cluster.living
    inner = actor.inner._work._stage
    forward = inner.forward

    def stop(step: int) -> None:
        if step == 4:
            actor.hangs = True
            inner.forward = lambda *_: threading_wait()

    def threading_wait() -> np.ndarray:
        gate.wait(20)
        raise RuntimeError("it was stopped")

    gate = threading.Event()
    engine = Engine(runner)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], stop) == expected
    assert not actor.alive
    gate.set()
    inner.forward = forward


def test_a_request_that_kills_each_stage_it_comes_to_ends_and_the_others_go_on(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = VOCAB_SIZE - 1
    params = replace(PARAMS, logit_bias={token: -100})
    prompts = [[each % token for each in prompt] for prompt in PROMPTS]
    model: Any = load_model(open_checkpoint(folder), exact=True)
    alone = Engine(ModelRunner(model, num_blocks=32, cache_dtype="f32"))
    expected = finished(alone, [alone.add(prompt, params) for prompt in prompts])
    runner, cluster = opened(FakeNode("0"), FakeNode("1"))
    forward, kills = Stage.forward, []

    def kill(stage: Stage, batch: Batch, x: Any) -> Any:
        if x is None and token in batch.tokens:
            kills.append(len(batch.block_tables))
            cluster.living[0].kill()
        return forward(stage, batch, x)

    monkeypatch.setattr(Stage, "forward", kill)
    engine = Engine(runner)
    added = [engine.add(prompt, params) for prompt in prompts]
    wrong = engine.add([1, token, 1], params)
    while engine.has_work:
        engine.step()
    assert [(each.output_ids, each.logprobs) for each in added] == expected
    assert isinstance(wrong.error, DureError)
    assert "lost 2 times while this request alone" in wrong.error.message
    assert kills[1:] == [1, 1]  # once beside others, twice alone
    assert chain_of(runner).restarts == 3
    assert finished(engine, [engine.add(prompt, params) for prompt in prompts]) == expected


def test_a_node_that_is_lost_gives_its_layers_to_one_that_has_room(
    folder: Path, opened: Opened
) -> None:
    expected = expected_of(folder)
    nodes = [FakeNode(str(i)) for i in range(3)]
    spare = FakeNode("spare", alive=False)
    runner, cluster = opened(*nodes, spare)

    def fail(step: int) -> None:
        if step == 4:
            spare.alive = True
            lose(nodes[1])

    engine = Engine(runner)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], fail) == expected
    assert sorted(actor.node.id for actor in cluster.living) == ["2", "spare"]


def test_a_node_whose_network_is_cut_is_not_waited_for_while_another_has_room(
    folder: Path, opened: Opened
) -> None:
    expected = expected_of(folder)
    nodes = [FakeNode(str(i)) for i in range(3)]
    spare = FakeNode("spare", alive=False)
    runner, cluster = opened(*nodes, spare)

    def fail(step: int) -> None:
        if step == 4:
            spare.alive = True
            cut(nodes[1])

    engine = Engine(runner)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], fail) == expected
    assert sorted(actor.node.id for actor in cluster.living) == ["2", "spare"]
    assert len(nodes[1].actors) == 1  # none was started there again


def test_a_node_whose_network_is_cut_has_no_layers_where_they_are_cut_anew(
    folder: Path, opened: Opened
) -> None:
    expected = expected_of(folder)
    nodes = [FakeNode(str(i)) for i in range(4)]
    runner, cluster = opened(*nodes)
    needs = [stage.needs_bytes for stage in chain_of(runner).stages]

    def fail(step: int) -> None:
        if step == 4:
            nodes[0].memory = 0
            for node in nodes[2:]:
                node.memory = min(needs) - 1
            cut(nodes[1])

    engine = Engine(runner)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], fail) == expected
    assert {actor.node.id for actor in cluster.living} == {"2", "3"}


def test_an_answer_that_is_there_once_the_machine_goes_on_is_one(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, cluster = opened(FakeNode("0"), FakeNode("1"))
    chain = chain_of(runner)
    asked = FakeActor.result
    late = [True]

    def result(self: FakeActor, call: Any, seconds: float) -> Any:
        if late.pop() if late else False:
            raise ActorSilentError("this machine stood still")
        return asked(self, call, seconds)

    monkeypatch.setattr(FakeActor, "result", result)
    chain._look()
    assert not late
    assert len(cluster.living) == 1
    assert chain.restarts == 0


def test_layers_are_cut_anew_where_no_node_has_room_for_a_stage_of_the_old_cut(
    folder: Path, opened: Opened
) -> None:
    expected = expected_of(folder)
    nodes = [FakeNode(str(i)) for i in range(4)]
    runner, cluster = opened(*nodes)
    needs = [stage.needs_bytes for stage in chain_of(runner).stages]

    def fail(step: int) -> None:
        if step == 4:
            for node in nodes:
                node.memory = min(needs) - 1  # none takes a stage more beside its own
            nodes[0].memory = 0
            lose(nodes[2])

    engine = Engine(runner)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS], fail) == expected
    spans = [stage.order.span for stage in chain_of(runner).stages]
    assert [span.first for span in spans] == [0, spans[0].last]
    assert sorted(actor.node.id for actor in cluster.living) == ["1", "3"]


def test_without_room_anywhere_the_error_says_so_and_a_new_node_mends_it(
    folder: Path, opened: Opened
) -> None:
    expected = expected_of(folder)
    nodes = [FakeNode("0", memory=0), FakeNode("1")]
    runner, cluster = opened(*nodes)
    engine = Engine(runner)
    requests = [engine.add(p, PARAMS) for p in PROMPTS]
    for _ in range(4):
        engine.step()
    lose(nodes[1])
    with pytest.raises(NotEnoughMemoryError, match="GB of memory, and the nodes have"):
        finished(engine, requests)
    for request in requests:
        engine.abort(request.id)
    assert not engine.has_work
    again = engine.add(PROMPTS[0], PARAMS)
    with pytest.raises(NotEnoughMemoryError):
        finished(engine, [again])
    engine.abort(again.id)
    cluster.fakes.append(FakeNode("new"))
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS]) == expected
    assert [actor.node.id for actor in cluster.living] == ["new"]


def test_a_stage_that_cannot_compute_a_pass_fails_that_one_alone(
    folder: Path, opened: Opened
) -> None:
    runner, cluster = opened(FakeNode("0"), FakeNode("1"))
    inner = cluster.living[0].inner._work._stage
    forward = inner.forward
    engine = Engine(runner)
    requests = [engine.add(p, PARAMS) for p in PROMPTS]

    def explode(*_: Any) -> Any:
        inner.forward = forward
        raise ValueError("a kernel failed")

    inner.forward = explode
    while engine.has_work:
        engine.step()
    failed = [each for each in requests if each.error is not None]
    assert failed
    assert "a kernel failed" in str(failed[0].error)
    done = [(each.output_ids, each.logprobs) for each in requests if each.error is None]
    assert all(each in expected_of(folder) for each in done)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS]) == expected_of(folder)


def test_nothing_is_left_when_it_is_closed(folder: Path, opened: Opened) -> None:
    runner, cluster = opened(*(FakeNode(str(i)) for i in range(3)))
    chain_of(runner).close()
    assert cluster.closed.is_set()
    assert not cluster.living
    until = time.monotonic() + 10
    names = {"dure ring", "dure stage", "dure link"}
    while names & {each.name for each in threading.enumerate()}:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_other_files_on_a_node_are_refused(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_module, "fingerprint", lambda _: "0" * 32)
    with pytest.raises(ModelFileError, match="holds other bytes"):
        opened(FakeNode("0"), FakeNode("1"))


def test_what_stages_cannot_do_is_refused(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="from texts alone"):
        opened(FakeNode("0"), speculate="heads")
    uncut = saved("gemma4", oracle("gemma4"), tmp_path)
    with pytest.raises(InvalidRequestError, match="cannot be cut in stages"):
        opened(FakeNode("0"), path=uncut)


def test_actors_of_a_cluster_that_failed_to_load_are_ended(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "room_here", lambda *_: Room(1 << 20, 1e9))
    nodes = [FakeNode("0"), FakeNode("1", memory=1 << 20)]
    with pytest.raises(NotEnoughMemoryError, match="GB of memory, and the nodes have"):
        opened(*nodes)
    assert nodes[1].actors
    assert not any(actor.alive for node in nodes for actor in node.actors)


def test_where_no_other_node_has_room_all_layers_are_here(folder: Path, opened: Opened) -> None:
    runner, cluster = opened(FakeNode("0"), FakeNode("1", memory=1 << 20))
    assert not cluster.living
    assert runner.passes == 1
    engine = Engine(runner)
    assert finished(engine, [engine.add(p, PARAMS) for p in PROMPTS]) == expected_of(folder)


def test_a_node_of_another_version_is_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_module, "version_here", lambda: "9.9")
    with pytest.raises(InvalidRequestError, match=r"and the server 9\.9"):
        opened(FakeNode("0"), FakeNode("1"))
