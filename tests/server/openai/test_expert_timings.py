"""Experts that are read from disk, in replies and metrics: hits, misses, bytes and waits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from fake_model import ScriptModel, reply

from dure.batch import Batch
from dure.weights.expert_pool import ExpertPool
from dure.weights.expert_stats import ExpertStats

WORDS = "four words from disk"


class Reader(ScriptModel):
    """A model whose every step finds 3 experts in memory, waits for 1, and guesses 2, one right."""

    def __init__(self) -> None:
        super().__init__(reply(WORDS))
        self.stats = ExpertStats(capacity_bytes=4096, experts=32)

    def forward(self, batch: Batch, cache: Any) -> np.ndarray:
        stats = self.stats
        stats.hits += 3
        stats.misses += 1
        stats.read_bytes += 1000
        stats.waited_seconds += 0.5
        stats.guessed_right += 1
        stats.guessed_wrong += 1
        stats.resident, stats.resident_bytes = 16, 2048
        return super().forward(batch, cache)


class Pool(ExpertPool):
    """A pool that counts what the model says."""

    def __init__(self, stats: ExpertStats) -> None:
        super().__init__()
        self._counted = stats

    @property
    def stats(self) -> ExpertStats:
        return self._counted


@pytest.fixture
def server(serve):
    model = Reader()
    return serve(model, model_options={"expert_pool": Pool(model.stats)})


def test_a_reply_counts_the_experts_of_its_steps(server) -> None:
    steps = len(WORDS) + 1  # the prompt's is the first token's, and the last is the end
    for _ in range(2):  # of its own steps, and not of those before
        assert server.chat("hi").json["timings"]["experts"] == {
            "hits": 3 * steps,
            "misses": steps,
            "read_bytes": 1000 * steps,
            "wait_ms": 500.0 * steps,
            "guessed_right": steps,
            "guessed_wrong": steps,
        }


def test_a_stream_counts_experts_as_it_goes(server) -> None:
    *events, _ = server.chat("hi", stream=True, timings_per_token=True).events
    told = [event["timings"]["experts"]["misses"] for event in events if "timings" in event]
    assert told == sorted(told)
    assert set(told) == set(range(1, len(WORDS) + 2))


def test_metrics_count_the_experts_of_all_requests(server) -> None:
    steps = sum(server.chat("hi").json["timings"]["experts"]["misses"] for _ in range(2))
    for _ in range(2):  # asking again adds nothing
        text = server.get("/metrics").body.decode()
        found = dict(re.findall(r"^dure:expert_cache_(\w+)\S* (\S+)$", text, re.MULTILINE))
        assert {name: float(value) for name, value in found.items() if "created" not in name} == {
            "hits_total": 3 * steps,
            "misses_total": steps,
            "read_bytes_total": 1000 * steps,
            "wait_seconds_total": 0.5 * steps,
            "guessed_right_total": steps,
            "guessed_wrong_total": steps,
            "resident_bytes": 2048,
            "capacity_bytes": 4096,
            "resident_experts": 16,
            "experts": 32,
        }


def test_where_all_experts_are_in_memory_none_are_counted(serve) -> None:
    server = serve(reply("ok"))
    assert "experts" not in server.chat("hi").json["timings"]
    assert "expert_cache_hits_total{" not in server.get("/metrics").body.decode()
