"""What is counted of an answer when it is over."""

from __future__ import annotations

from types import SimpleNamespace

from said import chunks, text

from dure.server.generation import Times
from dure.server.metrics import Metrics


def test_calls_that_could_not_be_read_are_counted() -> None:
    metrics = Metrics()
    for count in (2, 1):
        *_, last = chunks(text("<tool_call>what</tool_call>"), unparsed_calls=count)
        generation = SimpleNamespace(model="m", times=Times(), completions=[last.completion])
        metrics.on_over(generation)
    shown = metrics.text(SimpleNamespace(loaded=list)).decode()
    assert 'dure:parser_fallback_total{model_name="m"} 3.0' in shown
