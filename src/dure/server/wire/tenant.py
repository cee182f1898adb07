"""What every handler wants to know of a request beside its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request


def tenant(request: Request) -> str:
    """Who asks: requests of one tenant share prefixes, and nothing with another's."""
    return str(getattr(request.state, "tenant", ""))
