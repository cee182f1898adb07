"""Load a model in stages: the last here, the others on the nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dure import kernels
from dure.cluster.chain import Crowd, Stages, plan_remote
from dure.cluster.pipelines import Pipelines
from dure.cluster.plan import PipelinePlan, plan_pipeline
from dure.cluster.replicas import plan_replicas
from dure.engine.pipeline import Pipeline
from dure.engine.stage import Stage
from dure.errors import InvalidRequestError
from dure.loading.load import LoadedModel, finish_loading
from dure.loading.memory import OVERHEAD_BYTES, MemoryUse
from dure.models import load_model

if TYPE_CHECKING:
    from dure.loading.load import Progress


def load_pipeline(
    name: str | os.PathLike[str] | None,
    *,
    address: str,
    stages: int | str = "auto",
    speculate: str = "auto",
    load_progress: Progress | None = None,
    **options: Any,
) -> tuple[LoadedModel, Pipeline, Stages | None]:
    """Load the model `name` in stages on the nodes of the Ray cluster at `address`.

    stages: how many, this process's own included, or "auto": one on each node. The rest is as
    `loading.load.load` takes it: threads and memory are those of each node. Returns no Stages if
    all layers fit here alone. Raises what that does, and InvalidRequestError for what stages
    cannot do.
    """
    _check_speculate(speculate)
    plan = plan_pipeline(name, address=address, stages=stages, **options)
    chain: Stages | None = None
    try:
        last = _last_stage(plan, _last_model(plan, load_progress))
        loaded = _loaded(plan, last)
        if plan.remote:
            chain = _chain_of(plan)
            chain.start()
    except BaseException:
        if chain is None:
            plan.close()
        else:
            chain.close()
        raise
    if chain is None:  # no other node has room for a layer, and this one has for all
        plan.close()
    return loaded, _runner_of(plan, chain, last), chain


def load_replicas(
    name: str | os.PathLike[str] | None,
    *,
    address: str,
    replicas: int,
    stages: int | str = "auto",
    speculate: str = "auto",
    load_progress: Progress | None = None,
    **options: Any,
) -> tuple[LoadedModel, list[Pipeline], Pipelines]:
    """Load so many pipelines of the model `name` on the nodes of the Ray cluster at `address`.

    Their heads are here, over the same weights. Arguments as of `load_pipeline`; stages are those
    of each. Raises what that does.
    """
    _check_speculate(speculate)
    plans = plan_replicas(name, address=address, replicas=replicas, stages=stages, **options)
    pipelines = Pipelines(plans[0].cluster)
    try:
        crowd = Crowd()
        for plan in plans:
            pipelines.chains.append(_chain_of(plan, crowd))
        model = _last_model(plans[0], load_progress)
        lasts = [_last_stage(plan, model) for plan in plans]
        loaded = _loaded(plans[0], lasts[0])
        pipelines.start()
    except BaseException:
        for stage in [stage for plan in plans for stage in plan.remote]:
            stage.actor.kill()
        pipelines.close()
        raise
    made = zip(plans, pipelines.chains, lasts, strict=True)
    return loaded, [_runner_of(*each) for each in made], pipelines


def _check_speculate(speculate: str) -> None:
    if speculate not in ("auto", "off", "text"):
        raise InvalidRequestError(
            f"Stages on several machines guess tokens from texts alone, not by {speculate!r:.60}.",
            hint="leave speculate out, or say off",
        )


def _runner_of(plan: PipelinePlan, chain: Stages | None, last: Stage) -> Pipeline:
    order = plan.order
    return Pipeline(
        chain,
        last,
        num_blocks=order.num_blocks,
        num_window_blocks=order.num_window_blocks or None,
        num_states=order.num_states,
        cache_dtype=order.cache_dtype,
        passes=len(plan.remote) + 1,
    )


def _loaded(plan: PipelinePlan, last: Stage) -> LoadedModel:
    """Return the model with its tokenizer and settings. Raises TokenizerError."""
    own, sizes = plan.costs.of_span(plan.order.span), plan.sizes
    use = MemoryUse(
        budget=plan.budget,
        resident_bytes=own.weight_bytes,
        cache_bytes=last.storage.size_bytes,
        state_bytes=own.state_bytes * sizes.num_states,
        overhead_bytes=OVERHEAD_BYTES,
        expert_bytes=0,
        expert_cache_bytes=0,
        streamed=False,
        prefill_rows=0,
    )
    return finish_loading(
        plan.order.name,
        plan.resolved,
        plan.checkpoint,
        last.model,
        threads=plan.threads,
        context=sizes.context,
        num_blocks=plan.order.num_blocks,
        cache_dtype=plan.order.cache_dtype,
        memory=use,
    )


def _chain_of(plan: PipelinePlan, crowd: Crowd | None = None) -> Stages:
    return Stages(
        plan.cluster,
        plan.remote,
        secret=plan.secret,
        host=plan.host,
        budget=plan.budget,
        recut=plan_remote(
            plan.order.name,
            plan.costs,
            plan.order.span.first,
            tokens=plan.sizes.cache_tokens,
            sequences=plan.sizes.num_states,
        ),
        needs=plan.needs,
        crowd=crowd,
    )


def _last_model(plan: PipelinePlan, progress: Callable[[int, int], None] | None) -> Any:
    """Read the last stage's layers, and the head."""
    order = plan.order
    model: Any = load_model(
        plan.checkpoint,
        threads=plan.threads,
        exact=order.exact,
        quantize=order.quantize,
        progress=progress,
        span=order.span,
    )
    kernels.release_free_memory()
    return model


def _last_stage(plan: PipelinePlan, model: Any) -> Stage:
    order = plan.order
    return Stage(
        model,
        order.span,
        num_blocks=order.num_blocks,
        num_window_blocks=order.num_window_blocks,
        num_states=order.num_states,
        cache_dtype=order.cache_dtype,
    )
