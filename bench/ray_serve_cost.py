"""What does Ray Serve take of each token that is streamed, beside a hop to our event loop?

    python bench/ray_serve_cost.py [tokens]

Sixteen streams of so many tokens each (300), which nothing computes. Three ways: from a replica of
Ray Serve through a handle, as a server before it would ask; the same through Serve's own HTTP
proxy, which is as a client would; and from a thread to an event loop, which is how an engine of
ours hands out a step. Prints microseconds of wall clock and of processor time a token, of all
processes together. Needs `pip install 'ray[serve]'` and httpx.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import httpx
import psutil
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

STREAMS, PORT, ROUNDS = 16, 8642, 3
CHUNK = '{"choices":[{"index":0,"delta":{"content":"word"}}],"object":"chat.completion.chunk"}'


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Tokens:
    """A replica that has its tokens at once."""

    async def stream(self, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            yield CHUNK
            await asyncio.sleep(0)  # as if each came by itself

    async def __call__(self, request: Request) -> StreamingResponse:
        count = int(request.query_params["count"])
        lines = (f"data: {chunk}\n\n" async for chunk in self.stream(count))
        return StreamingResponse(lines, media_type="text/event-stream")


def processes() -> Iterator[psutil.Process]:
    """This process, and all that Ray started below it."""
    own = psutil.Process()
    yield own
    yield from own.children(recursive=True)
    for each in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(each.info["cmdline"] or [])
        if "ray::" in words or "raylet" in (each.info["name"] or "") or "gcs_server" in words:
            yield each


def processor_seconds() -> float:
    """Processor seconds of all of them so far."""
    total = 0.0
    for each in {each.pid: each for each in processes()}.values():
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


async def by_handle(count: int) -> None:
    handle = serve.get_app_handle("default").options(stream=True)

    async def read() -> None:
        got = 0
        async for _ in handle.stream.remote(count):
            got += 1
        assert got == count

    await asyncio.gather(*(read() for _ in range(STREAMS)))


async def by_http(count: int) -> None:
    async with httpx.AsyncClient(timeout=600) as client:

        async def read() -> None:
            size = 0
            address = f"http://127.0.0.1:{PORT}/?count={count}"
            async with client.stream("GET", address) as answer:
                async for piece in answer.aiter_bytes():
                    size += len(piece)
            assert size == count * (len(CHUNK) + 8)

        await asyncio.gather(*(read() for _ in range(STREAMS)))


async def by_thread(count: int) -> None:
    """An engine's thread, whose steps bring a token to each stream."""
    loop = asyncio.get_running_loop()
    queues = [asyncio.Queue[str]() for _ in range(STREAMS)]

    def deliver(chunks: list[str]) -> None:
        for queue, chunk in zip(queues, chunks, strict=True):
            queue.put_nowait(chunk)

    def step() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(deliver, [CHUNK] * STREAMS)

    async def read(queue: asyncio.Queue[str]) -> None:
        for _ in range(count):
            await queue.get()

    thread = threading.Thread(target=step)
    thread.start()
    await asyncio.gather(*map(read, queues))
    thread.join()


async def measured(name: str, way: Callable[[int], Awaitable[None]], count: int) -> None:
    await way(20)
    best: tuple[float, float] | None = None
    for _ in range(ROUNDS):
        cpu, began = processor_seconds(), time.perf_counter()
        await way(count)
        seconds, used = time.perf_counter() - began, processor_seconds() - cpu
        best = min(best or (seconds, used), (seconds, used))
    assert best is not None
    wall, used = (1e6 * each / (count * STREAMS) for each in best)
    print(f"{name:<28}{wall:8.1f} us a token, {used:8.1f} us of processors", flush=True)


async def main(count: int) -> None:
    await measured("Ray Serve, handle", by_handle, count)
    await measured("Ray Serve, its HTTP proxy", by_http, count)
    await measured("thread to event loop", by_thread, 10 * count)


if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Tokens.bind(), route_prefix="/")
    try:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300))
    finally:
        serve.shutdown()
        ray.shutdown()
