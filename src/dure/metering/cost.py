"""Cost: what computing an answer took of the machine, and how its joules were found."""

from __future__ import annotations

from dataclasses import dataclass

MEASURED = ("rapl", "hwmon", "battery")
ESTIMATED = ("watts", "tdp")
"""Ways to find joules. Estimated: from watts that were named, or the processor's published TDP."""


@dataclass(frozen=True)
class Cost:
    """What an answer took. Of a step that several share each has its share, so that sums hold."""

    machine_s: float = 0.0  # seconds of the steps it was in
    cpu_s: float = 0.0  # processor seconds, of all threads
    joules: float | None = None  # None: nothing on this machine says
    energy: tuple[str, ...] = ()  # how the joules were found: of MEASURED and ESTIMATED

    @property
    def is_estimated(self) -> bool:
        """Whether joules, or a part of them, were estimated and not measured."""
        return any(how in ESTIMATED for how in self.energy)

    @property
    def energy_source(self) -> str:
        """How the joules were found, in words: "rapl", "estimated (tdp)", "unknown"."""
        if self.joules is None:
            return "unknown"
        said = [how for how in self.energy if how in MEASURED]
        guessed = [how for how in self.energy if how in ESTIMATED]
        return ", ".join([*said, *([f"estimated ({', '.join(guessed)})"] if guessed else [])])

    def __add__(self, other: Cost) -> Cost:
        """Add up two costs. Joules that nobody knows make the sum unknown, unless nothing ran."""
        if other == Cost():
            return self
        if self == Cost():
            return other
        known = self.joules is not None and other.joules is not None
        return Cost(
            self.machine_s + other.machine_s,
            self.cpu_s + other.cpu_s,
            (self.joules or 0.0) + (other.joules or 0.0) if known else None,
            tuple(dict.fromkeys((*self.energy, *other.energy))),
        )


NOTHING = Cost()
