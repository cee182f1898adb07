"""Clients of several keys, at the same time, some of which leave before their answer is whole."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"
TOKENS = ("prompt", "cached", "reasoning", "output")


@dataclass
class Seen:
    """What one client saw of one answer."""

    key: str
    id: str = ""  # "" before the first event
    tokens: int = 0
    usage: dict[str, Any] | None = None  # of an answer that came whole
    status: int = 0


@dataclass
class Crowd:
    """So many requests with these keys (name -> key), by eight threads."""

    port: int
    keys: dict[str, str]
    count: int
    seed: int
    seen: list[Seen] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> Crowd:
        for number in range(8):
            chooser = random.Random(self.seed * 8 + number)
            share = self.count // 8 + (number < self.count % 8)
            self.threads.append(threading.Thread(target=self._ask, args=(chooser, share)))
            self.threads[-1].start()
        return self

    def join(self) -> list[Seen]:
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive()
        return self.seen

    def _ask(self, chooser: random.Random, count: int) -> None:
        for _ in range(count):
            name = chooser.choice(sorted(self.keys))
            seen = Seen(name)
            self.seen.append(seen)
            cut = chooser.choice([None, None, 0, 1, chooser.randint(2, 30)])
            body = {
                "messages": [{"role": "user", "content": "hi" * chooser.randint(1, 40)}],
                "max_tokens": chooser.randint(1, 60),
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                headers = {"Authorization": f"Bearer {self.keys[name]}"}
                connection.request("POST", CHAT, json.dumps(body), headers)
                _read(connection, seen, cut)
            except (OSError, HTTPException):  # the server was killed
                pass
            finally:
                connection.close()


def _read(connection: HTTPConnection, seen: Seen, cut: int | None) -> None:
    """Read events until the end, or until so many tokens have come."""
    if cut == 0:
        return
    answer = connection.getresponse()
    seen.status = answer.status
    usage = None
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            seen.usage = usage
            return
        event = json.loads(line[6:])
        seen.id = event["id"].removeprefix("chatcmpl-")
        usage = event.get("usage") or usage
        seen.tokens += sum(len(each["delta"].get("content") or "") for each in event["choices"])
        if cut is not None and seen.tokens >= cut:
            return


def rows_of(ledger: Path) -> dict[str, dict[str, Any]]:
    """The ledger's rows, by id."""
    file = sqlite3.connect(ledger)
    file.row_factory = sqlite3.Row
    try:
        return {row["id"]: dict(row) for row in file.execute("SELECT * FROM requests")}
    finally:
        file.close()


def check(seen: list[Seen], rows: dict[str, dict[str, Any]]) -> None:
    """Fail unless the ledger has what clients saw: whole answers to the token, others no less."""
    for each in seen:
        if each.usage is not None:
            row = rows[each.id]
            usage = each.usage
            assert row["end"] in ("stop", "length")
            assert row["key"] == each.key
            assert row["output"] == usage["completion_tokens"]
            assert row["prompt"] == usage["prompt_tokens"]
            assert row["cached"] == usage["prompt_tokens_details"]["cached_tokens"]
            assert row["money"] == usage["cost"]
            assert abs(row["cpu_s"] - usage["cost_details"]["processor_seconds"]) < 1e-5
        elif each.id:
            row = rows[each.id]
            assert row["key"] == each.key
            assert row["end"] == "lost" or row["output"] >= each.tokens
    known = {each.id for each in seen if each.id}
    # A client that left before the first event knows of no id, and there are as many such.
    assert len(rows.keys() - known) <= sum(not each.id for each in seen)


def sums(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """The tokens of rows by (key, kind), none left out."""
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        for kind in TOKENS:
            place = row["key"], kind
            found[place] = found.get(place, 0) + row[kind]
    return found
