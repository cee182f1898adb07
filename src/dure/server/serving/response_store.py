"""Responses that a client can refer to by id, kept in memory within limits."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dure.server import limits
from dure.server.errors import HTTPError

if TYPE_CHECKING:
    from dure.server.serving.generation import Generation


@dataclass
class StoredResponse:
    """One response as it was sent, and the messages that the next one continues."""

    tenant: str
    response: dict[str, Any]
    items: list[dict[str, Any]] = field(default_factory=list)  # its own input
    messages: list[dict[str, Any]] = field(default_factory=list)  # all so far, without instructions
    generation: Generation | None = None  # while it runs
    size: int = 0

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.response["id"])


class Store:
    """The newest responses of every tenant; the least recently used one is dropped first."""

    def __init__(
        self,
        *,
        most: int = limits.MAX_KEPT_RESPONSES,
        most_bytes: int = limits.MAX_KEPT_BYTES,
    ) -> None:
        self._kept: OrderedDict[str, StoredResponse] = OrderedDict()
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, kept: StoredResponse) -> None:
        """Store the response under its id, until newer ones need its place."""
        self._forget(kept.id)
        kept.size = len(json.dumps([kept.response, kept.items, kept.messages]))
        self._kept[kept.id] = kept
        self._bytes += kept.size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._forget(self._oldest_of_largest())

    def find(self, identity: str, tenant: str) -> StoredResponse:
        """Return the response with that id.

        Raises a 404 if it is not this tenant's, or is not stored any more.
        """
        kept = self._kept.get(identity)
        if kept is None or kept.tenant != tenant:
            raise HTTPError(
                404,
                f"No response with the id {identity[:80]!r} is kept here. The newest "
                f"{self._most:,} are, until the server ends.",
                param="previous_response_id",
                code="response_not_found",
            )
        self._kept.move_to_end(identity)
        return kept

    def drop(self, kept: StoredResponse) -> None:
        """Remove the response, if it is stored."""
        if self._kept.get(kept.id) is kept:
            self._forget(kept.id)

    def _oldest_of_largest(self) -> str:
        """Return the id to forget: the oldest of the tenant that holds the largest share.

        So no tenant can push out the responses of one that holds less.
        """
        shares: dict[str, float] = {}
        for kept in self._kept.values():
            share = max(kept.size / self._most_bytes, 1 / self._most)
            shares[kept.tenant] = shares.get(kept.tenant, 0.0) + share
        largest = max(shares, key=shares.__getitem__)
        return next(name for name, kept in self._kept.items() if kept.tenant == largest)

    def _forget(self, identity: str) -> None:
        kept = self._kept.pop(identity, None)
        if kept is not None:
            self._bytes -= kept.size
