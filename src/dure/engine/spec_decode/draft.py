"""What the engine asks of whoever guesses tokens, and what it tells them of the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dure.engine.request import Request


@dataclass(frozen=True)
class Draft:
    """Tokens that may follow a request's own.

    kinds: a name for each token, as "model" or, to tell more apart, "model:3". Guesses of one kind
    are expected to be right equally often, if all before them are.
    """

    token_ids: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """What one step made of one request's rows."""

    request: Request
    start: int  # the position of its first row
    count: int  # its rows that are in the cache now; those of wrong drafts are not
    first_row: int  # of the batch
    token_ids: tuple[int, ...]  # what was drawn; none while its prompt is computed


@dataclass(frozen=True)
class StepResult:
    """What one step did: its rows, those of wrong drafts too, and how long it took."""

    verified: Sequence[Verified]
    rows: int
    seconds: float  # of the forward pass


class Drafter(Protocol):
    """Guesses what comes next in the requests that decode."""

    @property
    def max_drafts(self) -> int:
        """How many tokens it guesses for one request at most."""
        ...

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> Sequence[Sequence[int]]:
        """Return for each request token ids that may follow `request.tokens`; none is fine.

        limits: how many of them there may be; the block tables have room for so many. rows: of the
        step without drafts.
        """
        ...

    def observe(self, step: StepResult) -> None:
        """Learn what a step came to. Called after each, before the next `propose`."""
        ...

    def forget(self, request: Request) -> None:
        """Drop what is kept of a request that has ended."""
        ...
