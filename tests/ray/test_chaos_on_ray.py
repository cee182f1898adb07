"""Half a minute of streams while stages are killed: no error, no other token, and nothing left."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray_server import AT_ONCE, served, under_load

from dure import LLM

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

SECONDS, KILLS = 30, (8, 18)


def body_of(number: int) -> dict[str, Any]:
    """A request that takes a while; greedy or drawn."""
    drawn = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0}
    return {
        "prompt": f"The story of number {number} and of what it had in common with others",
        "max_tokens": 120,
        "ignore_eos": True,
        "logprobs": 2,
        "stream": True,
        **drawn,
    }


def test_streams_go_on_while_stages_are_killed(cluster: Any, folders: dict[str, Path]) -> None:
    asked = [body_of(number) for number in range(AT_ONCE)]
    opened: list[LLM] = []

    def open_it() -> LLM:
        opened.append(
            LLM(
                folders["deepseek_v3"],
                ray=cluster.address,
                stages=3,
                threads=1,
                context=256,
                max_sequences=AT_ONCE,
            )
        )
        return opened[0]

    with served(open_it) as post:
        expected = under_load(post, asked)
        assert all(len(tokens) == 120 for _, _, tokens in expected)
        chain: Any = opened[0].stages
        began, killed = time.monotonic(), []

        def kill() -> None:
            for number, at in enumerate(KILLS):
                time.sleep(max(0.0, began + at - time.monotonic()))
                actor = chain.stages[number % len(chain.stages)].actor
                killed.append(int(actor.ask("process", seconds=120)))
                os.kill(killed[-1], signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        while time.monotonic() < began + SECONDS or killing.is_alive():
            assert under_load(post, asked) == expected
        assert len(killed) == len(KILLS)
        assert chain.restarts >= len(KILLS)
        left = [int(stage.actor.ask("process", seconds=120)) for stage in chain.stages]
    opened[0].close()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in [*killed, *left]):
        assert time.monotonic() < until, "a stage outlived its server"
        time.sleep(0.1)
