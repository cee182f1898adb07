"""How does a server hold up under many streams at once? Prints one JSON object.

    python bench/serve_load.py http://127.0.0.1:8000 --streams 32 --minutes 10

Any server with OpenAI's chat completions will do: the same load for dure and for others. Each
stream asks, reads its answer to the end, and asks again, until the time is up. The client is made
of bare sockets, since it shares the machine's cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "morning",
    "bridge",
    "copper",
    "silent",
    "market",
    "winter",
    "harbour",
    "lantern",
    "paper",
    "journey",
    "mountain",
    "orchard",
    "thunder",
    "village",
    "meadow",
]


@dataclass
class Stream:
    """What one client saw."""

    tokens: int = 0
    answers: int = 0
    seconds: float = 0.0  # of answering
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """Where to, and what is asked."""

    host: str
    port: int
    key: str
    model: str
    words: int
    tokens: int
    end: float


def request(load: Load, rng: random.Random) -> bytes:
    """The bytes of one request: a prompt that nobody has asked before, and a long answer."""
    text = " ".join(rng.choice(WORDS) for _ in range(load.words))
    body = {
        "model": load.model,
        "messages": [{"role": "user", "content": f"Write a long story with: {text}"}],
        "max_tokens": load.tokens,
        "ignore_eos": True,
        "temperature": 0.7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {load.host}:{load.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "Connection: close",
        *([f"Authorization: Bearer {load.key}"] if load.key else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + data


async def client(load: Load, number: int, stream: Stream) -> None:
    """Nothing; asks and reads until the time is up."""
    rng = random.Random(number)
    while time.perf_counter() < load.end:
        try:
            await ask(load, rng, stream)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            stream.errors.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(0.5)


async def ask(load: Load, rng: random.Random, stream: Stream) -> None:
    """Nothing; one answer is read to its end."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(load.host, load.port)
    try:
        writer.write(request(load, rng))
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"{status!r} {await reader.read(500)!r}")
        last, done = 0.0, False
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            now = time.perf_counter()
            if line.startswith(b"data: [DONE]"):
                done = True
            elif b'"completion_tokens"' in line:
                usage = json.loads(line[6:]).get("usage") or {}
                stream.tokens += usage.get("completion_tokens", 0)
            elif b'"error"' in line[:40]:
                raise ValueError(line[:200].decode(errors="replace"))
            elif b'"content":"' in line and b'"content":""' not in line:
                if last:
                    stream.between.append(now - last)
                else:
                    stream.first.append(now - began)
                last = now
        if not done:
            raise ValueError("the stream broke off")
        stream.answers += 1
        stream.seconds += time.perf_counter() - began
    finally:
        writer.close()


async def probe(load: Load, latencies: list[float]) -> None:
    """Nothing; asks /health twice a second."""
    ask_health = f"GET /health HTTP/1.1\r\nHost: {load.host}\r\nConnection: close\r\n\r\n".encode()
    while time.perf_counter() < load.end:
        began = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection(load.host, load.port)
            writer.write(ask_health)
            await reader.read()
            writer.close()
            latencies.append(time.perf_counter() - began)
        except OSError:
            latencies.append(float("inf"))
        await asyncio.sleep(0.5)


def quantile(values: list[float], share: float) -> float:
    """The value below which that share lies; 0 of none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4) if ordered else 0.0


async def measure(load: Load, count: int, seconds: float) -> dict[str, object]:
    """The figures of `count` streams."""
    streams = [Stream() for _ in range(count)]
    health: list[float] = []
    clients = [client(load, number, stream) for number, stream in enumerate(streams)]
    began = time.perf_counter()
    await asyncio.gather(*clients, probe(load, health))
    took = time.perf_counter() - began
    rates = [each.tokens / each.seconds for each in streams if each.seconds]
    first = [value for each in streams for value in each.first]
    between = [value for each in streams for value in each.between]
    errors = [error for each in streams for error in each.errors]
    return {
        "streams": count,
        "seconds": round(took, 1),
        "wanted_seconds": seconds,
        "answers": sum(each.answers for each in streams),
        "tokens": sum(each.tokens for each in streams),
        "tokens_per_second": round(sum(each.tokens for each in streams) / took, 2),
        "slowest_over_median": round(min(rates) / statistics.median(rates), 3) if rates else 0,
        "first_token_s": {"p50": quantile(first, 0.5), "p99": quantile(first, 0.99)},
        "between_tokens_s": {"p50": quantile(between, 0.5), "p99": quantile(between, 0.99)},
        "health_s": {"p50": quantile(health, 0.5), "worst": quantile(health, 1.0)},
        "errors": len(errors),
        "first_errors": errors[:3],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--words", type=int, default=40, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--model", default="")
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    parts = urlsplit(options.url)
    load = Load(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 80,
        key=options.key,
        model=options.model,
        words=options.words,
        tokens=options.tokens,
        end=time.perf_counter() + 60 * options.minutes,
    )
    result = asyncio.run(measure(load, options.streams, 60 * options.minutes))
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
