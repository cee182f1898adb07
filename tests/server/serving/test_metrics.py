"""What is counted of an answer when it is over, and what a dashboard asks for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from said import chunks, text

from dure.server.serving.generation import Times
from dure.server.serving.metrics import Metrics


def test_calls_that_could_not_be_read_are_counted() -> None:
    metrics = Metrics()
    for count in (2, 1):
        *_, last = chunks(text("<tool_call>what</tool_call>"), unparsed_calls=count)
        generation = SimpleNamespace(model="m", times=Times(), completions=[last.completion])
        metrics.on_over(generation)
    shown = metrics.text(SimpleNamespace(loaded=list)).decode()
    assert 'dure:parser_fallback_total{model_name="m"} 3.0' in shown


def test_the_step_that_reads_a_prompt_is_no_waiting(serve) -> None:
    def slow(_: str) -> str:
        time.sleep(0.2)  # as long as the step lasts, at least
        return "a"

    server = serve(slow)
    server.chat("hi", max_tokens=1)
    server.wait_until(server.is_idle)
    text = server.get("/metrics").body.decode()
    [prefill] = re.findall(r"^dure:request_prefill_time_seconds_sum\S* (\S+)$", text, re.M)
    assert float(prefill) >= 0.2


DASHBOARD = Path(__file__).parents[3] / "docs" / "guides" / "grafana-dashboard.json"


def test_the_dashboard_asks_for_what_is_exposed() -> None:
    shown = Metrics().text(SimpleNamespace(loaded=list)).decode()
    suffixes = {"gauge": [""], "counter": [""], "histogram": ["_bucket", "_sum", "_count"]}
    exposed = {
        name + suffix
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", shown, re.MULTILINE)
        for suffix in suffixes[kind]
    }
    asked = set(
        re.findall(r"dure:\w+", " ".join(strings(json.loads(DASHBOARD.read_text("utf-8")))))
    )
    assert len(asked) > 10
    assert asked <= exposed


def strings(value: Any) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return (
        [text for each in children for text in strings(each)] if hasattr(value, "__iter__") else []
    )
