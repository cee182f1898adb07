"""kill -9 while requests of five keys run: what is whole is kept, and what is lost is named."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from crowd import Crowd, Seen, check, rows_of, sums

SCRIPT = Path(__file__).parents[1] / "fake_server.py"
NAMES = {name: f"sk-secret-of-{name}" for name in ("ada", "bob", "cai", "dan", "eve")}


class Served:
    """A server in a process of its own, with a ledger."""

    def __init__(self, folder: Path) -> None:
        prices = {"input": 100, "cached_input": 25, "output": 400}
        keys: list[dict[str, object]] = [{"name": name, "key": key} for name, key in NAMES.items()]
        keys[0]["admin"] = True  # /metrics has every key's rows for it alone
        (folder / "keys.json").write_text(json.dumps({"keys": keys, "prices": prices}))
        self.ledger = folder / "ledger.db"
        files = ("--keys", str(folder / "keys.json"), "--ledger", str(self.ledger))
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", "fake", "--port", "0", *files],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "FAKE_PAUSE": "0.001"},
            text=True,
        )
        self.said = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
            if found:
                self.port = int(found[1])
                return
        raise AssertionError(f"the server did not start: {self.said}")

    @property
    def lost(self) -> set[str]:
        """The answers that it named as lost when it started."""
        return set(re.findall(r"^  ([0-9a-f]{24}) of ", self.said, re.MULTILINE))

    def exposed(self) -> dict[tuple[str, str], float]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/metrics", headers={"x-api-key": NAMES["ada"]})
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        form = r'^dure:key_tokens_total\{key="(\w+)",kind="(\w+)",\S+\} (\S+)$'
        found = re.findall(form, text, re.MULTILINE)
        return {(key, kind): float(value) for key, kind, value in found}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def served() -> Iterator[list[Served]]:
    started: list[Served] = []
    yield started
    for each in started:
        each.close()


def lives(served: list[Served], folder: Path, kills: int, requests: int) -> None:
    """So many servers after each other on one ledger, each killed among its requests."""
    seen: list[Seen] = []
    chooser = random.Random(kills)
    running: set[str] = set()
    for life in range(kills + 1):
        server = Served(folder)
        served.append(server)
        assert server.lost == running
        before = rows_of(server.ledger)
        assert {each for each, row in before.items() if row["end"] == "lost"} >= running
        check(seen, before)
        seen += Crowd(server.port, NAMES, requests // 2, seed=2 * life).start().join()
        until = time.monotonic() + 60
        while any(row["end"] is None for row in rows_of(server.ledger).values()):
            assert time.monotonic() < until, "a request never ended"
            time.sleep(0.01)
        rows = rows_of(server.ledger)
        own = [row for name, row in rows.items() if name not in before]
        assert server.exposed() == sums(own)
        if life == kills:
            break
        crowd = Crowd(server.port, NAMES, requests - requests // 2, seed=2 * life + 1).start()
        wanted = chooser.randint(1, max(2, requests // 4))
        while len(rows_of(server.ledger)) < len(rows) + wanted:
            assert server.process.poll() is None
            time.sleep(0.001)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        seen += crowd.join()
        after = rows_of(server.ledger)
        running = {name for name, row in after.items() if row["end"] is None}
        whole = {each.id for each in seen if each.usage is not None}
        assert not running & whole, "an answer that a client has whole was lost"
    check(seen, rows_of(folder / "ledger.db"))


def test_a_kill_loses_what_was_running_and_says_which(served, tmp_path: Path) -> None:
    lives(served, tmp_path, kills=1, requests=24)


@pytest.mark.long
def test_ten_kills_among_a_thousand_requests_lose_only_what_was_running(served, tmp_path) -> None:
    lives(served, tmp_path, kills=10, requests=100)
