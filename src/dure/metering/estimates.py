"""Energy that nobody measures: from the watts a machine takes idle and busy, or from its TDP."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from dure.calls import explained_class
from dure.errors import InvalidRequestError
from dure.metering.reading import Reading, Source
from dure.metering.tdp import BY_FAMILY, BY_NAME
from dure.processor import cpuinfo_fields

MAX_WATTS = 1e5
IDLE_SHARE = 0.15
"""Of the TDP, what an idle processor takes. A round figure: it is an estimate, and says so."""


@explained_class
@dataclass(frozen=True)
class Watts:
    """What the machine takes with nothing to do, and with all cores busy."""

    idle: float  # watts with nothing to do
    busy: float  # watts with all cores busy

    def __post_init__(self) -> None:
        for each in (self.idle, self.busy):
            if isinstance(each, bool) or not isinstance(each, Real):
                raise InvalidRequestError(
                    f"Watts are numbers, not {each!r:.40}.", hint="Watts(idle=35, busy=120)"
                )
        if not (0 <= self.idle <= self.busy <= MAX_WATTS and math.isfinite(self.busy)):
            raise InvalidRequestError(
                f"Watts are idle and busy, from 0 to {MAX_WATTS:,.0f} and idle the fewer, but are "
                f"{self.idle:g} and {self.busy:g}.",
                hint="--watts 35,120",
            )

    @classmethod
    def parse(cls, text: str) -> Watts:
        """Read "IDLE,BUSY", as in "35,120". Raises InvalidRequestError."""
        try:
            idle, busy = (float(part) for part in text.split(","))
        except ValueError:
            raise InvalidRequestError(
                f"Watts are two numbers, idle and busy, not {text!r:.60}.", hint="--watts 35,120"
            ) from None
        return cls(idle, busy)


@dataclass(frozen=True)
class Published:
    """What a processor's maker says of it, and the watts that follow for the cores used here."""

    name: str
    tdp: float
    watts: Watts


def watts_source(watts: Watts, cores: int, how: str) -> Source:
    """Make a source: between idle and busy, in proportion to the cores this process keeps busy."""

    def read(seconds: float, cpu_s: float) -> Reading | None:
        busy = min(cpu_s, cores * seconds) / cores
        return Reading(watts.idle * seconds + (watts.busy - watts.idle) * busy, how)

    return Source(read)


def published_watts(cpuinfo: Path, cores: int) -> Published | None:
    """Look the processor up by its name, else by its family, in /proc/cpuinfo's form.

    cores: that are used here, maybe as a part of a larger machine's. Returns None if it is in no
    table of ours.
    """
    fields = cpuinfo_fields(cpuinfo)
    name = re.sub(r"\((R|TM)\)|CPU|Processor", " ", fields.get("model name", ""))
    name = " ".join(name.split("@")[0].split())
    for pattern, tdp, of_cores in BY_NAME:
        if re.search(rf"\b{pattern}(?![\w-])", name):
            return _published(name, tdp, of_cores, cores)
    place = tuple(fields.get(key, "") for key in ("vendor_id", "cpu family", "model"))
    for vendor, family, models, said, tdp, of_cores in BY_FAMILY:
        if place[:2] == (vendor, str(family)) and place[2] in map(str, models):
            return _published(f"{said}, by its family", tdp, of_cores, cores)
    return None


def _published(name: str, tdp: float, of_cores: int, cores: int) -> Published:
    busy = tdp * min(1.0, cores / of_cores)
    return Published(name[:80], tdp, Watts(IDLE_SHARE * busy, busy))
