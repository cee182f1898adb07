"""DraftModel: guesses by a smaller model of the same vocabulary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE
from dure.engine.spec_decode.computed import Rows, kind_of, rows_batch
from dure.engine.spec_decode.cost import StepCost
from dure.engine.spec_decode.draft import Draft

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.engine.model_runner import ModelRunner
    from dure.engine.request import Request
    from dure.engine.sampler import Sampler
    from dure.engine.spec_decode.draft import StepResult

# Rows in one pass: a long prompt is caught up with in several steps, which its answer need not
# wait for.
MAX_ROWS = 256


@dataclass
class _Progress:
    """How far the draft model has computed one request."""

    preemptions: int
    computed: int  # tokens whose keys and values it has
    guessed: list[int] = field(default_factory=list)  # computed behind those, right or wrong
    published: int = 0  # full blocks noted in DraftModel._done


class DraftModel:
    """Guesses token by token, for all requests in one pass. It computes a prompt when first asked.

    Its keys and values lie in the request's own blocks. A block that was found again has them if it
    computed all of it: that is noted by the block's digest.
    """

    kind = "model"

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        """runner: has the draft model. sampler: draws as the engine does."""
        assert runner.draft_model is not None
        self.cost = StepCost()
        self._runner, self._sampler = runner, sampler
        self._vocab_size = min(runner.vocab_size, runner.draft_model.vocab_size)
        self._context_length = runner.draft_model.context_length
        self._progress: dict[Request, _Progress] = {}
        self._done: dict[int, bytes] = {}  # block -> the digest of what was computed into it

    def propose(
        self,
        requests: Sequence[Request],
        limits: Sequence[int],
        goes_on: Callable[[int, Sequence[str]], bool],
    ) -> list[Draft]:
        """Guess for each request while `goes_on` says so, `limits` tokens at most."""
        guessed: list[list[int]] = [[] for _ in requests]
        kinds: list[list[str]] = [[] for _ in requests]
        active = self._catch_up(requests, limits)
        while active:
            rows = [self._next_rows(requests[place], guessed[place]) for place in active]
            for place, (token_id, probability) in zip(
                active, self._guess(rows, len(guessed[active[0]])), strict=True
            ):
                if 0 <= token_id < self._vocab_size:
                    guessed[place].append(token_id)
                    kinds[place].append(kind_of(self.kind, probability))
            depth = len(guessed[active[0]])
            active = [
                place
                for place in active
                if len(guessed[place]) == depth < limits[place] and goes_on(place, kinds[place])
            ]
        return [Draft(tuple(g), tuple(k)) for g, k in zip(guessed, kinds, strict=True)]

    def observe(self, step: StepResult, *, wanted: bool) -> None:
        """Do nothing: what it lacks of a request is computed when it is asked to guess."""

    def forget(self, request: Request) -> None:
        """Drop how far the request was computed."""
        self._progress.pop(request, None)

    def _catch_up(self, requests: Sequence[Request], limits: Sequence[int]) -> list[int]:
        """Compute what is far behind; return which requests are near enough to guess for."""
        active, rows, room = [], [], MAX_ROWS
        for place, request in enumerate(requests):
            progress = self._synced(request)
            if len(request.tokens) + limits[place] > self._context_length:
                continue
            lacking = len(request.tokens) - progress.computed
            if lacking <= MAX_ROWS // 4:
                active.append(place)
            elif room > 0:
                count = min(room, lacking - 1)
                room -= count
                start = progress.computed
                rows.append(Rows(request, start, request.tokens[start : start + count], False))
                progress.computed += count
        if rows:
            self._compute(rows)
            for each in rows:
                self._note(each.request)
        return active

    def _compute(self, rows: Sequence[Rows]) -> NDArray[np.float32]:
        """Run the draft model; return the logits of the wanted rows."""
        for each in rows:  # what a block held of other tokens is written over
            first = each.start // BLOCK_SIZE
            last = (each.start + len(each.token_ids) - 1) // BLOCK_SIZE
            digests = each.request.digests
            for index in range(first, last + 1):
                block = each.request.block_table[index]
                if index >= len(digests) or self._done.get(block) != digests[index]:
                    self._done.pop(block, None)
        return self._runner.draft(rows_batch(rows))

    def _synced(self, request: Request) -> _Progress:
        """Return how far the request's own tokens are computed: right guesses are, too."""
        progress = self._progress.get(request)
        if progress is None or progress.preemptions != request.num_preemptions:
            progress = _Progress(request.num_preemptions, self._found(request))
            self._progress[request] = progress
        for token_id in progress.guessed:
            if progress.computed >= len(request.tokens) - 1:
                break
            if request.tokens[progress.computed] != token_id:
                break
            progress.computed += 1
        progress.guessed = []
        self._note(request)
        return progress

    def _found(self, request: Request) -> int:
        """Count the request's first tokens whose blocks came with the draft model's part."""
        count = 0
        for block, digest in zip(request.block_table, request.digests, strict=False):
            if self._done.get(block) != digest:
                break
            count += BLOCK_SIZE
        return min(count, len(request.tokens) - 1)

    def _note(self, request: Request) -> None:
        """Remember by their digests the blocks that are computed to their end."""
        progress = self._progress[request]
        full = min(progress.computed // BLOCK_SIZE, len(request.digests))
        for index in range(progress.published, full):
            self._done[request.block_table[index]] = request.digests[index]
        progress.published = max(progress.published, full)

    def _next_rows(self, request: Request, guessed: Sequence[int]) -> Rows:
        """Return the rows whose last one's logits are of the next guess."""
        progress, last = self._progress[request], len(request.tokens)
        if guessed:
            progress.guessed.append(guessed[-1])
            return Rows(request, last + len(guessed) - 1, guessed[-1:], True)
        start, progress.computed = progress.computed, last
        return Rows(request, start, request.tokens[start:], True)

    def _guess(self, rows: Sequence[Rows], depth: int) -> list[tuple[int, float]]:
        began = time.perf_counter()
        logits = self._compute(rows)
        drawn = self._sampler.guess([each.request for each in rows], logits, depth)
        self.cost.add(sum(len(each.token_ids) for each in rows), time.perf_counter() - began)
        return drawn
