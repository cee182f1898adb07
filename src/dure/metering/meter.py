"""The meter: hands out processor seconds and joules to the requests that shared each step.

At every moment somebody pays: the engines that step (each an equal part, and of an engine's part
each request its share of the step), or idleness if none does. So what all requests paid, and what
idling took, add up to what the process took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from dure.errors import InvalidRequestError
from dure.metering.cost import Cost
from dure.metering.energy import Energy, find_energy
from dure.metering.estimates import Watts

READ_SECONDS = 0.02
"""Sources are read at most so often between steps: four counters take some 20 µs."""
PAUSE_SECONDS = 0.1
"""A shorter pause between two steps of an engine with work is part of the work: output is sent."""


@dataclass
class Account:
    """What was taken for somebody. The meter writes it."""

    machine_s: float = 0.0
    cpu_s: float = 0.0
    joules: float = 0.0
    energy: dict[str, None] = field(default_factory=dict)  # how: in the order of appearance
    is_known: bool = True  # whether all joules are

    @property
    def cost(self) -> Cost:
        """What was taken so far."""
        joules = self.joules if self.is_known and self.energy else None
        return Cost(self.machine_s, self.cpu_s, joules, tuple(self.energy) if self.is_known else ())

    def _take(self, other: Account, share: float) -> None:
        self.machine_s += share * other.machine_s
        self.cpu_s += share * other.cpu_s
        self.joules += share * other.joules
        self.energy.update(other.energy)
        self.is_known = self.is_known and other.is_known


@dataclass(frozen=True)
class Totals:
    """What a process took since its meter was made."""

    steps: Cost  # of all steps, and so of all requests
    idle: Cost  # of the time between


class Meter:
    """Measures one process. Engines that step at the same time, on several threads, share one."""

    def __init__(
        self,
        energy: Energy | None = None,
        *,
        cpu: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin to measure.

        energy: where joules come from; None: nowhere. cpu: returns the processor seconds of the
        process; clock: the seconds. Raises InvalidRequestError for another kind of energy.
        """
        if energy is not None and not isinstance(energy, Energy):
            raise InvalidRequestError(
                f"energy must be an Energy, not {energy!r:.60}.", hint="Meter.of_this_machine()"
            )
        self.energy = energy or Energy()
        self._cpu, self._clock = cpu, clock
        self._lock = threading.Lock()
        self._open: dict[Hashable, Account] = {}  # engines that step -> not yet handed out
        self._between = Account()  # while none does
        self._left: tuple[Hashable, float] | None = None  # who stepped last, with work left; when
        self._last, self._last_cpu = clock(), cpu()
        self._read, self._read_cpu = self._last, self._last_cpu
        self._steps, self._idle = Account(), Account()

    @classmethod
    def of_this_machine(cls, watts: Watts | None = None) -> Meter:
        """Make a meter of what this machine has.

        watts: of the machine idle and busy, for where nothing measures it.
        """
        return cls(find_energy(watts))

    def enter(self, engine: Hashable) -> None:
        """Note that a step of `engine` begins. Raises nothing."""
        with self._lock:
            self._pass_time(exact=not self._open and self._left is None)
            paused, self._left = self._left, None
            before = Account()
            if paused is not None and paused[0] == engine and self._soon(paused[1]):
                before, self._between = self._between, before
            self._idle._take(self._between, 1.0)
            self._between = Account()
            self._open.setdefault(engine, before)

    def settle(
        self, engine: Hashable, shares: Sequence[tuple[Account, float]], *, exact: bool = False
    ) -> None:
        """Hand out what the step of `engine` took, to accounts by their shares, which add up to 1.

        exact: read the source of energy for it, however short the time was: an answer is
        done. Raises nothing.
        """
        with self._lock:
            self._pass_time(exact=exact)
            taken = self._open.get(engine)
            if taken is None or not shares:
                return
            self._open[engine] = Account()
            self._steps._take(taken, 1.0)
            for account, share in shares:
                account._take(taken, share)

    def leave(self, engine: Hashable, *, has_work: bool) -> None:
        """Note that the step of `engine` is over.

        has_work: the next one follows as soon as it can. Raises nothing.
        """
        with self._lock:
            self._pass_time(exact=not has_work)
            taken = self._open.pop(engine, Account())
            if self._open:  # another engine steps: what is left here is the time of neither
                self._idle._take(taken, 1.0)
                return
            if has_work:
                self._between._take(taken, 1.0)
                self._left = (engine, self._last)
            else:
                self._idle._take(taken, 1.0)
                self._left = None

    def totals(self) -> Totals:
        """Measure what the process took until now.

        Returns the costs of steps and of the time between. Raises nothing.
        """
        with self._lock:
            self._pass_time(exact=True)
            idle = Account()
            for account in (self._idle, self._between, *self._open.values()):
                idle._take(account, 1.0)
            return Totals(self._steps.cost, idle.cost)

    def _soon(self, left: float) -> bool:
        return self._last - left <= PAUSE_SECONDS

    def _pass_time(self, *, exact: bool) -> None:
        """Add what was taken since the last call to whoever was at it."""
        now, cpu = self._clock(), self._cpu()
        taken = Account(max(0.0, now - self._last), max(0.0, cpu - self._last_cpu))
        self._last, self._last_cpu = now, cpu
        if exact or now - self._read >= READ_SECONDS:
            seconds, cpu_s = now - self._read, cpu - self._read_cpu
            self._read, self._read_cpu = now, cpu
            found = self.energy.read(max(0.0, seconds), max(0.0, cpu_s))
            if found is None:
                taken.is_known = seconds <= 0
            else:
                taken.joules = found.joules
                taken.energy[found.how] = None
        paying = list(self._open.values()) or [self._between]
        for account in paying:
            account._take(taken, 1 / len(paying))
