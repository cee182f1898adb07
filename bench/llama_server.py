"""A part of speculation.py: llama.cpp's llama-server with one of its speculation settings.

The server is started for each piece of work and ended behind it. Its n-gram settings remember
earlier answers, and the answer of the round before is the one that is measured.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from speculation_work import Work

STARTS_WITHIN = 300.0  # seconds
NGRAM = {  # name -> options; the numbers are those of the tokens looked up and of the draft
    "none": [],
    "ngram-mod 24/48-64": ["--spec-type", "ngram-mod"],  # its defaults
    "ngram-mod 8/1-16": [
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8"),
        *("--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", "16"),
    ],
    "ngram-simple 12/48": ["--spec-type", "ngram-simple"],  # its defaults
    "ngram-map-k 6/16": [
        *("--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", "6"),
        *("--spec-ngram-map-k-size-m", "16"),
    ],
}
SMALLER_MODEL = {  # the same with a smaller model that drafts
    "draft 3": ["--spec-type", "draft-simple", "--spec-draft-n-max", "3"],
    "draft 8 p 0.75": [
        *("--spec-type", "draft-simple", "--spec-draft-n-max", "8"),
        *("--spec-draft-p-min", "0.75"),
    ],
}


class LlamaServer:
    """One setting of llama-server; a process for each answer."""

    def __init__(
        self, program: Path, model: str, setting: str, *, draft: str, threads: int, context: int
    ) -> None:
        self.setting = setting
        chosen = {**NGRAM, **SMALLER_MODEL}[setting]
        if setting in SMALLER_MODEL:
            chosen = [*chosen, "--spec-draft-model", draft]
        self.command = [
            *(str(program), "--model", model, "--host", "127.0.0.1", "--parallel", "1"),
            *("--threads", str(threads), "--ctx-size", str(context), "--device", "none"),
            *("--jinja", "--no-ui", "--cache-ram", "0", *chosen),
        ]

    def answer(self, work: Work, turn: int) -> dict[str, Any]:
        """Start the server, ask, end it; return the same as a side of dure, or {"error"}."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with subprocess.Popen(
            [*self.command, "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        ) as process:
            try:
                self._wait(process, port)
                return self._ask(work, turn, port)
            except (OSError, http.client.HTTPException, ServerError) as error:
                return {"error": f"{self.setting}: {type(error).__name__}: {error}"}
            finally:
                process.kill()

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        """Return when the server has loaded its model."""
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end:
            if process.poll() is not None:
                raise ServerError(f"it ended with {process.returncode} while it started")
            try:
                if _request(port, "GET", "/health")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.2)
        raise ServerError(f"it did not start within {STARTS_WITHIN:.0f} s")

    def _ask(self, work: Work, turn: int, port: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": work.chats[0]}],
            "max_tokens": work.tokens,
            "seed": work.seed(turn, 0),
            **{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0},
            **work.sampling,
        }
        if work.schema is not None:
            form = {"name": "answer", "schema": work.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        begun = time.perf_counter()
        status, reply = _request(port, "POST", "/v1/chat/completions", body)
        total = time.perf_counter() - begun
        if status != 200:
            raise ServerError(f"HTTP {status}: {reply}"[:300])
        timings = reply["timings"]
        count = timings["predicted_n"]
        return {
            "text": reply["choices"][0]["message"]["content"],
            "prompt_tokens": timings["prompt_n"],
            "output_tokens": count,
            "prefill_s": timings["prompt_ms"] / 1000,
            "total_s": total,
            "decode_tps": (count - 1) * 1000 / timings["predicted_ms"],
            "drafted": timings.get("draft_n", 0),
            "accepted": timings.get("draft_n_accepted", 0),
        }

    def close(self) -> None:
        """Nothing is left running between two answers."""


class ServerError(Exception):
    """The server did not start, or answered with an error."""


def _request(
    port: int, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """Send one request; return status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()
