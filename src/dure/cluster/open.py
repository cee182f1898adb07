"""Who computes a model: this process alone, or stages of it on several machines?"""

# ruff: noqa: PLC0415 - a model on one machine needs nothing of the others

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dure import machine
from dure.engine.model_runner import ModelRunner
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dure.cluster.chain import Stages
    from dure.cluster.pipelines import Pipelines
    from dure.engine.passes import Runner
    from dure.loading.load import LoadedModel


def open_runners(
    load: Callable[..., LoadedModel],
    name: str | os.PathLike[str] | None,
    *,
    ray: str | None,
    stages: int | str,
    replicas: int,
    threads: int | None,
    **options: Any,
) -> tuple[LoadedModel, Sequence[Runner], Stages | Pipelines | None]:
    """Load a model, and return it with what computes each replica, and stages elsewhere if any.

    load: loads it into this process, if that computes it; its replicas are caches beside the same
    weights. ray, stages, replicas: as LLM takes them; threads: of each replica; options: what
    `load` takes. Raises what that does.
    """
    if ray is None:
        if stages != "auto":
            raise InvalidRequestError(
                "Stages are on the nodes of a Ray cluster, and none is named.",
                hint="--ray auto, --ray local or --ray HOST:PORT",
            )
        if replicas > 1:
            options["replicas"] = replicas
            threads = max(1, machine.usable_threads() // replicas) if threads is None else threads
        loaded = load(name, threads=threads, **options)
        return loaded, [_runner_of(loaded) for _ in range(replicas)], None
    from dure.cluster.load import load_pipeline, load_replicas

    options.update(address=ray, stages=stages, threads=threads)
    if replicas > 1:
        return load_replicas(name, replicas=replicas, **options)
    loaded, runner, chain = load_pipeline(name, **options)
    return loaded, [runner], chain


def _runner_of(loaded: LoadedModel) -> ModelRunner:
    return ModelRunner(
        loaded.model,
        num_blocks=loaded.num_blocks,
        num_window_blocks=loaded.num_window_blocks,
        num_states=loaded.num_states,
        cache_dtype=loaded.cache_dtype,
        draft_model=loaded.draft_model,
        draft_heads=loaded.has_draft_heads,
        expert_pool=loaded.expert_pool,
    )
