"""Speculator: which guesses go into a step, and how many of them.

A guess is a row more. It is worth its time if its chance of being right, in tokens, is more than
what the same time brings otherwise. So it needs two figures, both learnt as it runs: how long a
step of so many rows takes, and how often guesses of each kind are right.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dure.engine.spec_decode.acceptance import Rates
from dure.engine.spec_decode.cost import StepCost
from dure.engine.spec_decode.draft import Draft

if TYPE_CHECKING:
    from dure.engine.request import Request
    from dure.engine.spec_decode.draft import StepResult

MAX_DRAFTS = 32  # for one request: what a step of a dense model has room for before it is a prompt
_LEAST_GAIN = 1.02  # what is won must be more than what the estimates are wrong by
_NO_CHANCE = 0.02  # what is less likely is worth no row of any step
_PROBE_EVERY = 64  # steps after which guesses that did not pay are tried once more

log = logging.getLogger("dure.engine")


class TextSource(Protocol):
    """Guesses that cost no computing worth mentioning: from texts, or from a grammar."""

    def propose(self, request: Request, limit: int) -> Draft:
        """Return up to `limit` tokens that may follow."""
        ...

    def forget(self, request: Request) -> None:
        """Drop what is kept of the request."""
        ...


class ModelSource(Protocol):
    """Guesses that a model computes: a smaller one, or layers of the model's own."""

    @property
    def kind(self) -> str:
        """The kind of its guesses."""
        ...

    @property
    def cost(self) -> StepCost:
        """What its passes take, by rows."""
        ...

    def propose(
        self,
        requests: Sequence[Request],
        limits: Sequence[int],
        goes_on: Callable[[int, Sequence[str]], bool],
    ) -> list[Draft]:
        """Guess token by token for all requests at once.

        goes_on: asked with (index of a request, kinds of its guesses so far) before each pass.
        """
        ...

    def observe(self, step: StepResult, *, wanted: bool) -> None:
        """Keep what is needed of a step. wanted: whether guesses are likely to be asked for."""
        ...

    def forget(self, request: Request) -> None:
        """Drop what is kept of the request."""
        ...


@dataclass
class _Record:
    """What is kept of one request."""

    rates: Rates
    proposed: list[Draft] = field(default_factory=list)  # before this step, tried or not
    idle: int = 0  # steps since a model guessed for it


