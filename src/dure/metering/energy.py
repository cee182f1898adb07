"""Energy sources: how many joules did the machine take since the last look, and who says so?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dure import machine
from dure.metering.estimates import Watts, published_watts, watts_source
from dure.metering.rapl import POWERCAP, find_rapl
from dure.metering.reading import EnergySource, Reading
from dure.metering.sensors import HWMON, POWER_SUPPLY, find_battery, find_hwmon

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Energy:
    """The sources of this machine, the best first, and what a person should know of them."""

    sources: tuple[EnergySource, ...] = ()
    said: str = "no source of energy"  # in a few words
    remarks: tuple[str, ...] = ()  # why a better source is not used, and what to do

    def read(self, seconds: float, cpu_s: float) -> Reading | None:
        """Return what the first source says that can; all are asked, as each counts from then."""
        found = [source.read(seconds, cpu_s) for source in self.sources]
        return next((reading for reading in found if reading is not None), None)


def find_energy(
    watts: Watts | None = None,
    *,
    powercap: Path = POWERCAP,
    hwmon: Path = HWMON,
    power_supply: Path = POWER_SUPPLY,
    cpuinfo: Path = CPUINFO,
) -> Energy:
    """Find what this machine has: RAPL, a sensor, a battery, else an estimate.

    watts: of the whole machine idle and busy, as the operator names them; they are used where
    nothing is measured, and before the processor's TDP.
    """
    cores = machine.usable_threads()
    found = [find_rapl(powercap), find_hwmon(hwmon), find_battery(power_supply)]
    remarks = [each.remark for each in found if each.remark]
    measured = [each for each in found if each.source is not None][:1]
    sources: list[EnergySource] = [each.source for each in measured if each.source is not None]
    said = [each.said for each in measured]
    published = None if watts is not None else published_watts(cpuinfo, cores)
    if watts is not None:
        sources.append(watts_source(watts, cores, "watts"))
        said.append(f"estimated from {watts.idle:g} W idle and {watts.busy:g} W busy")
    elif published is not None:
        sources.append(watts_source(published.watts, cores, "tdp"))
        said.append(f"estimated from the {published.tdp:g} W published for {published.name}")
    elif not measured:
        remarks.append("this processor's TDP is not known here: name watts with --watts IDLE,BUSY")
    return Energy(tuple(sources), _said(said), tuple(remarks))


def _said(said: Sequence[str]) -> str:
    if not said:
        return "joules are unknown"
    return said[0] if len(said) == 1 else f"{said[0]}; where that says nothing, {said[1]}"
