"""Does anything stay behind in a server after many requests, of which many are cut off?

    python bench/serve_storm.py smollm2-135m.gguf --requests 20000 --cut 0.3

Starts `dure serve` on the file, warms it up, and sends chats and completions, streamed or not, over
32 connections; a share of them leaves at a random moment, some before their request is whole.
Prints one JSON object: what the server's process holds (files, threads, bytes of memory) and what
its /metrics say of running answers and the cache, when all is still again: after the warm-up, after
each tenth of the requests, and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARM_UP = 1000
CONNECTIONS = 32
WORDS = ["river", "stone", "window", "garden", "letter", "morning", "bridge", "copper", "silent"]


@dataclass(frozen=True)
class Held:
    """What a process holds while nobody asks it anything."""

    requests: int
    files: int
    threads: int
    rss: int  # bytes
    running: float  # answers
    waiting: float


def request(rng: random.Random) -> bytes:
    """One of the requests that people send."""
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 30)))
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 24), "stream": rng.random() < 0.6}
    if rng.random() < 0.5:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": text}]
    else:
        path = "/v1/completions"
        body |= {"prompt": text, "echo": rng.random() < 0.2, "n": rng.choice([1, 1, 2])}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def exchange(port: int, sent: bytes, leave_after: float | None) -> str:
    """How it went: "ok", "cut" or what came instead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), leave_after)
    except asyncio.TimeoutError:
        return "cut"
    except OSError as error:
        return type(error).__name__
    finally:
        writer.transport.abort() if leave_after is not None else writer.close()
    if leave_after is not None:
        return "cut"
    whole = answer.startswith(b"HTTP/1.1 200 ") and b'"error"' not in answer[:400]
    return "ok" if whole else answer[:200].decode(errors="replace")


async def storm(port: int, count: int, cut: float, longest: float, seed: int) -> dict[str, int]:
    """How many of `count` requests went how; those cut off leave within `longest` seconds."""
    rng = random.Random(seed)
    gate = asyncio.Semaphore(CONNECTIONS)
    seen: dict[str, int] = {}

    async def one() -> None:
        sent = request(rng)
        leave = rng.random() * longest if rng.random() < cut else None
        if leave is not None and rng.random() < 0.2:
            sent = sent[: rng.randrange(len(sent))]
        async with gate:
            how = await exchange(port, sent, leave)
        seen[how] = seen.get(how, 0) + 1

    await asyncio.gather(*(one() for _ in range(count)))
    return seen


def still(process: int, port: int, requests: int) -> Held:
    """What the server holds once nothing runs; waits a minute for that."""
    end = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        running, waiting = (
            sum(map(float, re.findall(rf"^dure:num_requests_{which}\S* (\S+)$", text, re.M)))
            for which in ("running", "waiting")
        )
        if running + waiting == 0 or time.monotonic() > end:
            break
        time.sleep(0.2)
    time.sleep(1)  # for connections to be closed
    status = Path(f"/proc/{process}/status").read_text()
    held = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.M)}
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return Held(requests, files, held["Threads"], held["VmRSS"] << 10, running, waiting)


def measure(process: int, port: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures, from a server that is ready."""
    began = time.perf_counter()
    asyncio.run(storm(port, WARM_UP, 0, 0, 0))
    mean = (time.perf_counter() - began) * CONNECTIONS / WARM_UP  # seconds of a request
    held = [still(process, port, 0)]
    seen: dict[str, int] = {}
    tenth = options.requests // 10
    for part in range(10):
        for how, count in asyncio.run(
            storm(port, tenth, options.cut, 1.5 * mean, 1 + part)
        ).items():
            seen[how] = seen.get(how, 0) + count
        held.append(still(process, port, (part + 1) * tenth))
    rss = [each.rss for each in held]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "a_request_s": round(mean, 3),
        "seen": seen,
        "held": [asdict(each) for each in held],
        "rss_growth_second_half": round(rss[-1] / statistics.median(rss[5:7]) - 1, 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--cut", type=float, default=0.3, help="share of them that leaves early")
    options = parser.parse_args()
    command = [sys.executable, "-m", "dure", "serve", options.model, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        line = next(each for each in server.stderr if "listens on" in each)
        port = int(re.findall(r":(\d+)/", line)[0])
        result = measure(server.pid, port, options)
    finally:
        server.terminate()
        result_code = server.wait()
    json.dump({**result, "exit_code": result_code}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