class Speculator:
    """Chooses guesses from several sources; a `Drafter`."""

    max_drafts = MAX_DRAFTS

    def __init__(self, texts: Sequence[TextSource] = (), model: ModelSource | None = None) -> None:
        """texts: the first is asked first; the best answer counts. model: asked where none pays."""
        self._texts = list(texts)
        self._model = model
        self.step_cost = StepCost()
        self._rates = Rates()
        self._records: dict[Request, _Record] = {}

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> list[tuple[int, ...]]:
        """Return the guesses that go into this step, for each request."""
        try:
            return self._propose(requests, limits, rows)
        except Exception:  # no answer depends on a guess, so none may fail for one
            log.exception("guessing tokens failed, and is off from now on")
            self._texts, self._model = [], None
            return [()] * len(requests)

    def observe(self, step: StepResult) -> None:
        """Learn how long the step took, and which guesses were right."""
        sampled = [each for each in step.verified if each.token_ids]
        decoding = all(each.count <= 1 + MAX_DRAFTS for each in step.verified)
        if len(sampled) == len(step.verified) and decoding:
            self.step_cost.add(step.rows, step.seconds)
        for each in sampled:
            record = self._records.get(each.request)
            if record is None:
                continue
            for draft in record.proposed:
                _learn(record.rates, draft, each.token_ids)
            record.proposed = []
        if self._model is not None:
            try:
                self._model.observe(step, wanted=self._may_pay(step))
            except Exception:
                log.exception("the drafting model failed, and is off from now on")
                self._model = None

    def forget(self, request: Request) -> None:
        """Drop what is kept of a request that has ended."""
        self._records.pop(request, None)
        try:
            for source in self._texts:
                source.forget(request)
            if self._model is not None:
                self._model.forget(request)
        except Exception:
            log.exception("guessing tokens failed, and is off from now on")
            self._texts, self._model = [], None

    def _propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> list[tuple[int, ...]]:
        plan = _Plan(self.step_cost, rows, len(requests))
        drafts, chances = [], []
        for request, limit in zip(requests, limits, strict=True):
            record = self._records.setdefault(request, _Record(Rates(self._rates)))
            record.proposed = self._free(request, limit)
            rated = [(draft, _chances(draft.kinds, record.rates)) for draft in record.proposed]
            best = rated[0] if rated else (Draft(), [])
            if len(rated) > 1:
                best = max(rated, key=lambda each: plan.promise(each[1]))
            drafts.append(best[0])
            chances.append(best[1])
        if self._model is not None:
            self._ask_model(self._model, plan, requests, limits, drafts, chances)
        counts = plan.choose(chances)
        return [draft.token_ids[:count] for draft, count in zip(drafts, counts, strict=True)]

    def _free(self, request: Request, limit: int) -> list[Draft]:
        """Return the guesses for a request that need no model: those that are not empty."""
        if request.forced_tokens:  # they come whatever is drawn
            forced = tuple(request.forced_tokens)[:limit]
            return [Draft(forced, ("forced",) * len(forced))]
        proposed = [source.propose(request, limit) for source in self._texts]
        return [draft for draft in proposed if draft.token_ids]

    def _ask_model(
        self,
        model: ModelSource,
        plan: _Plan,
        requests: Sequence[Request],
        limits: Sequence[int],
        drafts: list[Draft],
        chances: list[list[float]],
    ) -> None:
        """Have the model guess for the requests that texts promise less for."""
        asked = []
        for index, request in enumerate(requests):
            if not request.output_ids:
                continue  # the first token does not wait for a model to read the prompt
            record = self._records[request]
            record.idle += 1
            chance = record.rates(model.kind)
            promised = plan.gain(chances[index])
            own = plan.gain(_powers(chance, limits[index]), model.cost)
            probes = record.idle > _PROBE_EVERY and promised <= 1
            if own > max(promised, _LEAST_GAIN) or probes:
                asked.append((index, chance, probes))
        if not asked:
            return

        def goes_on(place: int, kinds: Sequence[str]) -> bool:
            index, chance, probes = asked[place]
            if not kinds:
                return True
            so_far = _chances(kinds, self._records[requests[index]].rates)
            likely = len(so_far) == len(kinds)
            return likely and not probes and plan.pays(so_far, chance, len(asked), model.cost)

        indices = [index for index, _, _ in asked]
        made = model.propose([requests[i] for i in indices], [limits[i] for i in indices], goes_on)
        for (index, _, _), draft in zip(asked, made, strict=True):
            record = self._records[requests[index]]
            record.idle = 0
            record.proposed.append(draft)
            # They are paid for already: only their rows count from here on.
            own_chances = _chances(draft.kinds, record.rates)
            if plan.promise(own_chances) > plan.promise(chances[index]):
                drafts[index], chances[index] = draft, own_chances

    def _may_pay(self, step: StepResult) -> bool:
        """Whether guesses of the model may pay in steps like this one."""
        assert self._model is not None
        decoding = max(1, len(step.verified))
        plan = _Plan(self.step_cost, decoding, decoding)
        kind = self._model.kind
        pays = plan.gain([self._rates(kind)], self._model.cost) > 1
        if not pays:
            self._rates.fade(kind)  # what is not kept is not learnt from: some day it is tried
        return pays


