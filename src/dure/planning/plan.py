"""The plan of one model: its files found, here or on a hub, and what it needs, does and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure import hub
from dure.errors import ModelNotFoundError
from dure.formats.checkpoint import open_checkpoint
from dure.planning.memory import Footprint, footprint
from dure.planning.shapes import catalogued
from dure.planning.vendor_prices import VendorPrice, nearest_price
from dure.planning.work import ModelWork, work_of
from dure.weights.quantize import check_scheme

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

STREAMS = (1, 8, 32)
DEPTHS = (0, 4096, 32768)
PROMPTS = (512, 4096, 32768)


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


@dataclass(frozen=True)
class Wish:
    """How a model is to be used."""

    context: int | None = None  # tokens of each conversation; None: what loading takes
    users: int = 1
    budget: int | None = None  # bytes of memory; None: what is free
    available: int | None = None  # bytes that the machine has; None: what this one has free
    quantize: str | None = None


def plan_model(
    name: str, wish: Wish, *, progress: Callable[[hub.Progress], None] | None = None
) -> ModelPlan:
    """Plan a model: a short name, a hub's id, a file or a folder; its weights are not fetched.

    Raises the errors of dure.errors: for what cannot be found or fetched, and what does not run. A
    model that does not fit has a plan, whose `memory.problem` says so.
    """
    scheme = None if wish.quantize is None else check_scheme(wish.quantize)
    with _opened(name, progress) as (checkpoint, origin):
        work = work_of(checkpoint, name, quantize=scheme)
        memory = footprint(
            checkpoint,
            work,
            context=wish.context,
            users=wish.users,
            budget=wish.budget,
            available=wish.available,
            quantize=scheme,
        )
    entry = hub.load_catalogue().find(name.strip())
    count = parameters(work) if entry is None else entry.parameters
    priced = nearest_price(name, work.family, count)
    vendor, same = (None, False) if priced is None else priced
    return ModelPlan(name, origin, work, memory, vendor, same, count)


def parameters(work: ModelWork) -> int:
    """Count the numbers in all matrices."""
    return sum(m.rows * m.columns * m.count * max(1, m.experts) for m in work.matrices)


@contextmanager
def _opened(
    name: str, progress: Callable[[hub.Progress], None] | None
) -> Iterator[tuple[Checkpoint, Origin]]:
    """Open a model where it is here; else what the catalogue knows; else its headers on a hub."""
    try:
        found = hub.resolve(name, allow_download=False)
    except ModelNotFoundError:
        wanted = hub.parse_name(name)
        if wanted.kind == "path":
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
    with hub.headers_of(name, progress=progress) as headers:
        origin = Origin("hub", headers.source, headers.fetched_bytes, headers.model_bytes)
        yield open_checkpoint(headers.path), origin


def _size(checkpoint: Checkpoint) -> int:
    """Return the bytes of a model's files."""
    sources = {tensor.source for tensor in checkpoint.tensors.values()}
    packed = checkpoint.experts.size_bytes if checkpoint.experts else 0
    return sum(source.size_bytes for source in sources) + packed


def ranked(plans: Sequence[ModelPlan]) -> list[ModelPlan]:
    """Return plans in the order in which this machine runs them well.

    Those that fit whole come first, then those whose experts are read from disk, then those that
    do not fit; of each, the larger models before the smaller ones, which know less.
    """
    return sorted(
        plans, key=lambda plan: (bool(plan.memory.problem), plan.memory.streams, -plan.parameters)
    )


def is_here(name: str) -> bool:
    """Whether a model is on this machine. A name that is none is not."""
    try:
        hub.resolve(name, allow_download=False)
    except ModelNotFoundError:
        return False
    return True


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
            "needed: slower."
        )
    return first + f" {context}.", "It fits."


def runs_badly(plan: ModelPlan) -> bool:
    """Whether a person should be asked before the download: it does not fit, or not whole."""
    return bool(plan.memory.problem) or plan.memory.streams
