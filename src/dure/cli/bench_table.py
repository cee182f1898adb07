"""What `dure bench` measured, as a table, CSV or JSON, with llama-bench's names where they fit."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement: a prompt of a length, or steps of decoding."""

    build: str  # dure's version
    cpu_info: str
    isa: str  # the kernels that ran
    model_filename: str
    model_type: str  # family and tensor type
    model_size: int  # bytes
    model_n_params: int
    n_threads: int
    type_kv: str  # of the cache
    n_prompt: int
    n_gen: int
    n_depth: int  # tokens in the cache before
    n_parallel: int  # sequences decoded together
    test_time: str  # ISO 8601
    samples_ts: tuple[float, ...]  # tokens per second of each round
    read_mb: float | None = None  # a token read from disk; None: all is in memory
    hit_rate: float | None = None  # 0 to 1, of experts

    @property
    def test(self) -> str:
        """Its name in llama-bench: pp512, tg64, tg64 @ d1024."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def avg_ts(self) -> float:
        """Tokens per second, the mean of all rounds."""
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """The standard deviation of a round; 0 of a single one, as in llama-bench."""
        return statistics.stdev(self.samples_ts) if len(self.samples_ts) > 1 else 0.0

    @property
    def fields(self) -> dict[str, Any]:
        """All that is known, by name."""
        averages = {"test": self.test, "avg_ts": round(self.avg_ts, 2)}
        return {**asdict(self), **averages, "stddev_ts": round(self.stddev_ts, 2)}


def formatted(rows: Sequence[Row], output: str) -> str:
    """Return the measurements as `output` (md, csv or json) has them."""
    return {"md": _markdown, "csv": _csv, "json": _json}[output](rows)


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([row.fields for row in rows], indent=2, ensure_ascii=False) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0].fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        samples = " ".join(map(str, row.samples_ts))
        writer.writerow({**row.fields, "samples_ts": samples})
    return text.getvalue()


def _markdown(rows: Sequence[Row]) -> str:
    """Return a table whose columns also line up as plain text."""
    columns: dict[str, list[str]] = {
        "model": [f"{row.model_filename} ({row.model_type})" for row in rows],
        "size": [f"{row.model_size / 2**30:.2f} GiB" for row in rows],
        "params": [_params(row.model_n_params) for row in rows],
        "processor": [f"{row.cpu_info}, {row.isa}" for row in rows],
        "threads": [str(row.n_threads) for row in rows],
    }
    if any(row.n_parallel > 1 for row in rows):
        columns["parallel"] = [str(row.n_parallel) for row in rows]
    columns["test"] = [row.test for row in rows]
    columns["t/s"] = [f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}" for row in rows]
    if any(row.read_mb is not None for row in rows):
        columns["MB read a token"] = [_or_none(row.read_mb, 1.0) for row in rows]
        columns["hits %"] = [_or_none(row.hit_rate, 100.0) for row in rows]
    names = [name.replace("|", "\\|") for name in columns]
    cells = [[cell.replace("|", "\\|") for cell in column] for column in columns.values()]
    widths = [max(map(len, (name, *column))) for name, column in zip(names, cells, strict=True)]
    is_number = [name not in ("model", "processor", "test") for name in names]
    rules = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, is_number, strict=True)
    ]
    lines = [_line(names, widths, is_number), _line(rules, widths, is_number)]
    lines += [_line(row, widths, is_number) for row in zip(*cells, strict=True)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, is_number, strict=True)
    ]
    return f"| {' | '.join(padded)} |"


def _params(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _or_none(value: float | None, scale: float) -> str:
    return "" if value is None else f"{value * scale:.1f}"
