"""Draw docs/benchmarks.svg from bench/results.json, with the standard library alone.

`python bench/chart.py` writes it; a test compares. Each row has its own scale: its longest bar is
the faster engine, so that 10 and 300 tokens per second can stand in one chart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
CHART = HERE.parent / "docs" / "benchmarks.svg"

WIDTH, LABEL, BAR, GAP, TOP = 760, 250, 14, 14, 52
LONGEST = 400  # of a bar; the figure stands behind it
COLOURS = {"dure": "#2563a8", "llama.cpp": "#b0b7c0"}


def chart(results: dict[str, Any]) -> str:
    """Return the SVG of `results`: {"unit": …, "rows": [{"what": …, engine: figure, …}]}."""
    rows = results["rows"]
    height = TOP + len(rows) * (2 * BAR + GAP) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f"<title>{escape(results['unit'])}: {escape(' and '.join(COLOURS))}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(results["unit"])}</text>',
    ]
    for place, (engine, colour) in enumerate(COLOURS.items()):
        x = LABEL + 110 * place
        parts.append(f'<rect x="{x}" y="28" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="39">{escape(engine)}</text>')
    for number, row in enumerate(rows):
        y = TOP + number * (2 * BAR + GAP)
        longest = max(row[engine] for engine in COLOURS)
        parts.append(f'<text x="8" y="{y + BAR + 4}">{escape(row["what"])}</text>')
        for place, (engine, colour) in enumerate(COLOURS.items()):
            width = round(LONGEST * row[engine] / longest)
            top = y + place * BAR
            parts.append(
                f'<rect x="{LABEL}" y="{top}" width="{width}" height="{BAR - 2}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{LABEL + width + 6}" y="{top + 11}">{row[engine]}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    CHART.write_text(chart(json.loads(RESULTS.read_text("utf-8"))), encoding="utf-8")
