"""Replicas on the nodes of a cluster: where they go, the same bits, and one that is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cluster import FakeCluster, FakeNode, lose
from tiny_models import VOCAB_SIZE, oracle, saved

from dure.cluster import chain as chain_module
from dure.cluster import load as load_module
from dure.cluster import plan as plan_module
from dure.cluster import replicas as replicas_module
from dure.cluster.nodes import Node
from dure.cluster.replicas import deal
from dure.cluster.split import Room
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import SamplingParams
from dure.errors import NotEnoughMemoryError
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model

PARAMS = SamplingParams(max_tokens=12, temperature=0.8, seed=3, logprobs=4, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist() for length in (90, 33, 7)
]
HERE, A, B, C = (Node(name, name, name == "here") for name in ("here", "a", "b", "c"))


@pytest.mark.parametrize(
    ("nodes", "replicas", "stages", "expected"),
    [
        ((HERE,), 2, None, [[HERE], [HERE]]),
        ((HERE, A), 2, None, [[A], [HERE]]),
        ((HERE, A, B), 2, None, [[A], [B]]),
        ((HERE, A, B, C), 2, None, [[A, B], [C, HERE]]),
        ((HERE, A), 3, None, [[A], [HERE], [A]]),
        ((HERE, A, B), 2, 3, [[A, B], [HERE, A]]),
    ],
)
def test_nodes_are_dealt_out_others_first(nodes, replicas, stages, expected) -> None:
    assert deal(nodes, replicas, stages) == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of four layers."""
    made = oracle("qwen3-tied-bias", num_hidden_layers=4)
    return saved("qwen3-tied-bias", made, tmp_path_factory.mktemp("model"))


Opened = Callable[..., tuple[list[Engine], Any, FakeCluster]]


@pytest.fixture
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setattr(load_module, "finish_loading", lambda *_args, **_options: None)
    monkeypatch.setattr(plan_module, "room_here", lambda *_: Room(1 << 40, 1e9))
    monkeypatch.setattr(chain_module, "_LOOK_SECONDS", 0.05)
    opened = []

    def open_it(*nodes: FakeNode, **options: Any) -> Any:
        cluster = FakeCluster(*nodes)
        monkeypatch.setattr(replicas_module, "Cluster", lambda _address: cluster)
        settings = {"threads": 1, "context": 256, "exact": True, "replicas": 2, **options}
        _, runners, pipelines = load_module.load_replicas(folder, address="auto", **settings)
        opened.append(pipelines)
        return [Engine(runner) for runner in runners], pipelines, cluster

    yield open_it
    for each in opened:
        each.close()


def answers(engine: Engine) -> list[Any]:
    requests = [engine.add(prompt, PARAMS) for prompt in PROMPTS]
    while engine.has_work:
        engine.step()
    assert [each.error for each in requests] == [None] * len(requests)
    return [(each.output_ids, each.logprobs) for each in requests]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Any]:
    model: Any = load_model(open_checkpoint(folder), exact=True)
    return answers(Engine(ModelRunner(model, num_blocks=32, cache_dtype="f32")))


@pytest.mark.parametrize("stages", ["auto", 3])
def test_each_gives_the_bits_of_one_process(
    opened: Opened, expected: list[Any], stages: int | str
) -> None:
    engines, pipelines, cluster = opened(FakeNode("here"), FakeNode("a"), stages=stages)
    for engine in engines:
        assert answers(engine) == expected
    told = pipelines.status()
    assert [each.replica for each in told] == ([1, 2] if stages == "auto" else [1, 1, 2, 2])
    layers = [(each.first_layer, each.last_layer) for each in told]
    assert layers == ([(0, 3)] * 2 if stages == "auto" else [(0, 1), (2, 3)] * 2)
    pipelines.close()
    assert cluster.living == [] and cluster.closed.is_set()


def test_one_that_is_lost_is_there_again_while_the_other_goes_on(
    opened: Opened, expected: list[Any]
) -> None:
    node = FakeNode("a")
    [one, other], pipelines, _ = opened(FakeNode("here"), node, FakeNode("b"))
    requests = [one.add(prompt, PARAMS) for prompt in PROMPTS]
    for _ in range(4):
        one.step()
    lose(node)
    assert answers(other) == expected
    while one.has_work:
        one.step()
    assert [(each.output_ids, each.logprobs) for each in requests] == expected
    assert pipelines.restarts == 1
    assert [str(each.node) for each in pipelines.status()] != []
    assert {s.actor.node.id for chain in pipelines.chains for s in chain.stages} <= {"here", "b"}


def test_one_that_is_lost_while_idle_is_seen_and_mended(
    opened: Opened, expected: list[Any]
) -> None:
    node = FakeNode("a")
    [one, other], pipelines, _ = opened(FakeNode("here"), node)
    assert answers(one) == expected
    lose(node)
    for _ in range(200):
        if not one.runner.is_whole:
            break
        time.sleep(0.01)
    assert not one.runner.is_whole and other.runner.is_whole
    one.scheduler.start_over()
    one.runner.mend()
    assert one.runner.is_whole
    assert answers(one) == expected
    assert pipelines.restarts == 1


def test_what_does_not_fit_is_said_with_what_would_be_needed(opened: Opened) -> None:
    small = FakeNode("b", memory=1 << 20)
    with pytest.raises(NotEnoughMemoryError, match=r"no room for replica 2 of 2.*needs .* have"):
        opened(FakeNode("here"), FakeNode("a"), small, stages=2)


def test_a_lost_one_counts_what_the_other_takes_of_a_budget(opened: Opened) -> None:
    node, left = FakeNode("a"), FakeNode("here")
    [one, other], _, _ = opened(left, node, memory=260 << 20)
    lose(node)  # and the other replica's stage takes most of what is left
    request = one.add(PROMPTS[0], PARAMS)
    error: Exception | None = None
    try:
        while one.has_work:
            one.step()
    except NotEnoughMemoryError as raised:  # when a pass was sent; or when it was to come back
        error = raised
        one.abort(request.id)
    assert isinstance(error or request.error, NotEnoughMemoryError)
    assert not one.runner.is_whole
    assert answers(other)[0][0]


def test_where_no_node_has_room_the_other_goes_on_with_its_requests(
    opened: Opened, expected: list[Any]
) -> None:
    here, node, other_node = (FakeNode(name) for name in ("here", "a", "b"))
    [one, other], pipelines, _ = opened(here, node, other_node)
    requests = [one.add(prompt, PARAMS) for prompt in PROMPTS]
    for _ in range(4):
        one.step()
    here.memory = other_node.memory = 0
    lose(node)
    with pytest.raises(NotEnoughMemoryError):
        while one.has_work:
            one.step()
    assert not pipelines.chains[0].is_whole
    for request in requests:
        one.give_up(request)
    other.take_over(requests)
    while other.has_work:
        other.step()
    assert [(each.output_ids, each.logprobs) for each in requests] == expected
    assert not one.has_work
