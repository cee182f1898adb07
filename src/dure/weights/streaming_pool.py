"""Experts that do not all fit in memory: a cache of records, filled from disk as layers need them.

A layer announces its experts; those that are missing are read while it multiplies by the others.
Each is read once, however many rows of however many requests wait for it. What is in memory changes
no bit: the products are the same, and are added in the order of the router.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.errors import NotEnoughMemoryError
from dure.kernels.streaming import GUESSED, NEEDED, WARMING
from dure.weights.expert_policy import AgedUse
from dure.weights.expert_pool import ExpertPool, RowFailure
from dure.weights.expert_stats import ExpertStats
from dure.weights.record_memory import RecordMemory
from dure.weights.record_reader import RecordReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.weights.expert_history import ExpertHistory
    from dure.weights.expert_pool import Floats, Ints, Router, Rows, Work
    from dure.weights.expert_records import RecordSource

AHEAD = 8
"""Records that a product asks for at once: more would take memory from those that stay."""

GUESS_ROWS = 16
"""Most rows of a step for which the next layer's experts are guessed: more need nearly all."""

SELDOM = 0.05
"""Experts that a layer lacks a step, on average, below which nothing is guessed of it."""

TRUST = 0.5
"""Share of guesses that must have been right lately for the disk to be asked for more."""

DOUBT_STEPS = 16
"""How seldom the guesses of a layer are compared with the truth while they are not trusted."""

SLOW_SECONDS = 10.0
"""How long a step waits for the disk before somebody is told."""

SAVE_SECONDS = 60.0
"""How often what is remembered for the next start is written."""

_ABSENT, _COMING, _HERE = range(3)


@dataclass
class _Layer:
    """The experts of one layer, numbered over all layers from `first` on."""

    experts: kernels.Experts
    first: int
    sources: Callable[[int], RecordSource]
    index: int
    router: Router | None = None
    top_k: int = 0
    steps: int = 0
    lacking: float = 1.0  # experts that a step needed and did not find here, lately
    guess: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))

    @property
    def all(self) -> slice:
        """The numbers of all experts of the layer."""
        return slice(self.first, self.first + self.experts.count)


