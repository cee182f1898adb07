"""A server in this process, and what asks it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

from dure import LLM
from dure.server.run import Server, Settings

AT_ONCE = 16
Post = Callable[[dict[str, Any]], Any]


@contextmanager
def served(open_llm: Callable[[], LLM]) -> Iterator[Post]:
    """A server over a model; gives what asks it.

    It returns what `joined` does. A stream must come to its end.
    """
    server = Server(
        Settings(models=("tiny",), port=0, parallel=AT_ONCE, drain_seconds=10.0),
        lambda _: open_llm(),
    )
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()

    def post(body: dict[str, Any]) -> Any:
        connection = HTTPConnection("127.0.0.1", server.address[1], timeout=300)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
        finally:
            connection.close()
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line[:5] == "data:"]
        if body.get("stream"):
            assert lines.pop() == "[DONE]", text
        return joined([json.loads(line) for line in lines or [text]])

    try:
        yield post
    finally:
        loops[0].call_soon_threadsafe(server.stop)
        thread.join()


def joined(parts: list[dict[str, Any]]) -> tuple[str, str, list[Any]]:
    """The text, how it ended, and each token with its floats, however many events told them."""
    assert all("error" not in part for part in parts), parts
    choices = [choice for part in parts for choice in part["choices"]]
    said = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    tokens = [
        token
        for each in said
        for token in zip(each["tokens"], each["token_logprobs"], each["top_logprobs"], strict=True)
    ]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"], tokens


def under_load(post: Post, asked: list[dict[str, Any]]) -> list[Any]:
    """All at once, so that some wait for a place; the answers in the order of the questions."""
    found: dict[int, Any] = {}

    def one(number: int) -> None:
        time.sleep(0.01 * number)  # they come in while others run
        found[number] = post(asked[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(asked))]
