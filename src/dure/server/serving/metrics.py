"""The server's metrics, with the names and types that vLLM's dashboards know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from dure.engine.scheduler import Stats
from dure.server.serving.replica_metrics import ReplicaMetrics
from dure.server.serving.stage_metrics import StageMetrics
from dure.weights.expert_stats import ExpertStats, ExpertUse

if TYPE_CHECKING:
    from dure.engine.engine import Engine
    from dure.metering.ledger import Closed
    from dure.metering.meter import Meter
    from dure.server.serving.generation import Generation
    from dure.server.serving.model_pool import ModelPool
    from dure.server.serving.worker import StepUpdate

_SECONDS = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
    *(320.0, 640.0, 1280.0),
)
_TOKEN_SECONDS = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0),
)
_TOKENS = tuple(float(2**power) for power in range(18))

_EXPERT_COUNTS = (  # of ExpertUse
    ("hits", "hits", "Experts that a step needed and that were in memory"),
    ("misses", "misses", "Experts that a step needed and that were not"),
    ("read_bytes", "read_bytes", "Bytes of experts read from disk"),
    ("wait_s", "wait_seconds", "Seconds in which steps stood still for the disk"),
    ("guessed_right", "guessed_right", "Experts read ahead of their need that were needed"),
    ("guessed_wrong", "guessed_wrong", "Experts read ahead that were not needed"),
)
_EXPERT_GAUGES = (  # of ExpertStats
    ("resident_bytes", "resident_bytes", "Bytes of the experts in memory"),
    ("capacity_bytes", "capacity_bytes", "Bytes of experts that may be in memory"),
    ("resident", "resident_experts", "Experts in memory"),
    ("experts", "experts", "Experts of all layers"),
)


_IDLE = (  # gauges, as they are read and not counted
    ("machine_seconds", "Seconds in which no step was computed, since the start"),
    ("processor_seconds", "Processor seconds outside of steps"),
    ("joules", "Joules outside of steps; as far as they are known"),
)


class Metrics:
    """The metrics of one server. All methods are called on the event loop."""

    def __init__(self, *, prefix: str = "dure", meter: Meter | None = None) -> None:
        """meter: of the process, for what it takes between steps."""
        self.meter = meter
        self._registry = CollectorRegistry()
        label = ["model_name"]

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"{prefix}:{name}", text, label, registry=self._registry)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"{prefix}:{name}", text, [*label, *more], registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            full = f"{prefix}:{name}"
            return Histogram(full, text, label, buckets=buckets, registry=self._registry)

        self._running = gauge("num_requests_running", "Answers that are being computed")
        self._waiting = gauge("num_requests_waiting", "Answers that wait for their turn")
        self._cache = gauge("kv_cache_usage_perc", "Share of the cache's blocks in use, 0 to 1")
        self._loaded = gauge("model_load_seconds", "How long the model took to load")
        self._preemptions = counter(
            "num_preemptions", "Answers that gave up their place for a while"
        )
        self._drafted = counter("spec_decode_num_draft_tokens", "Tokens that were guessed")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Of them, right ones")
        self._queries = counter("prefix_cache_queries", "Prompt tokens looked up in the cache")
        self._hits = counter("prefix_cache_hits", "Prompt tokens found in the cache")
        self._prompt = counter("prompt_tokens", "Prompt tokens read")
        self._output = counter("generation_tokens", "Tokens written")
        self._thinking = counter("thinking_tokens", "Of them, tokens of thoughts")
        self._unparsed = counter(
            "parser_fallback", "Tool calls that could not be read: sent as text"
        )
        self._success = counter("request_success", "Answers that ended", "finished_reason")
        self._failed = counter("request_failure", "Requests that were refused or failed", "status")
        self._prompt_sizes = histogram("request_prompt_tokens", "Tokens a prompt", _TOKENS)
        self._output_sizes = histogram("request_generation_tokens", "Tokens an answer", _TOKENS)
        self._first = histogram("time_to_first_token_seconds", "Asked to first token", _SECONDS)
        self._between = histogram(
            "inter_token_latency_seconds", "From a token to the next", _TOKEN_SECONDS
        )
        self._whole = histogram("e2e_request_latency_seconds", "Asked to answered", _SECONDS)
        self._queue = histogram("request_queue_time_seconds", "Asked to begun", _SECONDS)
        self._prefill = histogram("request_prefill_time_seconds", "Begun to first token", _SECONDS)
        self._decode = histogram("request_decode_time_seconds", "First token to last", _SECONDS)
        self._key_requests = counter("key_requests", "Answers by key and end", "key", "end")
        self._key_tokens = counter("key_tokens", "Tokens by key and kind", "key", "kind")
        self._processor = counter("processor_seconds", "Processor seconds of steps", "key")
        self._machine = counter("machine_seconds", "Seconds of steps, shared", "key")
        self._joules = counter("joules", "Joules of steps", "key", "energy")
        self._money = counter("money", "What answers cost", "key", "currency")
        self._idle = {
            name: Gauge(f"{prefix}:idle_{name}", text, registry=self._registry)
            for name, text in _IDLE
        }
        self._experts = [
            (field, counter(f"expert_cache_{name}", text)) for field, name, text in _EXPERT_COUNTS
        ]
        self._expert_gauges = [
            (field, gauge(f"expert_cache_{name}", text)) for field, name, text in _EXPERT_GAUGES
        ]
        self._stages = StageMetrics(prefix)
        self._replicas = ReplicaMetrics(prefix)
        self._registry.register(self._stages)
        self._registry.register(self._replicas)
        self._seen_experts: WeakKeyDictionary[Engine, ExpertUse] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[Engine, Stats] = WeakKeyDictionary()  # when last asked

    def on_news(self, model: str, now: float, all_news: list[StepUpdate]) -> None:
        """Count the tokens of one step. Call it before the updates are delivered."""
        tokens = 0
        between = self._between.labels(model)
        for news in all_news:
            if news.chunks:
                drawn = sum(chunk.token_id >= 0 for _, chunk in news.chunks)  # vectors are none
                tokens += drawn
                times = news.generation.times
                if times.last:
                    between.observe(now - times.last)
                else:
                    self._first.labels(model).observe(now - times.asked)
                news.generation.counted += drawn
        if tokens:
            self._output.labels(model).inc(tokens)

    def on_over(self, generation: Generation) -> None:
        """Count a finished generation."""
        model, times = generation.model, generation.times
        for completion in generation.completions:
            if completion is None:
                failed = generation.error is not None
                self._success.labels(model, "error" if failed else "abort").inc()
                continue
            self._success.labels(model, completion.finish_reason).inc()
            self._output_sizes.labels(model).observe(completion.usage.output_tokens)
            self._unparsed.labels(model).inc(completion.unparsed_calls)
        if times.started:
            progress = generation.progress
            self._queries.labels(model).inc(progress.total)
            self._prompt_sizes.labels(model).observe(progress.total)
            self._queue.labels(model).observe(times.started - times.asked)
        if times.first:
            self._prefill.labels(model).observe(times.first - times.started)
            self._decode.labels(model).observe(times.last - times.first)
            self._whole.labels(model).observe(times.last - times.asked)

    def on_end(self, generation: Generation, key: str, row: Closed) -> None:
        """Count all that a request took, whether it was read or not, as the ledger has it."""
        model = generation.model
        self._prompt.labels(model).inc(row.prompt - row.cached)
        self._hits.labels(model).inc(row.cached)
        self._output.labels(model).inc(row.output - generation.counted)
        self._thinking.labels(model).inc(row.reasoning)
        for kind in ("prompt", "cached", "reasoning", "output"):
            self._key_tokens.labels(model, key, kind).inc(getattr(row, kind))
        self._key_requests.labels(model, key, row.end).inc()
        self._machine.labels(model, key).inc(row.machine_s)
        self._processor.labels(model, key).inc(row.cpu_s)
        if row.joules is not None:
            self._joules.labels(model, key, row.energy).inc(row.joules)
        if row.currency:
            self._money.labels(model, key, row.currency).inc(row.money)

    def on_failure(self, status: int, model: str = "") -> None:
        """Count a request that was refused or failed, by its status."""
        self._failed.labels(model, str(status)).inc()

    def _count(self, model: str, engine: Engine) -> None:
        """Add what an engine has counted since the last look, its first being at nothing."""
        before, now = self._seen.get(engine, Stats()), replace(engine.stats)
        self._seen[engine] = now
        self._preemptions.labels(model).inc(now.preemptions - before.preemptions)
        self._drafted.labels(model).inc(now.drafted_tokens - before.drafted_tokens)
        self._accepted.labels(model).inc(now.accepted_tokens - before.accepted_tokens)

    def _count_experts(self, model: str, engine: Engine, stats: ExpertStats) -> None:
        """Add what a pool of experts has counted since the last look, and set what it holds."""
        now = stats.use
        new = now - self._seen_experts.get(engine, ExpertUse())
        self._seen_experts[engine] = now
        for field, counter in self._experts:
            counter.labels(model).inc(getattr(new, field))
        for field, gauge in self._expert_gauges:
            gauge.labels(model).set(getattr(stats, field))

    def text(self, registry: ModelPool, *, key: str | None = None) -> bytes:
        """Return the metrics in Prometheus' text format; of those by key only one `key`'s."""
        if self.meter is not None:
            idle = self.meter.totals().idle
            self._idle["machine_seconds"].set(idle.machine_s)
            self._idle["processor_seconds"].set(idle.cpu_s)
            self._idle["joules"].set(idle.joules or 0.0)
        loaded = [(each.name, each.worker) for each in registry.loaded() if each.worker is not None]
        self._stages.stages = {
            name: worker.llm.stages for name, worker in loaded if worker.llm.stages is not None
        }
        engines = {
            name: [driver.engine for driver in worker.llm.driver.drivers] for name, worker in loaded
        }
        self._replicas.engines = {name: each for name, each in engines.items() if len(each) > 1}
        for entry in registry.loaded():
            each = engines.get(entry.name, ())
            if not each:
                continue
            self._running.labels(entry.name).set(sum(len(e.scheduler.running) for e in each))
            self._waiting.labels(entry.name).set(sum(len(e.scheduler.waiting) for e in each))
            self._cache.labels(entry.name).set(sum(e.cache_in_use for e in each) / len(each))
            self._loaded.labels(entry.name).set(entry.load_seconds)
            for engine in each:
                self._count(entry.name, engine)
            experts = each[0].runner.expert_stats
            if experts is not None:
                self._count_experts(entry.name, each[0], experts)
        shown = self._registry if key is None else _OfOneKey(self._registry, key)
        return bytes(generate_latest(shown))


class _OfOneKey(CollectorRegistry):
    """What another registry collects, without the samples of other keys."""

    def __init__(self, whole: CollectorRegistry, key: str) -> None:
        super().__init__()
        self._whole = whole
        self._key = key

    def collect(self) -> Iterator[Metric]:
        for metric in self._whole.collect():
            kept = [
                each for each in metric.samples if each.labels.get("key", self._key) == self._key
            ]
            made = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            made.samples = kept
            yield made
