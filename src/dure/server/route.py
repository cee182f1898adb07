"""Route: a path, its handler, and the schema of its body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from dure.server.serving.service import Service

Handler = Callable[["Service", Request], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """One path. `shape` is the schema of its body; if `versioned`, it is also served under /v1."""

    method: str
    path: str
    handler: Handler
    shape: type[BaseModel] | None = None
    versioned: bool = True