class _Plan:
    """The tokens and seconds of one step, and what a guess would add."""

    def __init__(self, cost: StepCost, rows: int, decoding: int) -> None:
        """rows: without guesses. decoding: requests that get a token each."""
        self._cost, self._rows, self._decoding = cost, rows, decoding
        # What the rows of prompts take is spent either way, and buys other things.
        self._beside = cost(decoding) - cost(rows)

    def seconds(self, drafts: int) -> float:
        """Return the seconds of a step with so many guesses, those of prompts' rows left out."""
        return self._beside + self._cost(self._rows + drafts)

    def gain(self, chances: Sequence[float], model: StepCost | None = None) -> float:
        """Return the most by which guesses with these chances multiply the speed of one request.

        model: what computes them, token by token.
        """
        best, expected = 1.0, 0.0
        base = self.seconds(0)
        each = 0.0 if model is None else _pass_seconds(model, 1, base)
        for count, chance in enumerate(chances, start=1):
            expected += chance
            # The others of the step pay for it, too.
            spent = self.seconds(count) + count * each
            best = max(best, (self._decoding + expected) / self._decoding * base / spent)
            most = self._decoding + expected + chance * (len(chances) - count)
            if most / self._decoding * base / spent < best:
                break  # whatever the others bring
        return best

    def promise(self, chances: Sequence[float]) -> tuple[float, float]:
        """Return what tells the better guesses for a request: the gain, and where none has one,
        the chance of the first.
        """
        return self.gain(chances), chances[0] if chances else 0.0

    def pays(self, so_far: Sequence[float], chance: float, requests: int, model: StepCost) -> bool:
        """Whether one more guess pays, after those with the chances `so_far`.

        chance: that it is right if they all are. requests: how many are guessed for in one pass;
        they are taken to be alike.
        """
        depth, rows = len(so_far), requests * len(so_far)
        one = _pass_seconds(model, requests, self.seconds(0))
        spent = self.seconds(rows) + depth * one
        more = self.seconds(rows + requests) - self.seconds(rows) + one
        expected = self._decoding + requests * sum(so_far)
        return requests * so_far[-1] * chance * spent > more * expected

    def choose(self, chances: Sequence[Sequence[float]]) -> list[int]:
        """Return how many guesses of each request go into the step.

        The likeliest come first; of all numbers of them the one with the most tokens a second.
        """
        counts = [0] * len(chances)
        heap = [(-each[0], index, 0) for index, each in enumerate(chances) if each]
        heapq.heapify(heap)
        taken: list[int] = []
        expected, base = float(self._decoding), self.seconds(0)
        best, best_count = _LEAST_GAIN * expected / base, 0
        left = sum(len(each) for each in chances)  # guesses that are not taken yet
        while heap:
            negative, index, depth = heapq.heappop(heap)
            expected -= negative
            taken.append(index)
            speed = expected / self.seconds(len(taken))
            if speed > best:
                best, best_count = speed, len(taken)
            left -= 1
            if (expected - negative * left) / self.seconds(len(taken)) < best:
                break  # whatever the others bring
            if depth + 1 < len(chances[index]):
                heapq.heappush(heap, (-chances[index][depth + 1], index, depth + 1))
        for index in taken[:best_count]:
            counts[index] += 1
        return counts


def _pass_seconds(model: StepCost, rows: int, base: float) -> float:
    """Return the seconds of one pass of a drafting model; a guess until there was one."""
    return model(rows) if model.is_known else 0.25 * base


def _powers(chance: float, limit: int) -> list[float]:
    return [chance**depth for depth in range(1, limit + 1)]


def _chances(kinds: Sequence[str], rates: Rates) -> list[float]:
    """Return for each guess the chance that it and all before it are right, while it is one."""
    chances: list[float] = []
    chance = 1.0
    for kind in kinds:
        chance *= rates(kind)
        if chance < _NO_CHANCE and chances:
            break
        chances.append(chance)
    return chances


def _learn(rates: Rates, draft: Draft, drawn: Sequence[int]) -> None:
    """Compare guesses, tried or not, with what was drawn.

    A kind "model:3" counts for "model", too.
    """
    for token_id, kind, actual in zip(draft.token_ids, draft.kinds, drawn, strict=False):
        rates.add(kind, token_id == actual)
        family, _, finer = kind.partition(":")
        if finer:
            rates.add(family, token_id == actual)
        if token_id != actual:
            return
