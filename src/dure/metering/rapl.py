"""RAPL: the energy counters of processor packages and their DRAM, as Linux's powercap shows them.

Source: Documentation/power/powercap in the Linux kernel. A counter (energy_uj) grows in microjoules
and begins anew at 0 beyond max_energy_range_uj.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dure.metering.reading import Found, Reading

POWERCAP = Path("/sys/class/powercap")
MAX_DOMAINS = 256
MAX_WATTS = 2000.0
"""Of one domain. What would be more is no wrap-around but a counter that was set anew."""
SLACK_J = 50.0  # counters are updated every millisecond or so: a short interval may have more

ROOT_ONLY = (
    "RAPL's counters can be read by root only, as Linux has it since 5.10 (they could reveal "
    "secrets of other users): `chmod a+r {path}/intel-rapl:*/energy_uj "
    "{path}/intel-rapl:*/intel-rapl:*/energy_uj`, as root and after each start of the machine, "
    "allows it to all"
)


@dataclass
class _Domain:
    name: str
    file: int  # a file descriptor
    range_uj: int
    last_uj: int

    def read_uj(self) -> int:
        return int(os.pread(self.file, 64, 0))


class Rapl:
    """The counters of all packages and their DRAM."""

    def __init__(self, domains: list[_Domain]) -> None:
        self._domains = domains

    def read(self, seconds: float, cpu_s: float) -> Reading | None:
        """Return the joules since the last call.

        Returns None if a counter cannot be read, or was set anew in this time: by how much it had
        grown before that, nobody knows.
        """
        del cpu_s
        total, is_whole = 0, True
        for domain in self._domains:
            try:
                now = domain.read_uj()
            except (OSError, ValueError):
                is_whole = False
                continue
            grown = now - domain.last_uj
            domain.last_uj = now
            if grown < 0:
                grown += domain.range_uj
            if not 0 <= grown <= 1e6 * (MAX_WATTS * seconds + SLACK_J):
                is_whole = False
            total += grown
        return Reading(total / 1e6, "rapl") if is_whole else None

    def __del__(self) -> None:
        for domain in self._domains:
            os.close(domain.file)


def find_rapl(root: Path = POWERCAP) -> Found:
    """Open the counters below `root`: every package, and the DRAM beside it where there is one."""
    try:
        folders = sorted(root.glob("intel-rapl:*"))[:MAX_DOMAINS]
    except OSError:
        return Found()
    domains: dict[tuple[str, str], _Domain] = {}
    try:
        for folder in (*folders, *(inner for each in folders for inner in _inner(each))):
            name = _text(folder / "name")
            package = ":".join(folder.name.split(":")[:2])
            is_package = name.startswith("package")
            # psys holds the packages, core and uncore are parts of them; others would count twice.
            place = ("", name) if is_package else (package, name)
            if (is_package or name == "dram") and place not in domains:
                domains[place] = _open(folder, name)
        found = list(domains.values())
    except PermissionError:
        _close(domains)
        return Found(remark=ROOT_ONLY.format(path=root))
    except (OSError, ValueError):
        _close(domains)
        return Found(remark=f"RAPL's counters below {root} cannot be read")
    packages = sum(each.name.startswith("package") for each in found)
    if not packages:
        _close(domains)
        return Found()
    dram = "packages and DRAM" if len(found) > packages else "packages"
    return Found(Rapl(found), f"RAPL: {dram} of {packages} socket{'s' * (packages > 1)}")


def _inner(folder: Path) -> list[Path]:
    return sorted(folder.glob("intel-rapl:*"))[:MAX_DOMAINS]


def _open(folder: Path, name: str) -> _Domain:
    range_uj = int(_text(folder / "max_energy_range_uj"))
    domain = _Domain(name, os.open(folder / "energy_uj", os.O_RDONLY), range_uj, 0)
    try:
        domain.last_uj = domain.read_uj()
    except (OSError, ValueError):
        os.close(domain.file)
        raise
    return domain


def _close(domains: dict[tuple[str, str], _Domain]) -> None:
    for domain in domains.values():
        os.close(domain.file)


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")[:64].strip()
