"""Passes on their way, and what each brings: the engine's records of one step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dure.engine.batch import build_batch
from dure.engine.request import MOST_LOSSES, FinishReason, Request, TokenLogprobs
from dure.engine.spec_decode.draft import StepResult, Verified
from dure.errors import DureError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheOps
    from dure.engine.scheduler import Chunk, Scheduler
    from dure.metering.meter import Account
    from dure.metering.shares import StepWork
    from dure.weights.expert_stats import ExpertStats, ExpertUse


class Runner(Protocol):
    """What an engine needs of whoever computes: a model here, or a pipeline of its layers."""

    vocab_size: int
    context_length: int
    num_blocks: int
    num_states: int
    window: int
    num_window_blocks: int
    passes: int
    """How many batches may be begun before the first of them is finished."""
    pooled: NDArray[np.float32] | None
    row_errors: dict[int, Exception]
    expert_stats: ExpertStats | None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is lost, so that a batch can be computed now."""
        ...

    def mend(self) -> None:
        """Start again what is lost, while nothing is on its way. Its cache is lost, too.

        Raises what `begin` does where that cannot be.
        """
        ...

    def step_work(self, row_bytes: int) -> StepWork:
        """Describe what a row of the model works on."""
        ...

    def begin(self, batch: Batch) -> None:
        """Take a batch. Each is computed after all that were begun before it.

        Raises PassLostError if the cache is lost; then nothing that was begun is finished.
        """
        ...

    def finish(self) -> NDArray[np.float32]:
        """Return the logits (len(batch.logit_rows), vocab_size) of the oldest batch begun.

        Afterwards `pooled` has the hidden states of its `hidden_rows`, and `row_errors` says which
        of its rows could not be computed. Raises PassLostError as `begin` does.
        """
        ...


@dataclass(frozen=True)
class StepOutput:
    """What one step did for one request: tokens, an end, or both."""

    request: Request
    token_ids: tuple[int, ...]  # none: it failed, see request.error, or its prompt is pooled
    logprobs: tuple[TokenLogprobs | None, ...]  # one a token, if asked for and it was not forced
    finish_reason: FinishReason | None  # None: it goes on


@dataclass(frozen=True)
class Flight:
    """A pass on its way."""

    chunks: Sequence[Chunk]
    awaited: Sequence[Request]  # of them, the requests that it brings something
    shares: Sequence[tuple[Account, float]]  # who pays for it
    began: float
    before: ExpertUse | None  # what was taken of experts on disk before it

    def land(self) -> None:
        """Let its requests be in other passes again."""
        for request in self.awaited:
            request.in_flight = False


class Flights:
    """The passes that were begun and not finished, the oldest first."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        shares: Callable[[Sequence[Chunk]], Sequence[tuple[Account, float]]],
    ) -> None:
        """shares: returns whose accounts pay which share of a pass."""
        self._runner, self._scheduler, self._shares = runner, scheduler, shares
        self._flights: deque[Flight] = deque()
        self._last: Flight | None = None  # that was popped, and nothing begun since

    def __len__(self) -> int:
        return len(self._flights)

    def begin(
        self,
        chunks: Sequence[Chunk],
        ops: CacheOps,
        interrupted: Callable[[], bool] | None = None,
    ) -> None:
        """Begin a pass of the chunks, after what `ops` says is done to the cache.

        Of several at once, each is computed after those before it: so rows of which nothing comes
        back count as computed from now on, and the next of their prompt may follow at once.
        """
        self._last = None
        stats = self._runner.expert_stats
        before = None if stats is None else stats.use
        awaited = [each.request for each in chunks if not self.counts_early(each)]
        flight = Flight(chunks, awaited, self._shares(chunks), time.perf_counter(), before)
        self._runner.begin(build_batch(chunks, ops, interrupted))
        self._flights.append(flight)
        for request in awaited:
            request.in_flight = True
        for chunk in chunks:
            if self.counts_early(chunk):
                self._scheduler.commit(chunk)

    def counts_early(self, chunk: Chunk) -> bool:
        """Whether the chunk's rows count as computed when they are sent."""
        return self._runner.passes > 1 and chunk.is_silent

    def pop(self) -> Flight:
        """Return the oldest, to be finished; its requests may be in other passes again."""
        self._last = flight = self._flights.popleft()
        flight.land()
        return flight

    def clear(self) -> None:
        """Forget all: nothing of them comes back."""
        while self._flights:
            self.pop()

    def lose(self) -> list[Request]:
        """Forget all after a loss; return those that are not to be computed again.

        Which of several lost it nobody can tell: each is a suspect until a token of it comes. With
        one choice of a request all others go.
        """
        lost = [*self._flights] if self._last is None else [self._last, *self._flights]
        chunks = [chunk for flight in lost for chunk in flight.chunks]
        self.clear()
        found = {id(each.request): each.request for each in chunks if not each.request.is_finished}
        ended = [each for each in found.values() if each.note_loss(alone=len(found) == 1)]
        return [choice for each in ended for choice in each.choices if not choice.is_finished]


@dataclass
class Draws:
    """What has been drawn for one chunk in this step."""

    chunk: Chunk
    row: int  # of the logits: where the next token is drawn from
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    reason: FinishReason | None = None
    error: Exception | None = None  # nothing, or nothing more, can be drawn


def lost_error() -> DureError:
    """Return what a request ends with that loses a stage whenever it is computed."""
    return DureError(
        f"A stage of the model was lost {MOST_LOSSES} times while this request alone was computed.",
        hint="the log of the stage's node says why; the same request would do it again",
    )


def count_experts(chunks: Sequence[Chunk], use: ExpertUse) -> None:
    """Add what a step took of the experts to every request that was in it."""
    for chunk in chunks:
        before = chunk.request.expert_use
        chunk.request.expert_use = use if before is None else before + use


def errors_of(chunks: Sequence[Chunk], errors: Mapping[int, Exception]) -> list[Exception | None]:
    """Return for each chunk why the runner could not compute one of its rows, if it says so.

    errors: by rows of the batch. Rows do not know of each other, so the other requests go on.
    """
    found: list[Exception | None] = []
    row = 0
    for chunk in chunks:
        of_chunk = (errors[each] for each in range(row, row + chunk.count) if each in errors)
        found.append(next(of_chunk, None) if errors else None)
        row += chunk.count
    return found


def result_of(draws: Sequence[Draws], seconds: float) -> StepResult:
    """Return what a step did, for whoever guesses what the next one will do."""
    verified, row = [], 0
    for each in draws:
        chunk, drawn = each.chunk, tuple(each.token_ids)
        right = chunk.count - max(0, chunk.num_sampled - len(drawn))
        if chunk.request.pooler is None:
            verified.append(Verified(chunk.request, chunk.start, right, row, drawn))
        row += chunk.count
    return StepResult(verified, row, seconds)