class StreamingExpertPool(ExpertPool):
    """Keeps as many experts in memory as a budget allows, and reads the others when needed.

    `add` and `attach` while a model is built, then `open` once, then `begin` in every step.
    """

    streams = True

    def __init__(self, *, on_slow: Callable[[float], object] | None = None) -> None:
        """on_slow: told the seconds that a step has waited for the disk, when they are many."""
        super().__init__()
        self._layers: list[_Layer] = []
        self._by_set: dict[int, _Layer] = {}
        self._reader = RecordReader()
        self._buffers: dict[int, kernels.ExpertBuffer] = {}  # by expert: of those here or coming
        self._coming_bytes = 0  # of buffers that are being filled
        self._warming: list[int] = []  # asked for to fill the cache, the most used first
        self._failures: list[RowFailure] = []
        self._trust = TRUST
        self._stats = ExpertStats()
        self._row_bytes = 0
        self._sequences = 1
        self._on_slow = on_slow

    def add(
        self,
        count: int,
        hidden: int,
        intermediate: int,
        gate: str,
        up: str,
        down: str,
        *,
        sources: Callable[[int], RecordSource] | None = None,
    ) -> kernels.Experts:
        """Make the set of one layer's experts, none of which is in memory."""
        assert sources is not None
        experts = kernels.Experts(count, hidden, intermediate, gate, up, down, resident=False)
        first = self._layers[-1].all.stop if self._layers else 0
        layer = _Layer(experts, first, sources, len(self._layers))
        self._sets.append(experts)
        self._layers.append(layer)
        self._by_set[id(experts)] = layer
        return experts

    def attach(self, experts: kernels.Experts, router: Router, *, top_k: int) -> None:
        """Say how a layer chooses; its router is asked about the layer before it."""
        layer = self._by_set[id(experts)]
        layer.router, layer.top_k = router, top_k
        # The rows in the order of their experts, their products, and what lies between; and what
        # attention and residuals take. Measured at Qwen3-30B-A3B's shapes: 165 KB, this is 168.
        widths = top_k * (experts.hidden * 6 + experts.intermediate * 2)
        self._row_bytes = max(self._row_bytes, widths + 28 * experts.hidden)

    @property
    def token_bytes(self) -> int:
        """Bytes of the experts that one token needs, in all layers."""
        return sum(layer.top_k * layer.experts.record_bytes for layer in self._layers)

    def all_sources(self) -> list[tuple[int, Callable[[int], RecordSource]]]:
        """List for each layer how many experts it has, and where each can be had from."""
        return [(layer.experts.count, layer.sources) for layer in self._layers]

    @property
    def least_bytes(self) -> int:
        """The smallest cache: the experts of one row of a layer, of which some are on their way."""
        return max(layer.top_k * layer.experts.record_bytes for layer in self._layers)

    @property
    def row_bytes(self) -> int:
        """Memory that one row of a step takes in the widest mixture, beside the cache."""
        return self._row_bytes

    def open(
        self,
        capacity: int,
        *,
        rows: int,
        row_bytes: int = 0,
        sequence_bytes: int = 0,
        limit: int | None = None,
        history: ExpertHistory | None = None,
    ) -> None:
        """Begin to work with a cache of `capacity` bytes.

        rows: of a step; those of more take memory from the cache while they run. row_bytes and
        sequence_bytes: what a row and a sequence of a step take besides the products, at most.
        limit: bytes that the process must stay below, whatever was planned. history: where the use
        of the experts is remembered: those that were used most are read in the background.
        """
        total = self._layers[-1].all.stop
        self._memory = RecordMemory(capacity, least=self.least_bytes, limit=limit)
        self._rows = rows
        self._step_bytes = self._row_bytes + row_bytes, sequence_bytes
        self._policy = AgedUse(total)
        self._state = np.zeros(total, np.int8)
        self._held = np.zeros(total, bool)
        self._was_guessed = np.zeros(total, bool)
        self._layer_of = np.repeat(
            np.arange(len(self._layers)), [layer.experts.count for layer in self._layers]
        )
        self._stats.experts = total
        self._stats.capacity_bytes = capacity
        self._history, self._saved = history, time.monotonic()
        if history is None:
            return
        weakref.finalize(self, history.save, self._policy.long)
        remembered = history.load(total)
        if remembered is not None:
            self._policy.restore(remembered)
            self._warm()

    @property
    def stats(self) -> ExpertStats:
        """Counts since the model was loaded: the same object all the time."""
        return self._stats

    def take_failures(self) -> list[RowFailure]:
        """Take what could not be read since this was last called."""
        failures, self._failures = self._failures, []
        return failures

    def begin_step(self, rows: int, sequences: int) -> None:
        """Say how many rows the next pass has, and of how many sequences they are.

        Many rows take memory from the cache before their attention does; how many sequences there
        are says how much older uses become.
        """
        self._sequences = max(1, sequences)
        self.collect(0)  # what came since counts as memory that is filled, and not as coming, too
        beyond = max(0, rows - self._rows) * self._row_bytes
        a_row, a_sequence = self._step_bytes
        expected = rows * a_row + self._sequences * a_sequence
        self._memory.begin_step(beyond, expected, self._coming_bytes, self._free_one)
        self._stats.capacity_bytes = max(self._memory.capacity, self._memory.ceiling)
        now = time.monotonic()
        if self._history is not None and now - self._saved > SAVE_SECONDS:
            self._saved = now
            self._history.save(self._policy.long)

    def begin(self, experts: kernels.Experts, ids: Ints, x: Rows, scores: Floats) -> Work:
        """Ask for the experts that are missing; return at once."""
        layer = self._by_set[id(experts)]
        self.collect(0)
        counts = np.bincount(ids.reshape(-1), minlength=experts.count)
        needed = np.flatnonzero(counts)
        numbers = needed + layer.first
        self._policy.use(layer.all, scores, ids.shape[1], sequences=self._sequences)
        self._judge(layer, numbers)
        here = self._state[numbers] == _HERE
        hits = int(np.count_nonzero(here))
        self._stats.hits += hits
        self._stats.misses += len(here) - hits
        layer.lacking += 0.05 * (len(here) - hits - layer.lacking)
        self._held[:] = False  # a product that was given up holds nothing
        self._held[numbers] = True
        if len(ids) > GUESS_ROWS:
            product = len(ids) * ids.shape[1] * experts.hidden * 4
            self._memory.stay_below_limit(self._coming_bytes + product, self._free_one)
        # Few are read in the order of the rows that wait for them, many as they lie on disk.
        missing = numbers[~here]
        if len(missing) <= AHEAD:
            missing = missing[np.argsort(-counts[missing - layer.first], kind="stable")]
        work = _StreamedWork(self, layer, ids, numbers[here].tolist(), missing.tolist())
        work.ask()
        if len(ids) <= GUESS_ROWS:
            self._guess(layer, x)
        return work

    # What follows is for _StreamedWork, and for this file.

    def ask(self, number: int, priority: int) -> bool:
        """Have an expert that is not here read; return False if there is no room for it now."""
        assert self._state[number] != _HERE, "a second record of it would never be given back"
        if self._state[number] == _COMING:
            self._reader.hurry(number, priority)
            return True
        layer = self._layers[self._layer_of[number]]
        may_evict = priority != WARMING
        buffer = self._memory.take(
            layer.experts.record_bytes, self._free_one if may_evict else _free_nothing
        )
        if buffer is None:
            return False
        expert = number - layer.first
        layer.experts.place(expert, buffer, 0)
        self._buffers[number] = buffer
        self._state[number] = _COMING
        self._coming_bytes += buffer.record_bytes
        self._reader.ask(number, layer.experts, expert, layer.sources(expert), priority)
        return True

    @property
    def is_reading(self) -> bool:
        """Whether an expert is on its way, whoever asked for it."""
        return self._coming_bytes > 0

    def is_here(self, number: int) -> bool:
        """Whether an expert can be multiplied by."""
        return bool(self._state[number] == _HERE)

    def collect(self, seconds: float) -> dict[int, Exception | None]:
        """Take what has come, and wait for the first up to `seconds`. Returns errors by number."""
        came = self._reader.take(seconds)
        self._stats.read_bytes = self._reader.read_bytes
        for number, error in came.items():
            if error is not None:
                self._forget(number)
                continue
            size = self._buffers[number].record_bytes
            self._state[number] = _HERE
            self._coming_bytes -= size
            self._stats.resident += 1
            self._stats.resident_bytes += size
        return came

    def release(self, numbers: Iterable[int]) -> None:
        """Let experts go whenever room is needed."""
        self._held[list(numbers)] = False

    def fail(self, rows: NDArray[np.intp], of: int, error: Exception) -> None:
        """Remember rows that a product could not be computed for."""
        self._failures.append(RowFailure(tuple(rows.tolist()), of, error))

    def waited(self, seconds: float) -> None:
        """Count time that a step stood still."""
        self._stats.waited_seconds += seconds

    def slow(self, seconds: float) -> None:
        """Say that a step waits for long."""
        if self._on_slow is not None:
            self._on_slow(seconds)

    def _forget(self, number: int) -> None:
        """Take the memory of an expert that is not in use."""
        layer = self._layers[self._layer_of[number]]
        layer.experts.remove(number - layer.first)
        buffer = self._buffers.pop(number)
        self._memory.give(buffer)
        if self._state[number] == _HERE:
            self._stats.resident -= 1
            self._stats.resident_bytes -= buffer.record_bytes
        else:
            self._coming_bytes -= buffer.record_bytes
        self._state[number] = _ABSENT

    def _free_one(self) -> bool:
        """Make one buffer free: of an expert that is read to fill the cache, or of one here."""
        while self._warming:
            number = self._warming.pop()
            idle = self._state[number] == _COMING and not self._held[number]
            if idle and self._reader.cancel(number):
                self._forget(number)
                return True
        victim = self._policy.lowest((self._state == _HERE) & ~self._held)
        if victim is None:
            return False
        if self._was_guessed[victim]:
            self._was_guessed[victim] = False
            self._stats.guessed_wrong += 1
        self._forget(victim)
        return True

    def _judge(self, layer: _Layer, needed: NDArray[np.intp]) -> None:
        """Compare what was guessed of a layer with what it needs."""
        guess, layer.guess = layer.guess, layer.guess[:0]
        if not len(guess):
            return
        wanted = set(needed.tolist())
        right = [number in wanted for number in guess.tolist()]
        self._trust += 0.05 * (sum(right) / len(right) - self._trust)
        for number, was_right in zip(guess.tolist(), right, strict=True):
            if was_right:
                layer.lacking += 0.05  # but for the guess it was
            if not self._was_guessed[number]:
                continue
            if was_right:
                self._was_guessed[number] = False
                self._stats.guessed_right += 1
            elif self._state[number] == _COMING and self._reader.cancel(number):
                self._was_guessed[number] = False
                self._forget(number)

    def _guess(self, layer: _Layer, x: Rows) -> None:
        """Ask for what the next layer will need, by its router on what this layer gets."""
        following = self._layers[(layer.index + 1) % len(self._layers)]
        if following is layer or following.router is None or following.index == 0:
            return
        following.steps += 1
        trusted = self._trust >= TRUST and following.lacking >= SELDOM
        if not trusted and following.steps % DOUBT_STEPS:
            return
        # The first choices of a router are the surest.
        ids = dict.fromkeys(following.router(x).T.reshape(-1).tolist())
        numbers = np.fromiter(ids, np.intp, len(ids)) + following.first
        following.guess = numbers[self._state[numbers] == _ABSENT]
        if not trusted:
            return
        for number in following.guess.tolist():
            if not self.ask(number, GUESSED):
                return
            self._was_guessed[number] = True

    def _warm(self) -> None:
        """Read what was used most, in the background, as long as there is room."""
        for number in np.argsort(-self._policy.scores, kind="stable").tolist():
            if self._policy.scores[number] <= 0 or not self.ask(number, WARMING):
                return
            self._warming.append(number)


