"""dure show --ray: which layers of a model would lie on which node of a cluster."""

# ruff: noqa: PLC0415 - Ray and the kernels are loaded when this is asked for

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dure.cli import console
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.cluster.plan import PipelinePlan


def stages_of(text: str) -> int | str:
    """Return the value of --stages: a number, or "auto". Raises InvalidRequestError."""
    if text == "auto":
        return text
    if not text.isascii() or not text.isdecimal() or not 2 <= int(text[:9]) <= 256:
        raise InvalidRequestError(
            f"--stages is a number from 2 to 256, not {text[:40]!r}.", hint="or auto: one a node"
        )
    return int(text)


def show(model: str, address: str, stages: str, replicas: int, *, json: bool) -> None:
    """Print where the layers of a model would lie; none is loaded. Raises what planning does."""
    from dure.cluster.plan import plan_pipeline
    from dure.cluster.replicas import plan_replicas

    options: dict[str, Any] = {"address": address, "stages": stages_of(stages)}
    if replicas == 1:
        plans = [plan_pipeline(model, **options)]
    else:
        plans = plan_replicas(model, replicas=replicas, **options)
    try:
        values = [_described(plan) for plan in plans]
    finally:
        for plan in plans:
            plan.close()
    if json:
        console.print_json(values[0] if replicas == 1 else {"replicas": values})
        return
    for replica, value in enumerate(values, 1):
        for number, stage in enumerate(value["stages"], 1):
            _print_stage(f"{replica}.{number}" if replicas > 1 else f"{number}", stage)
    value = values[0]
    console.write(
        f"context       {value['context']:,} tokens, a cache of {value['cache_tokens']:,}"
        f"{' in each replica' if replicas > 1 else ''}\n"
    )
    console.write(
        f"network       {value['hidden_bytes']:,} bytes a token between two stages, and a prompt's "
        "tokens likewise\n"
    )
    speeds = " and ".join(f"{each['tokens_per_second']:.1f}" for each in values)
    console.write(
        f"speed         about {speeds} tokens per second of one stream, "
        "without what the network takes\n"
    )


def _print_stage(number: str, stage: dict[str, Any]) -> None:
    layers = f"layers {stage['first_layer']} to {stage['last_layer']}"
    layers = layers if stage["last_layer"] >= stage["first_layer"] else "no layer"
    ends = ", the embedding" if stage["embeds"] else ""
    ends += ", the head" if stage["ends"] else ""
    console.write(
        f"stage {number:<8}{layers}{ends} on {stage['node']}: {_gb(stage['needed_bytes'])} of "
        f"{_gb(stage['free_bytes'])}, {1000 * stage['token_seconds']:.1f} ms a token\n"
    )


def _described(plan: PipelinePlan) -> dict[str, Any]:
    spans = [stage.order.span for stage in plan.remote] + [plan.order.span]
    nodes = [str(stage.actor.node) for stage in plan.remote] + [f"{plan.host} (here)"]
    stages = [
        {
            "node": node,
            "first_layer": span.first,
            "last_layer": span.last - 1,
            "embeds": span.embeds,
            "ends": span.ends,
            "needed_bytes": plan.needs(span),
            "free_bytes": room.memory,
            "token_seconds": plan.seconds(span, room),
        }
        for span, node, room in zip(spans, nodes, plan.rooms, strict=True)
    ]
    seconds = sum(plan.seconds(span, room) for span, room in zip(spans, plan.rooms, strict=True))
    return {
        "stages": stages,
        "context": plan.sizes.context,
        "cache_tokens": plan.sizes.cache_tokens,
        "hidden_bytes": plan.hidden_bytes,
        "tokens_per_second": 1 / seconds,
    }


def _gb(size_bytes: int) -> str:
    from dure.loading.memory import gigabytes

    return gigabytes(size_bytes)
