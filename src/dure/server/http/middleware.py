"""ASGI middleware before every route: Host, API key, request id, access log, error responses."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dure.server import errors, limits
from dure.server.http.auth import PUBLIC, Hosts, Keys, Origins
from dure.server.logs import FIELDS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dure.server.http.connection import Connections
    from dure.server.page.files import Page

log = logging.getLogger("dure.server")
access = logging.getLogger("dure.server.access")


class RequestMiddleware:
    """ASGI middleware. Requests that pass have `tenant` and `request_id` in their state."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        hosts: Hosts,
        origins: Origins | None = None,
        connections: Connections | None = None,
        page: Page | None = None,
        on_failure: Callable[[int], None] | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._hosts = hosts
        self._origins = origins or Origins()
        self._connections = connections
        self._page = page
        self._on_failure = on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, pass it on, and turn any exception into an error response."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if self._connections is not None:
            self._connections.began(scope["client"])
        try:
            await self._answer(scope, receive, send)
        finally:
            if self._connections is not None:
                self._connections.ended(scope["client"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        request_id = "req-" + secrets.token_hex(8)
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id
        try:
            headers = dict(scope["headers"])
            _check_head(scope, headers)
            self._hosts.check(headers)
            if not self._keys:  # with keys, a foreign page does not know one
                self._origins.check(headers)
            if not self._is_public(scope, headers):
                scope["state"]["tenant"] = self._keys.tenant(headers)
            await self._app(scope, receive, watched)
        except Exception as error:
            known = errors.of(error)
            if not errors.is_ours(error):
                log.exception("%s %s failed", request_id, scope["path"])
            if status:  # the response has begun: all that is left is to break the connection
                raise
            await send_error(scope["path"], known, watched)
        finally:
            if status >= 400 and self._on_failure is not None:
                self._on_failure(status)
            milliseconds = 1000 * (time.perf_counter() - began)
            told = {
                "request": request_id,
                "method": scope["method"],
                "path": _printable(scope["path"]),
                "status": status,
                "ms": round(milliseconds, 3),
            }
            access.info("%s %s %s %d %.0f ms", *told.values(), extra={FIELDS: told})

    def _is_public(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        if scope["path"] in PUBLIC:
            return True
        page = self._page
        return page is not None and page.is_public(scope["method"], scope["path"], headers)


async def send_error(path: str, error: errors.HTTPError, send: Callable[[Any], Any]) -> None:
    """Send the error as the whole response, in the form of the API that `path` belongs to."""
    body = json.dumps(errors.body_for(path, error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), text.encode()) for name, text in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _check_head(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Refuse a head that is too long or gives two body lengths, and close the connection.

    h11 bounds a head that comes in several packets; one that comes whole passes it.
    """
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > limits.MAX_HEADER_BYTES:
        raise errors.HTTPError(
            431,
            f"The request's head has {size:,} bytes; the limit is {limits.MAX_HEADER_BYTES:,}.",
            code="head_too_large",
            headers={"Connection": "close"},
        )
    if b"transfer-encoding" in headers and b"content-length" in headers:
        raise errors.HTTPError(
            400,
            "A request has either Content-Length or Transfer-Encoding, not both.",
            code="two_lengths",
            headers={"Connection": "close"},
        )


def _printable(path: str) -> str:
    """Replace unprintable characters, so that a path cannot forge a log line."""
    return "".join(c if c.isprintable() else "?" for c in path[:200])
