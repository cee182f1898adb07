"""SeveralHeads: guesses by layers of which each looks one token further, as MiMo-V2's three.

All take the model's own hidden states, not each other's: number k guesses token t + 2 + k from the
state of token t and the embedding of token t + 1 + k, which its k predecessors guessed. So SGLang
runs them, whose support the makers wrote; vLLM runs the first alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.engine.spec_decode.computed import Rows, kind_of, rows_batch
from dure.engine.spec_decode.draft import Draft
from dure.engine.spec_decode.heads import DraftHeads, following

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.engine.model_runner import ModelRunner
    from dure.engine.request import Request
    from dure.engine.sampler import Sampler
    from dure.engine.spec_decode.draft import StepResult, Verified

    Floats = NDArray[np.float32]


@dataclass
class _Last:
    """What is kept of a request's last step."""

    stop: int  # the position after its last row
    hidden: Floats  # (heads - 1 or less, hidden), of the last rows
    guess: tuple[int, float] | None = None  # of the first head: a token and its probability


class SeveralHeads(DraftHeads):
    """Guesses as many tokens as there are heads.

    Each step fills the caches of all: number k's up to the row whose token k + 1 later is known.
    The rows behind it have guesses for tokens, and are computed again when these are known.
    """

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        """As DraftHeads."""
        super().__init__(runner, sampler)
        self._count = runner.num_draft_heads
        self._last: dict[Request, _Last] = {}

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
            last = self._last.get(request)
            if last is None or last.guess is None or last.stop != len(request.tokens) - 1:
                continue
            guessed[place].append(last.guess[0])
            kinds[place].append(kind_of(self.kind, last.guess[1]))
            hidden[place] = last.hidden
        for head in range(1, self._count):
            active = self._active(hidden, limits, goes_on, kinds, head)
            if not active:
                break
            hidden = {place: hidden[place] for place in active}
            states = [hidden[place][-head:] for place in active]
            rows = [
                Rows(
                    requests[place],
                    len(requests[place].tokens) - 1 - len(each),
                    guessed[place][-len(each) :],
                    True,
                )
                for place, each in zip(active, states, strict=True)
            ]
            _, drawn = self._guess(rows, np.concatenate(states), head, head)
            for place, (token_id, probability) in zip(active, drawn, strict=True):
                if token_id < 0:
                    del hidden[place]
                    continue
                guessed[place].append(token_id)
                kinds[place].append(kind_of(self.kind, probability))
        return [Draft(tuple(g), tuple(k)) for g, k in zip(guessed, kinds, strict=True)]

    def observe(self, step: StepResult, *, wanted: bool) -> None:
        """Fill the heads' caches from the step's hidden states, and make each first guess."""
        running = [each for each in step.verified if not each.request.is_finished]
        if not wanted or not running or self._runner.hidden is None:
            self._last = {}
            return
        states = [
            self._runner.hidden[each.first_row : each.first_row + each.count] for each in running
        ]
        _, drawn = self._guess([following(each) for each in running], np.concatenate(states), 0)
        # The rows before these are needed again, and each head's stand one further back.
        known = [self._continued(*each) for each in zip(running, states, strict=True)]
        for head in range(1, self._count):
            self._fill(head, running, known)
        guesses = iter(drawn)
        for each, hidden in zip(running, known, strict=True):
            guess = next(guesses) if each.token_ids else None
            guess = None if guess is None or guess[0] < 0 else guess
            kept = hidden[max(0, len(hidden) - self._count + 1) :].copy()
            self._last[each.request] = _Last(each.start + each.count, kept, guess)

    def forget(self, request: Request) -> None:
        """Drop what is kept of the request."""
        self._last.pop(request, None)

    def _continued(self, verified: Verified, hidden: Floats) -> Floats:
        """Return the hidden states of a request's rows, behind those that are kept from before."""
        last = self._last.get(verified.request)
        if last is None or last.stop != verified.start:
            return hidden
        return np.concatenate([last.hidden, hidden])

    def _fill(self, head: int, running: Sequence[Verified], known: Sequence[Floats]) -> None:
        """Let a head cache the rows whose later tokens this step made known."""
        rows, states = [], []
        for each, hidden in zip(running, known, strict=True):
            stop = each.start + each.count  # of the rows; the head's end `head` before
            count = min(len(hidden) - head, each.count)
            if count <= 0:
                continue
            token_ids = each.request.tokens[stop + 1 - count : stop + 1]
            rows.append(Rows(each.request, stop - head - count, token_ids, is_wanted=False))
            end = len(hidden) - head
            states.append(hidden[end - count : end])
        if rows:
            self._runner.draft_heads(np.concatenate(states), rows_batch(rows), head)
