"""The plan of one model: its files found, here or on a hub, and what it needs, does and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure import hub
from dure.errors import ModelNotFoundError
from dure.formats.checkpoint import open_checkpoint
from dure.planning.cost import TokenCosts, token_costs
from dure.planning.figures import significant
from dure.planning.memory import Footprint, footprint
from dure.planning.shapes import catalogued
from dure.planning.speed import expected
from dure.planning.speed_table import STREAMS, SpeedTable, speed_table
from dure.planning.vendor_prices import VendorPrice, nearest_price
from dure.planning.work import ModelWork, work_of
from dure.weights.quantize import check_scheme

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.metering.estimates import Watts
    from dure.metering.prices import Prices
    from dure.planning.machine import Machine


SLOW_TPS = 2.0
"""Tokens a second of one conversation below which a person is asked before a download."""


@dataclass(frozen=True)
class Origin:
    """Where the headers came from, and what was fetched of what a pull would fetch. Bytes."""

    kind: str  # "file", "catalogue" or "hub"
    where: str  # the path, or the hub's address
    fetched_bytes: int = 0
    model_bytes: int = 0  # what a pull fetches; of a file, what it has


@dataclass(frozen=True)
class ModelPlan:
    """What one model needs and does on a machine."""

    name: str
    origin: Origin
    work: ModelWork
    memory: Footprint
    vendor: VendorPrice | None  # of this model, or of the nearest; None: no price is known
    vendor_is_same: bool
    parameters: int  # as its publisher counts them, else the numbers in its matrices
    speeds: SpeedTable | None  # None: no machine was given, or the model does not fit
    costs: TokenCosts | None  # of a million tokens; None as above


@dataclass(frozen=True)
class Wish:
    """How a model is to be used."""

    context: int | None = None  # tokens of each conversation; None: what loading takes
    users: int = 1
    replicas: int = 1  # engines that they are divided among
    budget: int | None = None  # bytes of memory; None: what is free
    available: int | None = None  # bytes that the machine has; None: what this one has free
    quantize: str | None = None
    prices: Prices | None = None  # of power and hours
    watts: Watts | None = None  # of the machine; None: as it was measured, or its TDP


def plan_model(
    name: str,
    wish: Wish,
    *,
    machine: Machine | None = None,
    progress: Callable[[hub.Progress], None] | None = None,
    patience: hub.Timeouts | None = None,
) -> ModelPlan:
    """Plan a model: a short name, a hub's id, a file or a folder; its weights are not fetched.

    machine: the one whose speed is planned with; None: no speed is. patience: with a hub that does
    not answer. Raises the errors of
    dure.errors: for what cannot be found or fetched, and what does not run. A model that does not
    fit has a plan, whose `memory.problem` says so.
    """
    scheme = None if wish.quantize is None else check_scheme(wish.quantize)
    with _opened(name, progress, patience) as (checkpoint, origin):
        work = work_of(checkpoint, name, quantize=scheme)
        memory = footprint(
            checkpoint,
            work,
            context=wish.context,
            users=wish.users,
            budget=wish.budget,
            available=wish.available,
            quantize=scheme,
            replicas=wish.replicas,
        )
    entry = hub.load_catalogue().find(name.strip())
    count = (entry.parameters if entry else 0) or parameters(work)
    priced = nearest_price(name, work.family, count)
    vendor, same = (None, False) if priced is None else priced
    table = costs = None
    if machine is not None and memory.fits:
        kept = memory.experts_kept if memory.streams else None
        speeds = expected(work, machine, expert_cache_bytes=kept)
        table = speed_table(speeds, work.context)
        costs = token_costs(speeds, prices=wish.prices, watts=wish.watts, streams=STREAMS)
    return ModelPlan(name, origin, work, memory, vendor, same, count, table, costs)


def parameters(work: ModelWork) -> int:
    """Count the numbers in all matrices."""
    return sum(m.rows * m.columns * m.count * max(1, m.experts) for m in work.matrices)


@contextmanager
def _opened(
    name: str,
    progress: Callable[[hub.Progress], None] | None,
    patience: hub.Timeouts | None,
) -> Iterator[tuple[Checkpoint, Origin]]:
    """Open a model where it is here; else what the catalogue knows; else its headers on a hub."""
    try:
        found = hub.resolve(name, allow_download=False)
    except ModelNotFoundError:
        wanted = hub.parse_name(name)
        if wanted.kind in ("path", "ollama"):  # is on no hub
            raise
        found = None
    if found is not None:
        checkpoint = open_checkpoint(found.path)
        yield checkpoint, Origin("file", str(found.path), 0, _size(checkpoint))
        return
    entry = hub.load_catalogue().find(name.strip())
    if entry is not None:
        try:
            checkpoint = catalogued(entry)
        except ModelNotFoundError:
            pass
        else:
            yield checkpoint, Origin("catalogue", "the catalogue", 0, entry.size_bytes)
            return
    with hub.headers_of(name, progress=progress, patience=patience) as headers:
        origin = Origin("hub", headers.source, headers.fetched_bytes, headers.model_bytes)
        yield open_checkpoint(headers.path), origin


def _size(checkpoint: Checkpoint) -> int:
    """Return the bytes of a model's files."""
    sources = {tensor.source for tensor in checkpoint.tensors.values()}
    packed = checkpoint.experts.size_bytes if checkpoint.experts else 0
    return sum(source.size_bytes for source in sources) + packed


