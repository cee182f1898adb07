"""Where a model is cut in stages: by the memory and the speed of each node."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE, CacheDtype
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.memory import OVERHEAD_BYTES, gigabytes

if TYPE_CHECKING:
    from dure.models import StagedModel
    from dure.weights.header_weights import AskedMatrix, HeaderWeights
    from dure.weights.span import Span

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_ROUNDS = 60  # of halving: more than a float has bits


@dataclass(frozen=True)
class Cost:
    """What a layer, the embedding or the head takes."""

    weight_bytes: int = 0  # in memory
    read_bytes: float = 0.0  # of them, those that a token goes through
    token_bytes: int = 0  # of the cache, for each token
    state_bytes: int = 0  # for each sequence

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weight_bytes + other.weight_bytes,
            self.read_bytes + other.read_bytes,
            self.token_bytes + other.token_bytes,
            self.state_bytes + other.state_bytes,
        )


@dataclass(frozen=True)
class Costs:
    """What each part of a model takes."""

    layers: tuple[Cost, ...]
    embedding: Cost
    head: Cost
    cuts: frozenset[int]  # the layers before which it may be cut
    tied: bool = False  # whether the embedding is the head, too

    @classmethod
    def of(cls, model: StagedModel, weights: HeaderWeights, dtype: CacheDtype) -> Costs:
        """Read the costs of a model that was built from headers alone."""
        count = max(model.cache_layers, default=0) + 1
        asked = weights.asked()
        numbers = [_LAYER.match(each.name) for each in asked]
        count = max([count, *(int(found[1]) + 1 for found in numbers if found)])
        layers = [Cost(weights.vector_bytes // count)] * count
        embedding = head = Cost()
        for each, found in zip(asked, numbers, strict=True):
            cost = Cost(each.nbytes, _read(each))
            if found:
                layers[int(found[1])] += cost
            elif each.name.startswith("model.embed_tokens."):
                embedding += Cost(each.nbytes)  # of which a token is a row
            else:
                head += cost
        for layer, spec in zip(model.cache_layers, model.kv_cache_specs, strict=True):
            layers[layer] += Cost(0, 0, spec.bytes_per_token(dtype), spec.bytes_per_sequence)
        tied = head.weight_bytes == 0  # or there is none: then nobody reads the embedding for it
        if tied:
            head = Cost(embedding.weight_bytes, embedding.weight_bytes)
        return cls(tuple(layers), embedding, head, frozenset(model.cuts), tied=tied)

    def of_span(self, span: Span) -> Cost:
        """Return what the stage of a span takes."""
        cost = sum(self.layers[span.first : span.last], Cost())
        if span.embeds and span.ends and self.tied:
            return cost + self.head  # one matrix is both
        cost += self.embedding if span.embeds else Cost()
        return cost + (self.head if span.ends else Cost())


@dataclass(frozen=True)
class Room:
    """What a node has for a stage."""

    memory: int  # bytes
    speed: float  # bytes of weights a second


def need(cost: Cost, tokens: int, sequences: int) -> int:
    """Return the bytes that a stage takes, with a cache for so many tokens and sequences."""
    return (
        cost.weight_bytes
        + OVERHEAD_BYTES
        + cost.token_bytes * (tokens + BLOCK_SIZE)
        + cost.state_bytes * sequences
    )


def cut(
    name: str,
    costs: Costs,
    rooms: Sequence[Room],
    *,
    tokens: int,
    sequences: int,
    every: bool = False,
) -> tuple[int, ...]:
    """Return the layers before which stages begin, one stage a room, in the order of the rooms.

    The slowest stage is as fast as can be. A stage may get no layer, unless `every` one must have
    some; the last has the head in any case. tokens, sequences: that the cache must hold. Raises
    NotEnoughMemoryError, with what would be needed, and InvalidRequestError for more stages than
    the model can be cut in.
    """
    most = len(_ends(costs)) + 1
    if every and len(rooms) > most:
        raise InvalidRequestError(
            f"{name} cannot be cut in {len(rooms)} stages; at most {most} are possible.",
            hint="ask for fewer, or for auto",
        )
    best = _starts(costs, rooms, float("inf"), tokens, sequences, every=every)
    if best is None:
        whole = sum(costs.layers, costs.embedding + costs.head)
        needed = need(whole, tokens, sequences) + (len(rooms) - 1) * OVERHEAD_BYTES
        there = " and ".join(gigabytes(room.memory) for room in rooms)
        raise NotEnoughMemoryError(
            f"{name} in {len(rooms)} stages needs {gigabytes(needed)} of memory, and the nodes "
            f"have {there}.",
            hint="add a node, or ask for a shorter context",
        )
    low, high = 0.0, sum(map(_read_of, costs.layers)) + costs.head.read_bytes
    high /= min(room.speed for room in rooms)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        found = _starts(costs, rooms, middle, tokens, sequences, every=every)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _ends(costs: Costs) -> list[int]:
    """Return where stages may end, each as the number of the layer behind its last."""
    layers = len(costs.layers)
    return [each for each in range(1, layers + 1) if each in costs.cuts or each == layers]


def _starts(
    costs: Costs,
    rooms: Sequence[Room],
    seconds: float,
    tokens: int,
    sequences: int,
    *,
    every: bool,
) -> tuple[int, ...] | None:
    """Give each room as many layers as it has memory for and reads in `seconds`; None: too many.

    every: each room but the last gets some, and leaves some to those behind it.
    """
    layers, at, starts, ends = costs.layers, 0, [], _ends(costs)
    for place, room in enumerate(rooms[:-1]):
        cost = costs.embedding if at == 0 else Cost()
        left = len(rooms) - 2 - place if every else 0  # rooms behind it that must get some
        usable = [each for each in ends[: len(ends) - left] if each > at]
        reached = at
        for end in usable:
            cost += sum(layers[reached:end], Cost())
            fits = need(cost, tokens, sequences) <= room.memory
            if not fits or cost.read_bytes > seconds * room.speed:
                break
            reached = end
        if every and reached == at:
            return None
        at = reached
        starts.append(at)
    rest = sum(layers[at:], costs.head + (costs.embedding if at == 0 else Cost()))
    if need(rest, tokens, sequences) > rooms[-1].memory:
        return None
    return tuple(starts) if rest.read_bytes <= seconds * rooms[-1].speed else None


def _read_of(cost: Cost) -> float:
    return cost.read_bytes


def _read(matrix: AskedMatrix) -> float:
    share = matrix.active / matrix.experts if matrix.experts else 1.0
    return 0.0 if matrix.on_disk else matrix.nbytes * share
