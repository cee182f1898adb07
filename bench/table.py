"""The table that peers.py prints, and the remarks below it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from work import MODELS, TITLES, Work

NAMES = {"dure": "dure", "llama": "llama.cpp", "ik": "ik_llama.cpp"}


@dataclass(frozen=True)
class Setting:
    """One engine, and how it is told to work."""

    engine: str
    repack: bool = False
    flash: bool = False

    def __str__(self) -> str:
        if self.engine == "dure":
            return "dure"
        extra = "repacked" if self.engine == "ik" else "extra buffers"
        words = [word for word, on in ((extra, self.repack), ("flash", self.flash)) if on]
        return f"{NAMES[self.engine]} ({', '.join(words) or 'plain'})"


@dataclass
class Row:
    """What was measured of one piece of work."""

    work: Work
    speeds: dict[str, list[float]] = field(default_factory=dict)  # engine -> one each repeat
    settings: dict[str, Setting] = field(default_factory=dict)  # engine -> its best one
    trials: dict[str, float] = field(default_factory=dict)  # engine -> the short run at that

    def figure(self, engine: str) -> float | None:
        """The median, or None where the engine took no part."""
        return statistics.median(self.speeds[engine]) if self.speeds.get(engine) else None

    def ratio(self) -> float | None:
        """dure over the best peer; None if there is none."""
        peers = [
            speed for engine in self.speeds if engine != "dure" and (speed := self.figure(engine))
        ]
        ours = self.figure("dure")
        return ours / max(peers) if peers and ours else None


def cells(row: Row, engines: list[str]) -> list[str]:
    """The speeds of a row: the best bold, of an engine left out its short run in brackets."""
    figures = {engine: row.figure(engine) for engine in ["dure", *engines]}
    best = max(speed for speed in figures.values() if speed is not None)
    shown = []
    for engine, speed in figures.items():
        if speed is not None:
            text = row.work.show(speed)
            shown.append(f"**{text}**" if speed == best else text)
        elif engine in row.trials:
            shown.append(f"({row.work.show(row.trials[engine])})")
        else:
            shown.append("–")
    return shown


def table(rows: list[Row], engines: list[str]) -> str:
    """The Markdown table of all rows."""
    names = ["dure", *(NAMES[engine] for engine in engines)]
    lines = [
        "| tokens per second | " + " | ".join(names) + " | dure / best | must | aim |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in rows:
        ratio = row.ratio()
        compared = "–" if ratio is None else f"{ratio:.2f}"
        title = f"{MODELS[row.work.model]}: {TITLES[row.work.name]}"
        goals = [compared, f"{row.work.must:g}", f"{row.work.aim:g}"]
        lines.append("| " + " | ".join([title, *cells(row, engines), *goals]) + " |")
    return "\n".join(lines)


def settings_used(rows: list[Row]) -> list[str]:
    """One sentence for each setting that was some work's best, naming the work."""
    used: dict[str, list[str]] = {}
    for row in rows:
        for engine, setting in row.settings.items():
            if engine != "dure":
                used.setdefault(str(setting), []).append(f"{row.work.model} {row.work.name}")
    return [f"{setting} was best for: {', '.join(works)}" for setting, works in used.items()]


def reading_share(rows: list[Row], read_bytes: dict[str, int], limit: float) -> list[str]:
    """Of decoding one sequence: GB/s of weights against what can be read."""
    lines = []
    for row in rows:
        if row.work.name == "decode" and row.work.model in read_bytes:
            gigabytes = read_bytes[row.work.model] / 1e9
            parts = [
                f"{NAMES[engine]} {speed * gigabytes:.1f} GB/s ({speed * gigabytes / limit:.0%})"
                for engine in row.settings
                if (speed := row.figure(engine)) is not None
            ]
            model = MODELS[row.work.model]
            lines.append(f"decode of {model} reads {gigabytes:.2f} GB a token: {', '.join(parts)}")
    return lines
