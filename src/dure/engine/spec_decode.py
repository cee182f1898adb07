"""Speculative decoding: who guesses tokens. The engine checks them, and no answer depends on them.

A guess is accepted exactly when it is the token that would have been drawn anyway: a draw depends
on the logits, the request and its position alone, and logits on no other row of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dure.engine.request import Request


class Drafter(Protocol):
    """Guesses what comes next in a request."""

    def propose(self, request: Request, limit: int) -> Sequence[int]:
        """Return up to `limit` token ids that may follow `request.tokens`; none is fine."""
        ...
