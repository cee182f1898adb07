"""The FastAPI application: every route, and the error response for whatever a handler raises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dure import __version__
from dure.errors import DureError
from dure.server import errors, limits
from dure.server.errors import HTTPError
from dure.server.http.sse import ClientGone, FrameStream, json_response
from dure.server.openapi import publish
from dure.server.page.files import Page
from dure.server.page.routes import page_routes
from dure.server.route import Handler
from dure.server.routes import ROUTES
from dure.server.wire.body import BodyReader, release
from dure.server.wire.budget import Budget, no_room_for_vectors
from dure.server.wire.cost import add_headers

if TYPE_CHECKING:
    from dure.server.serving.service import Service

log = logging.getLogger("dure.server")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected before the response; only the log shows it."""


def make_app(
    service: Service,
    *,
    page: Page | None = None,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Build the FastAPI application. page: what a browser is shown; None: no pages.

    It checks neither API keys nor hosts: RequestMiddleware does, before the application is called.
    """
    app = FastAPI(
        title="dure",
        version=__version__,
        description="Open-weight language models on this machine's CPU.",
        docs_url=None,  # its page fetches scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )

    async def off_loop(work: Callable[[], Any]) -> Any:
        return await service.off_loop(work)

    app.state.bodies = BodyReader(off_loop)
    app.state.vectors = Budget(limits.MAX_VECTOR_BYTES, no_room_for_vectors)
    app.state.page = page
    described: list[tuple[str, str, type[BaseModel] | None]] = []
    for route in ROUTES:
        answer = _answering(service, route.handler)
        for path in (f"/v1{route.path}", route.path) if route.versioned else (route.path,):
            app.add_api_route(
                path,
                answer,
                methods=[route.method],
                response_model=None,
                operation_id=f"{route.method.lower()}{path}",
                description=(route.handler.__doc__ or "").strip(),
            )
            described.append((route.method, path, route.shape))
    publish(app, described)
    app.router.routes.extend([] if page is None else page_routes(page))
    app.add_exception_handler(HTTPException, _unknown)
    return app


def _answering(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Wrap a handler as a route that turns every exception into an error response."""

    async def answer(request: Request) -> Response:
        try:
            response = await handler(service, request)
            if not isinstance(response, FrameStream):  # whose head goes before its cost is known
                add_headers(response, getattr(request.state, "generations", ()))
            _name_ignored(request, response)
            return response
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the panic of a library in Rust is no Exception
            known = errors.of(error)
            if not errors.is_ours(error):
                log.exception("%s failed", request.state.request_id)
            elif isinstance(error, DureError) and error.detail:
                log.info("%s: %s", request.state.request_id, error.detail)
            response = _error(request, known)
            _name_ignored(request, response)
            return response
        finally:
            release(request)

    return answer


def _name_ignored(request: Request, response: Response) -> None:
    """Say in a header and in the log which fields of the body had no effect."""
    names = getattr(request.state, "ignored", ())
    if names:
        response.headers["x-dure-ignored"] = ", ".join(names)
        log.info("%s: no effect of %s", request.state.request_id, ", ".join(names))


def _error(request: Request, error: HTTPError) -> Response:
    answer = json_response(errors.body_for(request.url.path, error), status=error.status)
    answer.headers.update(error.headers)
    return answer


async def _unknown(request: Request, error: Any) -> Response:
    """Answer an unknown path or method with an error in the form of that path's API."""
    method, path = request.method, request.url.path[:120]
    if error.status_code == 405:
        known = HTTPError(
            405, f"Method {method} is not allowed on {path}.", code="method_not_allowed"
        )
    else:
        known = HTTPError(
            error.status_code, f"{method} {path} does not exist on this server.", code="not_found"
        )
    known.headers = error.headers or {}
    return _error(request, known)
