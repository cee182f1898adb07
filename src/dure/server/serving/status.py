"""What runs now: models in memory and on their way, and every stream without its words."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dure import __version__

if TYPE_CHECKING:
    from dure.engine.engine import Engine
    from dure.server.serving.generation import Generation
    from dure.server.serving.model_pool import Loading, PooledModel
    from dure.server.serving.service import Service


def status_of(service: Service, key: str) -> dict[str, Any]:
    """Describe what runs. key: the tenant who asks, and sees ids of its own streams alone."""
    pool = service.registry
    loading = pool.loading
    return {
        "version": __version__,
        "status": service.health(),
        "uptime_seconds": round(time.time() - service.started, 1),
        "parallel": service.parallel,
        "requests": {"active": service.num_active, "most": service.room},
        "models": [_model(entry) for entry in pool.loaded()],
        "loading": None if loading is None else _loading(loading),
        "streams": [_stream(each, key) for each in service.running],
    }


def _loading(loading: Loading) -> dict[str, Any]:
    """Describe the model that is being loaded."""
    return {
        "id": loading.id,
        "stage": loading.stage,
        "done_bytes": loading.done_bytes,
        "total_bytes": loading.total_bytes,
        "seconds": loading.seconds,
    }


def _model(entry: PooledModel) -> dict[str, Any]:
    """Describe one model in memory."""
    worker = entry.worker
    if worker is None:
        return {"id": entry.name}
    llm = worker.llm
    engines = [driver.engine for driver in llm.driver.drivers]
    experts = llm.engine.runner.expert_stats
    return {
        "id": entry.name,
        "context": llm.context,
        "threads": llm.threads,
        "requests": entry.users,
        "running": sum(len(engine.scheduler.running) for engine in engines),
        "waiting": sum(len(engine.scheduler.waiting) for engine in engines),
        "load_seconds": round(entry.load_seconds, 3),
        "cache": {
            "used": round(sum(engine.cache_in_use for engine in engines) / len(engines), 4),
            "bytes": sum(engine.runner.cache_bytes for engine in engines),
            "blocks": sum(engine.pool.num_blocks for engine in engines),
        },
        "replicas": [_replica(engine) for engine in engines] if len(engines) > 1 else [],
        "stages": [] if llm.stages is None else [asdict(each) for each in llm.stages.status()],
        "experts": None
        if experts is None
        else {
            "hits": experts.hits,
            "misses": experts.misses,
            "resident": experts.resident,
            "all": experts.experts,
            "resident_bytes": experts.resident_bytes,
            "capacity_bytes": experts.capacity_bytes,
            "read_bytes": experts.read_bytes,
            "wait_seconds": round(experts.waited_seconds, 3),
        },
    }


def _replica(engine: Engine) -> dict[str, Any]:
    """Describe one replica of a model that has several."""
    stats = engine.stats
    return {
        "up": engine.runner.is_whole,
        "running": len(engine.scheduler.running),
        "waiting": len(engine.scheduler.waiting),
        "cache_used": round(engine.cache_in_use, 4),
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "output_tokens": stats.output_tokens,
    }


def _stream(generation: Generation, key: str) -> dict[str, Any]:
    """Describe one request that runs or waits."""
    times, progress = generation.times, generation.progress
    state = "writing" if times.first else "reading" if times.started else "waiting"
    is_own = generation.tenant == key
    return {
        "id": generation.id if is_own else None,
        "model": generation.model,
        "state": state,
        "prompt": {"done": progress.done, "cached": progress.cached, "total": progress.total},
        "tokens": generation.counted,
        "seconds": round(time.perf_counter() - times.asked, 3),
        "writing_seconds": round(time.perf_counter() - times.first, 3) if times.first else 0,
    }