def _free_nothing() -> bool:
    """Refuse to evict an expert for one that is only read to fill the cache."""
    return False


@dataclass
class _StreamedWork:
    """A product whose experts are here, on their way, or still to be asked for."""

    pool: StreamingExpertPool
    layer: _Layer
    ids: Ints
    here: list[int]
    missing: list[int]  # in the order in which they are asked for
    coming: set[int] = field(default_factory=set)

    def ask(self) -> None:
        """Ask for what is missing, a few at a time; what came for another reason is here."""
        while self.missing and len(self.coming) < AHEAD:
            if self.pool.is_here(self.missing[0]):
                self.here.append(self.missing.pop(0))
                continue
            if not self.pool.ask(self.missing[0], NEEDED):
                return
            self.coming.add(self.missing.pop(0))

    def mlp(
        self, x: Rows, shares: Floats, *, add: Floats | None, exact: bool, threads: int
    ) -> Floats:
        """Return the mixture of x + add; multiply by what is here while the rest comes."""
        experts, first = self.layer.experts, self.layer.first
        if not self.coming and not self.missing:  # as nearly always, where nearly all are here
            self.pool.release(self.here)  # nothing is evicted before the product returns
            return kernels.experts_mlp(
                x, self.ids, shares, experts, add=add, exact=exact, threads=threads
            )
        product = kernels.experts_pass(x, self.ids, shares, experts, exact=exact, threads=threads)
        began: float | None = None
        try:
            while self.here or self.coming or self.missing:
                if self.here:
                    ready, self.here = self.here, []
                    product.run([number - first for number in ready])
                    self.pool.release(ready)
                self.ask()
                if not self.here:
                    self.here, began = self._next(product, began)
            return product.sum(add)
        finally:
            self.pool.release([*self.here, *self.coming, *self.missing])

    def _next(
        self, product: kernels.ExpertsPass, began: float | None
    ) -> tuple[list[int], float | None]:
        """Return what has come since; wait for something if nothing has."""
        if not self.coming and not self.missing:
            return [], None
        if not self.coming and not self.pool.is_reading:  # what is read for others may go then
            raise NotEnoughMemoryError(
                "There is no memory for the experts of a step.",
                hint="give the model more memory, or close other programs",
            )
        start = time.perf_counter()
        came = self.pool.collect(1.0)
        now = time.perf_counter()
        self.pool.waited(now - start)
        ready = []
        for number in self.coming & came.keys():
            self.coming.discard(number)
            error = came[number]
            if error is None:
                ready.append(number)
                continue
            expert = number - self.layer.first
            product.leave_out([expert])
            self.pool.release([number])
            rows = np.flatnonzero((self.ids == expert).any(axis=1))
            self.pool.fail(rows, len(self.ids), error)
        if came:
            return ready, None
        began = start if began is None else began
        if now - began > SLOW_SECONDS:
            self.pool.slow(now - began)
        return ready, began
