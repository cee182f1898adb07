"""Power sensors of the machine: hwmon's that are of a processor or of the whole, and a battery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dure.metering.reading import Found, Reading, Source

HWMON = Path("/sys/class/hwmon")
POWER_SUPPLY = Path("/sys/class/power_supply")

PACE_SECONDS = 1.0
"""Power is asked for no more often: firmware may take milliseconds, and is no faster itself."""

# hwmon drivers whose sensors are the processor's or the machine's. Others measure a graphics card,
# a drive or one rail of the board. -> (file of each sensor, label it must have, what it measures)
_ENERGY = {"amd_energy": ("energy*_input", "Esocket", "the sockets")}  # microjoules
_POWER = {  # microwatts
    "power_meter": ("power1_average", "", "the whole machine, by ACPI"),
    "fam15h_power": ("power1_input", "", "the processor"),
}


def find_hwmon(root: Path = HWMON) -> Found:
    """Find a sensor of hwmon that says what the processor or the machine takes."""
    for chip in _folders(root, "hwmon*"):
        name = _text(chip / "name")
        if name in _ENERGY:
            pattern, label, what = _ENERGY[name]
            files = [each for each in sorted(chip.glob(pattern)) if _label(each).startswith(label)]
            if files and _numbers(files) is not None:
                return Found(_counters(files), f"hwmon {name}: {what}")
        if name in _POWER:
            pattern, _, what = _POWER[name]
            files = sorted(chip.glob(pattern))
            if files and _numbers(files) is not None:
                read = _integrated("hwmon", lambda files=files: _watts(files))  # type: ignore[misc]
                return Found(read, f"hwmon {name}: {what}")
    return Found()


def find_battery(root: Path = POWER_SUPPLY) -> Found:
    """Find a battery that says what the machine takes from it, while it feeds the machine."""
    batteries = [each for each in _folders(root, "*") if _text(each / "type") == "Battery"]
    if not batteries or all(_drawn(each) is None for each in batteries):
        return Found()

    def watts() -> float | None:
        drawn = [each for each in map(_drawn, batteries) if each is not None]
        return sum(drawn) if drawn else None

    return Found(_integrated("battery", watts), "the battery, while the machine runs on it")


def _counters(files: Sequence[Path]) -> Source:
    """Make a source of counters in microjoules, which begin anew without telling where."""
    last = _numbers(files) or [0] * len(files)

    def read(_seconds: float, _cpu_s: float) -> Reading | None:
        nonlocal last
        now = _numbers(files)
        if now is None:
            return None
        grown = [new - old for new, old in zip(now, last, strict=True)]
        last = now
        return Reading(sum(grown) / 1e6, "hwmon") if min(grown) >= 0 else None

    return Source(read)


def _integrated(how: str, watts: Callable[[], float | None]) -> Source:
    """Make a source of power: the mean of the last two looks holds for the time between."""
    last, age = watts(), 0.0

    def read(seconds: float, _cpu_s: float) -> Reading | None:
        nonlocal last, age
        before, age = last, age + seconds
        if age >= PACE_SECONDS:
            last, age = watts(), 0.0
        if last is None:
            return None
        mean = last if before is None else (before + last) / 2
        return Reading(mean * seconds, how)

    return Source(read)


def _drawn(battery: Path) -> float | None:
    """Return the watts that are drawn from a battery; None while it does not feed the machine."""
    if _text(battery / "status") != "Discharging":
        return None
    power = _numbers([battery / "power_now"])
    if power is not None:
        return abs(power[0]) / 1e6
    both = _numbers([battery / "current_now", battery / "voltage_now"])
    return None if both is None else abs(both[0]) * both[1] / 1e12


def _watts(files: Sequence[Path]) -> float | None:
    found = _numbers(files)
    return None if found is None else sum(found) / 1e6


def _numbers(files: Sequence[Path]) -> list[int] | None:
    try:
        return [int(_text_or_raise(each)) for each in files]
    except (OSError, ValueError):
        return None


def _folders(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(root.glob(pattern))
    except OSError:
        return []


def _label(sensor: Path) -> str:
    return _text(sensor.with_name(sensor.name.replace("_input", "_label")))


def _text(path: Path) -> str:
    try:
        return _text_or_raise(path)
    except OSError:
        return ""


def _text_or_raise(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")[:64].strip()
