"""DraftHeads: guesses by layers of the model's own, made for that (multi-token prediction)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.engine.spec_decode.computed import Rows, kind_of, rows_batch
from dure.engine.spec_decode.cost import StepCost
from dure.engine.spec_decode.draft import Draft

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.engine.model_runner import ModelRunner
    from dure.engine.request import Request
    from dure.engine.sampler import Sampler
    from dure.engine.spec_decode.draft import StepResult, Verified

    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _First:
    """The first guess for a request, made when its last token was drawn."""

    length: int  # of the request's tokens then
    token_id: int
    probability: float
    hidden: Floats  # (hidden,) of the heads, at the position before that token


class DraftHeads:
    """Guesses from hidden states: those of each step fill the heads' cache right after it.

    So the first guess is there when it is asked for; the ones after it are computed from the heads'
    own hidden states.
    """

    kind = "heads"

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        """runner: keeps the hidden states of its last batch. sampler: draws as the engine does."""
        self.cost = StepCost()
        self._runner, self._sampler = runner, sampler
        self._first: dict[Request, _First] = {}

    def propose(
        self,
        requests: Sequence[Request],
        limits: Sequence[int],
        goes_on: Callable[[int, Sequence[str]], bool],
    ) -> list[Draft]:
        """Guess for each request while `goes_on` says so, `limits` tokens at most."""
        guessed: list[list[int]] = [[] for _ in requests]
        kinds: list[list[str]] = [[] for _ in requests]
        hidden: dict[int, Floats] = {}
        for place, request in enumerate(requests):
            first = self._first.get(request)
            if first is not None and first.length == len(request.tokens):
                guessed[place].append(first.token_id)
                kinds[place].append(kind_of(self.kind, first.probability))
                hidden[place] = first.hidden
        depth = 1
        active = self._active(hidden, limits, goes_on, kinds, depth)
        while active:
            rows = [
                Rows(
                    requests[place],
                    len(requests[place].tokens) + depth - 2,
                    guessed[place][-1:],
                    True,
                )
                for place in active
            ]
            states, drawn = self._guess(rows, np.stack([hidden[place] for place in active]), depth)
            hidden = {}
            for place, state, (token_id, probability) in zip(active, states, drawn, strict=True):
                if token_id >= 0:
                    guessed[place].append(token_id)
                    kinds[place].append(kind_of(self.kind, probability))
                    hidden[place] = state
            depth += 1
            active = self._active(hidden, limits, goes_on, kinds, depth)
        return [Draft(tuple(g), tuple(k)) for g, k in zip(guessed, kinds, strict=True)]

    def observe(self, step: StepResult, *, wanted: bool) -> None:
        """Fill the heads' cache from the step's hidden states, and make each first guess."""
        self._first = {}
        running = [each for each in step.verified if not each.request.is_finished]
        if not wanted or not running or self._runner.hidden is None:
            return
        rows = [following(each) for each in running]
        picked = np.concatenate(
            [np.arange(each.first_row, each.first_row + each.count) for each in running]
        )
        states, drawn = self._guess(rows, self._runner.hidden[picked], 0)
        asking = [each.request for each in running if each.token_ids]
        for request, state, (token_id, probability) in zip(asking, states, drawn, strict=True):
            if token_id >= 0:
                self._first[request] = _First(len(request.tokens), token_id, probability, state)

    def forget(self, request: Request) -> None:
        """Drop the first guess."""
        self._first.pop(request, None)

    def _active(
        self,
        hidden: dict[int, Floats],
        limits: Sequence[int],
        goes_on: Callable[[int, Sequence[str]], bool],
        kinds: Sequence[Sequence[str]],
        depth: int,
    ) -> list[int]:
        """Return for whom one more is guessed."""
        return [place for place in hidden if depth < limits[place] and goes_on(place, kinds[place])]

    def _guess(
        self, rows: Sequence[Rows], hidden: Floats, depth: int, head: int = 0
    ) -> tuple[Floats, list[tuple[int, float]]]:
        """Run a head once; return its hidden states and what is drawn from the wanted rows."""
        began = time.perf_counter()
        states, logits = self._runner.draft_heads(hidden, rows_batch(rows), head)
        wanted = [each.request for each in rows if each.is_wanted]
        drawn = self._sampler.guess(wanted, logits, depth) if wanted else []
        self.cost.add(len(hidden), time.perf_counter() - began)
        return states, drawn


def following(verified: Verified) -> Rows:
    """Return the tokens after each row of a request, at the rows' positions."""
    first = verified.start + 1
    tokens = verified.request.tokens[first : first + verified.count]
    return Rows(verified.request, verified.start, tokens, is_wanted=bool(verified.token_ids))
