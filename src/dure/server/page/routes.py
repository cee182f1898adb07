"""Routes of the pages for a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from dure.server.ollama import models as ollama_models
from dure.server.page.files import DOCUMENTS, PREFIX, wants_html

if TYPE_CHECKING:
    from starlette.requests import Request

    from dure.server.page.files import File, Page
    from dure.server.serving.service import Service


async def root(service: Service, request: Request) -> Response:
    """GET and HEAD /: the chat for a browser; else the line by which clients recognise Ollama."""
    page: Page | None = request.app.state.page
    if page is not None and wants_html(request.headers.get("accept", "")):
        answer = _answer(request, page.document("/"))
    else:
        answer = await ollama_models.root(service, request)
    answer.headers["Vary"] = "Accept"
    return answer


def page_routes(page: Page) -> list[Route]:
    """Make the routes of the pages besides /. They are no part of the API's description."""

    async def document(request: Request) -> Response:
        return _answer(request, page.document(request.url.path))

    async def file(request: Request) -> Response:
        found = page.file(request.path_params["name"])
        if found is None:  # of another version: whoever asks has an old page open
            return Response(status_code=404)
        return _answer(request, found)

    paths = [path for path in DOCUMENTS if path != "/"]
    return [
        *(Route(path, document, include_in_schema=False) for path in paths),
        Route(PREFIX + "{name:path}", file, include_in_schema=False),
    ]


def _answer(request: Request, file: File) -> Response:
    known = request.headers.get("if-none-match", "")
    if file.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, media_type=file.media_type, headers=file.headers)
