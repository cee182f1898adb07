"""Who computes a model: this process alone, or stages of it on several machines?"""

# ruff: noqa: PLC0415 - a model on one machine needs nothing of the others

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dure.engine.model_runner import ModelRunner
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dure.cluster.chain import Stages
    from dure.engine.passes import Runner
    from dure.loading.load import LoadedModel


def open_runner(
    load: Callable[..., LoadedModel],
    name: str | os.PathLike[str] | None,
    *,
    ray: str | None,
    stages: int | str,
    **options: Any,
) -> tuple[LoadedModel, Runner, Stages | None]:
    """Load a model, and return it with what computes it, and its stages elsewhere if there are any.

    load: loads it into this process, if that computes it. ray, stages: as LLM takes them; options:
    what `load` takes. Raises what that does.
    """
    if ray is None:
        if stages != "auto":
            raise InvalidRequestError(
                "Stages are on the nodes of a Ray cluster, and none is named.",
                hint="--ray auto, --ray local or --ray HOST:PORT",
            )
        loaded = load(name, **options)
        return loaded, _runner_of(loaded), None
    from dure.cluster.load import load_pipeline

    return load_pipeline(name, address=ray, stages=stages, **options)


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
