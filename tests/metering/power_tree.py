"""Trees as Linux has them below /sys: RAPL's counters, hwmon's sensors, batteries."""

from __future__ import annotations

from pathlib import Path

RANGE_UJ = 262_143_328_850  # a usual one: 262 kJ


class Domain:
    """One counter."""

    def __init__(
        self, folder: Path, name: str, *, range_uj: int = RANGE_UJ, at_uj: int = 0
    ) -> None:
        folder.mkdir(parents=True)
        self.file = folder / "energy_uj"
        self.range_uj = range_uj
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.set(at_uj)

    def set(self, value: int) -> None:
        """Nothing; the counter has this value."""
        self.value = value
        self.file.write_text(f"{value}\n")

    def take(self, joules: float) -> None:
        """Nothing; so much was taken, and the counter may have begun anew."""
        self.set((self.value + round(joules * 1e6)) % self.range_uj)


def two_sockets(root: Path, **options: int) -> dict[str, Domain]:
    """Two packages with DRAM, and what counts none of it twice: cores, psys, and MMIO's copies."""
    inner = ("core", "dram")
    found = {}
    for socket in (0, 1):
        package = f"intel-rapl:{socket}"
        found[package] = Domain(root / package, f"package-{socket}", **options)
        for number, name in enumerate(inner):
            place = f"{package}:{number}"
            found[place] = Domain(root / place, name, **options)
    found["psys"] = Domain(root / "intel-rapl:2", "psys", **options)
    found["mmio"] = Domain(root / "intel-rapl-mmio:0", "package-0", **options)
    return found


def chip(root: Path, name: str, **files: str | int) -> Path:
    """A chip of hwmon, or a power supply."""
    folder = root / f"hwmon{len(list(root.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    for file, value in files.items():
        (folder / file).write_text(f"{value}\n")
    return folder
