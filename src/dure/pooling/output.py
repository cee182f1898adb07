"""PoolingOutput: the vectors of one request's texts, as the engine brings them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.chat.output import Chunk, Completion
from dure.chat.usage import Usage
from dure.errors import ModelFileError
from dure.metering.cost import NOTHING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.engine.engine import Engine
    from dure.engine.passes import StepOutput
    from dure.engine.request import Request
    from dure.pooling.request import PreparedPooling

    Floats = NDArray[np.float32]
    Begin = Callable[["PoolingOutput", tuple[int, ...]], Request]

AHEAD = 1024
"""Tokens that wait or are computed, of one request: two steps' worth, so that who comes later
need not wait for all of its texts."""


@dataclass(frozen=True)
class Embedding:
    """The embedding of one text."""

    vector: Floats  # (dimensions,) float32
    prompt_tokens: int  # tokens of the text, as it was computed


@dataclass(frozen=True)
class RankedDocument:
    """How well one document answers a query."""

    index: int  # of the document, in the order in which they were given
    score: float  # 0 to 1
    document: str  # its text
    prompt_tokens: int  # tokens of the query, the document and what is around them


@dataclass(frozen=True)
class Pooled(Completion):
    """The end of a request whose texts were pooled: it has no text, but vectors."""

    vectors: tuple[Floats, ...] = ()  # embeddings, or scores of one number, in order
    lengths: tuple[int, ...] = ()  # tokens of each text

    @property
    def embeddings(self) -> list[Embedding]:
        """The vectors as embeddings, in the order of their texts."""
        return [Embedding(*each) for each in zip(self.vectors, self.lengths, strict=True)]

    def ranked(self, documents: Sequence[str]) -> list[RankedDocument]:
        """Return the documents that were scored, best first; of equal ones the earlier."""
        scores = [float(vector[0]) for vector in self.vectors]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [
            RankedDocument(index, scores[index], documents[index], self.lengths[index])
            for index in order
        ]


class PoolingOutput:
    """Collects the vectors of one request. Its texts go into the engine a few at a time."""

    def __init__(
        self,
        engine: Engine,
        prepared: PreparedPooling,
        begin: Begin,
    ) -> None:
        """begin: queues one text in the engine, whose output `take` is given."""
        self.prepared = prepared
        self.chunks: deque[Chunk] = deque()
        self.completion: Pooled | None = None
        self.error: Exception | None = None
        self.engine, self._begin_text = engine, begin
        self._vectors: list[Floats | None] = [None] * len(prepared.prompts)
        self._open: dict[Request, int] = {}  # number of its text
        self._next = 0  # the first text that is not begun
        self._ended: list[Request] = []
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Begin with its first texts. Raises what the engine refuses one with."""
        self._top_up()

    @property
    def requests(self) -> tuple[Request, ...]:
        """Its unfinished requests in the engine."""
        return tuple(self._open)

    @property
    def may_move(self) -> bool:
        """Whether it has all that is computed: so it may go on elsewhere."""
        return not any(request.is_finished for request in self._open)

    def move_to(self, engine: Engine, begin: Begin) -> None:
        """Note that another engine computes it from now on, and how a text is queued there."""
        self.engine, self._begin_text = engine, begin

    @property
    def is_waiting(self) -> bool:
        """Whether none of it was computed yet."""
        return not self._ended and not any(r.num_computed_tokens for r in self._open)

    @property
    def prefilled(self) -> tuple[int, int]:
        """(tokens already computed, tokens in all)."""
        done = sum(each.num_computed_tokens for each in (*self._ended, *self._open))
        return done, self.prepared.num_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens that were found in the cache."""
        return sum(each.num_cached_tokens for each in (*self._ended, *self._open))

    @property
    def usage(self) -> Usage:
        """What it took so far, or in all if it is over."""
        each = [*self._ended, *self._open]
        return Usage(
            prompt_tokens=self.prefilled[0],
            cached_tokens=self.cached_tokens,
            prefill_s=time.perf_counter() - self._began,
            cost=sum((one.account.cost for one in each), NOTHING),
            experts=max(
                (one.expert_use for one in each if one.expert_use is not None),
                key=lambda use: use.needed,
                default=None,
            ),
        )

    @property
    def started(self) -> bool:
        """Whether what it was asked for has come."""
        return self.completion is not None

    @property
    def is_over(self) -> bool:
        """Whether no more will come."""
        return self.completion is not None or self.error is not None

    def result(self) -> Pooled:
        """Return all vectors; raise what went wrong if it failed."""
        if self.completion is None:
            raise self.error or RuntimeError("the vectors are not there yet")
        return self.completion

    def take(self, output: StepOutput) -> None:
        """Take the end of one text, and begin others in its place."""
        request = output.request
        number = self._open.pop(request)
        self._ended.append(request)
        if request.pooler is None or output.finish_reason != "stop":
            raise request.error or RuntimeError("the engine failed a request")
        vector = request.pooler.result()
        finished = self.prepared.finish(vector)
        if not (np.isfinite(vector).all() and np.isfinite(finished).all()):
            raise ModelFileError(
                "The model computed a vector that is not finite.",
                hint="its weights are damaged, or were made for another kind of numbers",
            )
        self._vectors[number] = finished
        self._top_up()

    def abort(self) -> None:
        """Have the engine forget what is not over."""
        for request in list(self._open):
            self.engine.abort(request.id)
        self._ended += self._open
        self._open = {}

    def end_thinking(self) -> None:
        """Do nothing: there is no text."""

    def _top_up(self) -> None:
        """Begin as many texts as keep the next steps full; end if none is left."""
        prompts = self.prepared.prompts
        ahead = sum(each.num_uncomputed_tokens for each in self._open)
        while self._next < len(prompts) and (ahead < AHEAD or len(self._open) < 2):
            ids = prompts[self._next]
            self._open[self._begin_text(self, ids)] = self._next
            self._next += 1
            ahead += len(ids)
        if self._next == len(prompts) and not self._open:
            self._complete()

    def _complete(self) -> None:
        self.completion = Pooled(
            text="",
            token_ids=(),
            logprobs=None,
            finish_reason="stop",
            usage=self.usage,
            vectors=tuple(each for each in self._vectors if each is not None),
            lengths=tuple(map(len, self.prepared.prompts)),
        )
        self.chunks.append(Chunk("", -1, self.completion, usage=self.completion.usage))