def ranked(plans: Sequence[ModelPlan]) -> list[ModelPlan]:
    """Return plans in the order in which this machine runs them well.

    Those that fit whole and answer as fast as a person reads come first, the larger before the
    smaller, which know less; then those that are slower, the faster first; then those whose experts
    are read from disk, and those that do not fit.
    """

    def place(plan: ModelPlan) -> tuple[bool, bool, bool, float]:
        memory, speeds = plan.memory, plan.speeds
        slow = speeds is not None and not speeds.is_quick
        last = -speeds.one_stream if speeds is not None and slow else -plan.parameters
        return bool(memory.problem), memory.streams, slow, last

    return sorted(plans, key=place)


def two_lines(plan: ModelPlan) -> tuple[str, str]:
    """Say in two lines what a model needs, and how much is to be downloaded."""
    memory, size = plan.memory, hub.human_bytes
    first = f"{plan.name}: {size(plan.origin.model_bytes)} to download, "
    if memory.problem:
        return first + "and it does not fit in memory.", f"{memory.problem} {memory.hint}".strip()
    first += f"{size(memory.peak_bytes)} of {size(memory.available_bytes)} of memory"
    context = f"for a context of {memory.context:,} tokens"
    if memory.streams:
        share = 100 * memory.experts_kept // max(1, sum(memory.experts.values()))
        return first + f" {context}.", (
            f"{share} % of its experts stay in memory, the others are read from disk as they are "
            f"needed: {_speed(plan) or 'slower'}."
        )
    return first + f" {context}.", f"It fits: {_speed(plan)}." if plan.speeds else "It fits."


def _speed(plan: ModelPlan) -> str:
    """Say how fast one conversation is; empty if that is not known."""
    if plan.speeds is None:
        return ""
    prompt, seconds = next(iter(plan.speeds.first_token_s.items()))
    return (
        f"about {significant(plan.speeds.one_stream)} tokens a second, the first of them "
        f"{significant(seconds, 2)} s after a prompt of {prompt:,}"
    )


def runs_badly(plan: ModelPlan) -> bool:
    """Whether a person should be asked before the download.

    It does not fit, or is slow: where speeds are not known, if experts are read from disk.
    """
    if plan.memory.problem or plan.speeds is None:
        return bool(plan.memory.problem) or plan.memory.streams
    return plan.speeds.one_stream < SLOW_TPS
