"""A part of streaming.py: engines in processes of their own, each in a memory cgroup."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from streaming_side import drawn

GROUPS = Path("/sys/fs/cgroup/memory")


class SideError(Exception):
    """An engine ended, was killed, or took too long."""


class Group:
    """A memory cgroup of a certain limit; 0 is none."""

    def __init__(self, limit: int) -> None:
        self.path = GROUPS / f"dure-bench-{os.getpid()}-{time.monotonic_ns()}"
        self.path.mkdir()
        if limit:
            self.write("memory.limit_in_bytes", limit)

    def write(self, name: str, value: int) -> None:
        """Write one of the group's files."""
        (self.path / name).write_text(str(value), "utf-8")

    def read(self, name: str) -> int:
        """Read one of the group's files."""
        return int((self.path / name).read_text("utf-8"))

    def enter(self) -> None:
        """Put this process into it: called in a child before it becomes another program."""
        self.write("cgroup.procs", os.getpid())

    def facts(self) -> dict[str, int]:
        """The highest use, page cache included, and how often the limit was met."""
        return {
            "peak_bytes": self.read("memory.max_usage_in_bytes"),
            "refusals": self.read("memory.failcnt"),
        }

    def close(self) -> None:
        """Remove it, once its last process has gone."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.write("memory.force_empty", 0)
                self.path.rmdir()
                return
            time.sleep(0.1)


class Side:
    """An engine in a group of its own: a streaming_side.py, asked by lines."""

    limit = 280.0  # seconds that an answer may take

    def __init__(self, command: list[str], limit: int, *, verbose: bool, home: str) -> None:
        self.group = Group(limit)
        self.begun = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
            preexec_fn=self.group.enter,  # noqa: PLW1509 - no other thread runs yet
            env={**os.environ, "DURE_HOME": home, "GGML_NO_BACKTRACE": "1"},
        )

    def ready(self, seconds: float) -> dict[str, Any]:
        """Wait until the model is loaded; return what the engine says of it."""
        return self.answer(seconds)

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer to one line. Raises SideError if there is none in time."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": what, **request}), file=self.process.stdin, flush=True)
        return self.answer(self.limit)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line of it."""
        assert self.process.stdout is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        begun = time.perf_counter()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return dict(json.loads(line))
        status = self.process.wait()
        if time.perf_counter() - begun >= seconds:
            raise SideError(f"not done in {seconds:.0f} s")
        raise SideError(f"ended with {status}" if status >= 0 else signal.Signals(-status).name)

    def close(self) -> dict[str, int]:
        """End it; return what the group counted."""
        facts = self.group.facts()
        self.process.kill()
        self.process.communicate()
        self.group.close()
        return facts


class Server(Side):
    """llama-server, asked by HTTP; it answers as a streaming_side.py does."""

    def __init__(self, command: list[str], limit: int, *, verbose: bool, home: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        super().__init__([*command, "--port", str(self.port)], limit, verbose=verbose, home=home)
        # What it prints is read by nobody, and must not stop it.
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):
            for _ in self.process.stdout:
                pass

    def ready(self, seconds: float) -> dict[str, Any]:
        while time.perf_counter() - self.begun < seconds:
            status = self.process.poll()
            if status is not None:
                raise SideError(f"ended with {status} while it started")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._request("GET", "/health", None, 5.0)[0] == 200:
                    return {"load_s": time.perf_counter() - self.begun}
            time.sleep(0.1)
        raise SideError(f"not loaded in {seconds:.0f} s")

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        end = time.perf_counter() + self.limit
        if what == "decode":
            prompt = drawn(request["prompt"], request["seed"])
            warm = self._complete(prompt, request["warm"], request["seed"], end)
            read = self._disk_bytes()
            # The prompt again and what followed, which the server still has in its cache.
            tokens = [*prompt, *warm["tokens"]]
            reply = self._complete(tokens, request["count"], request["seed"] + 1, end)
            timings = reply["timings"]
            seconds_taken, count = timings["predicted_ms"] / 1000, timings["predicted_n"]
            seconds_taken *= count / max(1, count - 1)  # its first token is the prompt's
        else:
            read = self._disk_bytes()
            reply = self._complete(drawn(request["count"], request["seed"]), 1, 1, end)
            timings = reply["timings"]
            seconds_taken, count = timings["prompt_ms"] / 1000, timings["prompt_n"]
        read = self._disk_bytes() - read
        return {"seconds": seconds_taken, "tokens": count, "read_bytes": read}

    def _complete(self, tokens: list[int], count: int, seed: int, end: float) -> dict[str, Any]:
        body = {
            **{"prompt": tokens, "n_predict": count, "seed": seed, "ignore_eos": True},
            **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
            **{"cache_prompt": True, "return_tokens": True},
        }
        left = max(1.0, end - time.perf_counter())
        try:
            status, reply = self._request("POST", "/completion", body, left)
        except (OSError, http.client.HTTPException) as error:
            ended = self.process.poll()
            why = f"not done in time ({error})" if ended is None else f"ended with {ended}"
            raise SideError(why) from None
        if status != 200:
            raise SideError(f"HTTP {status}: {reply}"[:200])
        return reply

    def _request(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        finally:
            connection.close()

    def _disk_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/io").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    def close(self) -> dict[str, int]:
        facts = self.group.facts()
        self.process.kill()
        self.process.wait()
        self.group.close()
        return facts
