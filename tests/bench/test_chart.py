"""The chart shows the recorded results, and they are those of the page."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent.parent


def drawing() -> ModuleType:
    """bench/chart.py as a module."""
    spec = importlib.util.spec_from_file_location("chart", ROOT / "bench" / "chart.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_chart_is_drawn_from_the_recorded_results() -> None:
    chart = drawing()
    drawn = chart.chart(json.loads(chart.RESULTS.read_text("utf-8")))
    ElementTree.fromstring(drawn)
    assert drawn == chart.CHART.read_text("utf-8"), "run `python bench/chart.py`"


def test_the_recorded_results_are_in_the_table_of_the_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    figures = set(re.findall(r"\d+\.\d", page))
    for row in json.loads(drawing().RESULTS.read_text("utf-8"))["rows"]:
        assert {str(row["dure"]), str(row["llama.cpp"])} <= figures


def test_every_file_of_bench_is_in_its_readme() -> None:
    listed = set(
        re.findall(r"^\| `([^`]+)` \|", (ROOT / "bench" / "README.md").read_text("utf-8"), re.M)
    )
    there = {path.name for path in (ROOT / "bench").iterdir() if path.is_file()}
    assert listed == there - {"README.md"}
