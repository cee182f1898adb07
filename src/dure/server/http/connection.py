"""A connection with timeouts: uvicorn's HTTP, with limits on slow request heads and slow readers.

uvicorn waits for ever for the rest of a request's head, and for a client to read. Both are bounded
here, by nothing but the public callbacks of an asyncio.Protocol and what the ASGI application
reports through `Connections`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dure.server import errors, limits


class Connections:
    """The open connections of one server, by the address that ASGI calls `client`."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], KeptConnection] = {}
        self.most = most_connections()

    def began(self, client: tuple[str, int] | None) -> None:
        """Stop the head timer: the application has received the request's head."""
        if client is not None and client in self.open:
            self.open[client].head_received()

    def ended(self, client: tuple[str, int] | None) -> None:
        """Note that the application has answered the request."""
        if client is not None and client in self.open:
            self.open[client].answered()

    def protocol(self, *arguments: Any, **options: Any) -> KeptConnection:
        """Create a KeptConnection; uvicorn calls this for every new connection."""
        return KeptConnection(self, *arguments, **options)


class KeptConnection(H11Protocol):
    """One connection. It is closed if a request's head is slow to come, or its client to read."""

    def __init__(self, connections: Connections, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections = connections
        self._client: tuple[str, int] | None = None
        self._raw: asyncio.Transport | None = None
        self._busy = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection and start the timer for the first request's head."""
        self._raw = transport
        if len(self._connections.open) >= self._connections.most:
            transport.abort()  # keep file descriptors for the connections that are open already
            return
        super().connection_made(transport)
        self._client = self.client
        if self._client is not None:
            self._connections.open[self._client] = self
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection and stop its timers."""
        self._stop_head_timer()
        self.resumed()
        if self._client is None:
            return
        self._connections.open.pop(self._client, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a body or of the next request's head."""
        if self._client is None:
            return
        if not self._busy and self._head_timer is None:
            self._await_head()
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - it is h11's, and not ours
        """Answer input that is not valid HTTP with a 400 in JSON, and close the connection.

        Where an answer to an earlier request has begun, or was the last, none can follow it.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what its request's handler still sends is dropped
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        asked = self.conn.our_state is h11.SEND_RESPONSE  # its head was sound, and its body is not
        without_body = asked and self.scope["method"] == "HEAD"
        limit = limits.MAX_HEADER_BYTES
        sentence = f"This is not a valid HTTP request, or its head has over {limit:,} bytes."
        body = json.dumps(errors.openai_body(errors.invalid(sentence))).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=b"" if without_body else body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Start the timer that cuts off a client which does not read."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(limits.STALLED_SECONDS, self._cut)

    def resume_writing(self) -> None:
        """Stop that timer: the client is reading again."""
        self.resumed()
        super().resume_writing()

    def resumed(self) -> None:
        """Stop the timer for a client that does not read."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def head_received(self) -> None:
        """Stop the timer for the head; the connection is busy."""
        self._busy = True
        self._stop_head_timer()

    def answered(self) -> None:
        """Mark the connection as waiting for the next head."""
        self._busy = False

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(limits.HEAD_SECONDS, self._cut)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cut(self) -> None:
        if self._raw is not None:
            self._raw.abort()


def most_connections() -> int:
    """Return how many connections may be open: our limit, or fewer if the system allows less."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return limits.MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.MAX_CONNECTIONS
    return max(4, min(limits.MAX_CONNECTIONS, soft - limits.SPARE_FILES))
