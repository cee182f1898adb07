"""What is counted of an answer when it is over."""

from __future__ import annotations

import re
import time
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
