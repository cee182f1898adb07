"""Drafts from a grammar: tokens that it leaves no choice about, as the keys of a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.engine.spec_decode.draft import Draft

if TYPE_CHECKING:
    from dure.engine.request import Request


class GrammarDrafter:
    """Guesses what a request's grammar forces; keeps nothing."""

    def propose(self, request: Request, limit: int) -> Draft:
        """Return up to `limit` tokens that must follow."""
        grammar = request.constraint
        token_ids = () if grammar is None else tuple(grammar.forced_tokens(limit))
        return Draft(token_ids, ("grammar",) * len(token_ids))

    def forget(self, request: Request) -> None:
        """Do nothing: what there is belongs to the request."""
