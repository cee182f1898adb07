"""Metrics of the stages of models on several machines: what each does, and what it sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from dure.cluster.chain import Stages, StageStatus
    from dure.cluster.pipelines import Pipelines

_COUNTERS = (
    ("busy_seconds", "Seconds in which the stage computed, since it was started"),
    ("passes", "Passes that the stage computed, since it was started"),
    ("sent_bytes", "Bytes that the stage sent to the next, since it was started"),
)
_GAUGES = (
    ("queued", "Passes that wait for the stage"),
    ("memory_bytes", "Memory that the stage was planned with"),
)


class StageMetrics(Collector):
    """What the stages told last. The last stage is the server itself, and not among them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.stages: Mapping[str, Stages | Pipelines] = {}  # by the model's name

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, without waiting for any node."""
        told = {model: stages.status() for model, stages in self.stages.items()}
        if not told:
            return
        labels = ["model_name", "replica", "stage", "node"]
        for name, text in _COUNTERS:
            yield self._filled(CounterMetricFamily(self._name(name), text, labels=labels), told)
        for name, text in _GAUGES:
            yield self._filled(GaugeMetricFamily(self._name(name), text, labels=labels), told)
        text = "Stages that were lost and started again"
        restarts = CounterMetricFamily(self._name("restarts"), text, labels=["model_name"])
        text = "Seconds from the last loss of a stage until all were linked again"
        recovery = GaugeMetricFamily(self._name("recovery_seconds"), text, labels=["model_name"])
        for model, stages in self.stages.items():
            restarts.add_metric([model], stages.restarts)
            recovery.add_metric([model], stages.recovery_seconds)
        yield restarts
        yield recovery

    def _name(self, name: str) -> str:
        return f"{self._prefix}:stage_{name}"

    def _filled(
        self,
        family: CounterMetricFamily | GaugeMetricFamily,
        told: Mapping[str, list[StageStatus]],
    ) -> CounterMetricFamily | GaugeMetricFamily:
        field = family.name.rpartition(":stage_")[2]
        for model, statuses in told.items():
            stages: Counter[int] = Counter()  # by replica
            for status in statuses:
                stages[status.replica] += 1
                place = [str(status.replica), str(stages[status.replica])]
                family.add_metric([model, *place, status.node], getattr(status, field))
        return family
