"""The tenant of a request, which every handler needs besides the body."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


def tenant(request: Request) -> str:
    """Return the request's tenant: prefixes are shared among requests of one tenant only."""
    return str(getattr(request.state, "tenant", ""))
