"""A part of `ray_net.py` and `ray_chaos.py`: servers on nodes, and streams of tokens from them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from typing import Any

from ray_nodes import Node, Nodes, child_of

WORDS = ["river", "stone", "window", "garden", "letter", "morning", "bridge", "copper", "silent"]
_START_SECONDS = 600.0


@dataclass
class Answer:
    """What came of one request."""

    began: float
    tokens: list[tuple[str, float]] = field(default_factory=list)  # with their log-probabilities
    times: list[float] = field(default_factory=list)  # when each came
    error: str = ""

    @property
    def longest_gap(self) -> float:
        """Seconds without a token, from the first of them on."""
        return max((b - a for a, b in pairwise(self.times)), default=0.0)


@dataclass
class Serving:
    """A server on a node."""

    nodes: Nodes
    node: Node
    port: int
    process: subprocess.Popen[bytes]
    seconds: float = 0.0  # until it answered

    def connect(self) -> socket.socket:
        return self.nodes.connect(self.node, self.port)

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of an answer."""
        connection = HTTPConnection("127.0.0.1", self.port)
        connection.sock = self.connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of what a metric says of all stages."""
        line = rf"^dure:{name}(?:_total)?\{{.*\}} (\S+)$"
        found = re.findall(line, self.get("/metrics")[1], re.M)
        return sum(map(float, found))

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        with suppress(OSError, RuntimeError):
            os.kill(child_of(self.process.pid), signal.SIGTERM)
        self.process.wait()


def serve(nodes: Nodes, node: Node, port: int, model: str, *options: str, log: Any) -> Serving:
    """Start `dure serve` on a node and wait for its first token; what it prints goes to `log`."""
    words = [sys.executable, "-m", "dure", "serve", model, "--port", str(port), "--no-page"]
    began = time.monotonic()
    process = nodes.popen(node, *words, *options, stdout=log, stderr=subprocess.STDOUT)
    serving = Serving(nodes, node, port, process)
    while time.monotonic() - began < _START_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"dure serve ended with {process.returncode}")
        with suppress(OSError, HTTPException):
            if serving.get("/health")[0] == 200:  # which it says while the model is loaded, too
                first = ask(serving, body_of(0, words=1, tokens=1))
                if first.error:
                    raise RuntimeError(first.error)
                serving.seconds = time.monotonic() - began
                return serving
        time.sleep(0.1)
    raise RuntimeError("dure serve does not answer")


def body_of(number: int, *, words: int, tokens: int) -> dict[str, Any]:
    """A request of its own: greedy, or drawn with a seed."""
    drawn = random.Random(number)
    drawing = {"temperature": 0.8, "top_p": 0.95, "seed": number} if number % 2 else {}
    return {
        "prompt": " ".join(drawn.choice(WORDS) for _ in range(words)),
        "max_tokens": tokens,
        "ignore_eos": True,
        "logprobs": 1,
        "stream": True,
        "temperature": 0,
        **drawing,
    }


def ask(serving: Serving, body: dict[str, Any]) -> Answer:
    """Read a stream to its end."""
    answer = Answer(time.monotonic())
    connection = HTTPConnection("127.0.0.1", serving.port)
    try:
        connection.sock = serving.connect()
        connection.request("POST", "/v1/completions", json.dumps(body))
        came, ended = connection.getresponse(), False
        if came.status != 200:
            answer.error = f"{came.status} {came.read()[:300]!r}"
            return answer
        while line := came.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                break
            value = json.loads(line[6:])
            if "error" in value:
                answer.error = str(value["error"])[:300]
                return answer
            now = time.monotonic()
            for choice in value["choices"]:
                said = choice.get("logprobs") or {"tokens": [], "token_logprobs": []}
                for pair in zip(said["tokens"], said["token_logprobs"], strict=True):
                    answer.tokens.append(pair)
                    answer.times.append(now)
        if not ended:
            answer.error = "the stream broke off"
    except (OSError, HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"[:300]
    finally:
        connection.close()
    return answer


def at_once(serving: Serving, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """Ask all of them at once; raises what went wrong."""
    answers: list[Answer] = [Answer(0.0)] * len(bodies)

    def one(number: int) -> None:
        answers[number] = ask(serving, bodies[number])

    in_threads(len(bodies), one)
    for answer in answers:
        if answer.error:
            raise RuntimeError(answer.error)
    return answers


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1), …, each on a thread of its own, to their ends."""
    threads = [
        threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)  # so that Ctrl-C is heard


def decoding_speed(answers: Sequence[Answer]) -> float:
    """Tokens a second of all, while all of them were decoding."""
    first = max(answer.times[0] for answer in answers)
    last = min(answer.times[-1] for answer in answers)
    count = sum(sum(first < at <= last for at in answer.times) for answer in answers)
    return count / (last - first)
