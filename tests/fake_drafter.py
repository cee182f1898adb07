"""A drafter that tries all that its sources suggest, however long steps take."""

from __future__ import annotations

from collections.abc import Sequence

from dure.engine.request import Request
from dure.engine.spec_decode.draft import StepResult
from dure.engine.spec_decode.speculator import TextSource


class TryAll:
    """Takes the first source's draft that is not empty."""

    max_drafts = 8

    def __init__(self, *sources: TextSource) -> None:
        self.sources = sources

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> list[tuple[int, ...]]:
        drafts = []
        for request, limit in zip(requests, limits, strict=True):
            made = [source.propose(request, limit).token_ids for source in self.sources]
            drafts.append(next(filter(None, made), ()))
        return drafts

    def observe(self, step: StepResult) -> None:
        pass

    def forget(self, request: Request) -> None:
        for source in self.sources:
            source.forget(request)
