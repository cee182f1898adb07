"""Server-sent events: frames, ping comments, and cancellation when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from dure.server import errors, limits

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

log = logging.getLogger("dure.server")
T = TypeVar("T")

_PIECE = 1024  # entries of a list
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class ClientGone(Exception):  # noqa: N818 - it is no error of anyone's
    """The client closed its connection before the response was complete."""


def data(value: Any) -> bytes:
    """Encode `value` as the JSON of one event."""
    return (
        b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


def event(name: str, value: Any) -> bytes:
    """Encode `value` as the JSON of one named event."""
    return b"event: " + name.encode() + b"\n" + data(value)


def json_response(value: Any, *, status: int = 200) -> Response:
    """Build a complete JSON response."""
    return Response(json_text(value).encode(), status, media_type="application/json")


def json_text(value: Any) -> str:
    """Encode `value` as JSON, long lists in pieces: json holds Python's lock during each call."""
    return "".join(_json_pieces(value))


def _json_pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        before = "{"
        for name, each in value.items():
            yield f"{before}{json.dumps(name, ensure_ascii=False)}:"
            yield from _json_pieces(each)
            before = ","
        yield "}" if value else "{}"
    elif isinstance(value, list) and len(value) > _PIECE:
        before = "["
        for start in range(0, len(value), _PIECE):
            part = json.dumps(
                value[start : start + _PIECE], ensure_ascii=False, separators=(",", ":")
            )
            yield before + part[1:-1]
            before = ","
        yield "]"
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        before = "["
        for each in value:
            yield before
            yield from _json_pieces(each)
            before = ","
        yield "]"
    else:
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class FrameStream(Response):
    """A streaming response of frames.

    It sends `ping` while there are no frames. `close` is always called at the end, also after a
    disconnect or an error.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        close: Callable[[], None],
        *,
        on_error: Callable[[errors.HTTPError], bytes],
        ping: bytes = PING,
        media_type: str = "text/event-stream",
    ) -> None:
        """on_error: makes the frame that reports an error in midstream."""
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.headers["X-Accel-Buffering"] = "no"
        self._frames = frames
        self._close = close
        self._ping = ping
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send all frames; stop when the client disconnects."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with contextlib.suppress(ClientGone):
                await cancel_on_disconnect(receive, self._send_all(send))
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()

        async def say(frame: bytes) -> None:
            nonlocal sent
            sent = loop.time()
            await send({"type": "http.response.body", "body": frame, "more_body": True})

        async def ping() -> None:
            while True:
                await asyncio.sleep(max(0.05, sent + limits.PING_SECONDS - loop.time()))
                if loop.time() - sent >= limits.PING_SECONDS:
                    await say(self._ping)

        pinging = loop.create_task(ping()) if self._ping else None
        try:
            async for frame in self._frames:
                await say(frame)
        except Exception as error:
            await say(self._on_error(_told(error)))
        finally:
            if pinging is not None:
                pinging.cancel()
        await send({"type": "http.response.body", "body": b""})


def sse_error(error: errors.HTTPError) -> bytes:
    """Encode an error as an event of OpenAI's stream."""
    return data(errors.openai_body(error))


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it if the client disconnects.

    The request's body must have been received. Returns what `work` returns. Raises ClientGone if
    the client disconnects first.
    """
    loop = asyncio.get_running_loop()
    working, watching = loop.create_task(work), loop.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(error: Exception) -> errors.HTTPError:
    """Convert an error in midstream to what the client may see; log one that is not ours."""
    if not errors.is_ours(error):
        log.error("a stream failed", exc_info=error)
    return errors.of(error)
