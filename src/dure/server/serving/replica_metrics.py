"""Metrics of each replica of a model: how much it has to do, and how much it found in its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from dure.engine.engine import Engine

_LABELS = ["model_name", "replica"]

_GAUGES: tuple[tuple[str, str, Callable[[Engine], float]], ...] = (
    ("up", "Whether all of it is there: 0 while it is started again", lambda e: e.runner.is_whole),
    ("requests_running", "Answers that it computes", lambda e: len(e.scheduler.running)),
    ("requests_waiting", "Answers that wait for it", lambda e: len(e.scheduler.waiting)),
    ("kv_cache_usage_perc", "Share of its blocks in use, 0 to 1", lambda e: e.cache_in_use),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Engine], float]], ...] = (
    ("prompt_tokens", "Tokens of prompts that it began", lambda e: e.stats.prompt_tokens),
    ("cached_tokens", "Of them, found in its cache", lambda e: e.stats.cached_tokens),
    ("generation_tokens", "Tokens that it wrote", lambda e: e.stats.output_tokens),
    ("taken_over", "Answers that another, which was lost, had begun", lambda e: e.stats.taken_over),
)


class ReplicaMetrics(Collector):
    """What the engines count, by replica, of models that have several."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.engines: Mapping[str, Sequence[Engine]] = {}  # by the model's name

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; none where no model has replicas."""
        if not self.engines:
            return
        for name, text, of in _GAUGES:
            yield self._filled(GaugeMetricFamily(self._name(name), text, labels=_LABELS), of)
        for name, text, of in _COUNTERS:
            yield self._filled(CounterMetricFamily(self._name(name), text, labels=_LABELS), of)

    def _name(self, name: str) -> str:
        return f"{self._prefix}:replica_{name}"

    def _filled(
        self, family: CounterMetricFamily | GaugeMetricFamily, of: Callable[[Engine], float]
    ) -> CounterMetricFamily | GaugeMetricFamily:
        for model, engines in self.engines.items():
            for number, engine in enumerate(engines, 1):
                family.add_metric([model, str(number)], float(of(engine)))
        return family
