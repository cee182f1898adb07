"""A part of routings.py: policies of a cache of experts, and what they would read.

Time is in rows: a step of n rows is n of time, so that a prompt ages what was before it as the same
tokens one by one would. Scores are kept as they were at time 0 times 2^(time / half-life): ageing
then costs nothing, and only what is used changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Request:
    """One layer of one step: the experts ids (n, k) that its n rows want."""

    layer: int
    ids: np.ndarray
    logits: np.ndarray  # (n, experts)
    counts: bool  # whether its misses are counted
    one_sequence: bool = False  # whose rows follow each other, as in a prompt


class Policy:
    """Scores experts; a full cache drops the lowest.

    keeps_all: a missing expert always takes a place. Otherwise it is used and forgotten if its
    score is below that of all that are kept.
    """

    keeps_all = True
    per_layer = False

    def __init__(self, layers: int, experts: int) -> None:
        self.time = np.zeros(layers)
        self.value = np.zeros((layers, experts))

    def use(self, request: Request) -> None:
        """Count the uses of the request."""
        raise NotImplementedError

    def scores(self, layer: int | None) -> np.ndarray:
        """The present scores (layers, experts), or those of a layer (experts,)."""
        return self.value if layer is None else self.value[layer]


class LastUsed(Policy):
    """LRU. Of one step's experts, those of later rows are later."""

    def use(self, request: Request) -> None:
        self.time[request.layer] += len(request.ids)
        # Rows in order, so that the last one stands where an expert is in several.
        for row, at in zip(request.ids, range(-len(request.ids) + 1, 1), strict=True):
            self.value[request.layer, row] = self.time[request.layer] + at


class Decayed(Policy):
    """The number of uses, each of which halves in `half_lives` tokens; a mixture of several."""

    def __init__(
        self,
        layers: int,
        experts: int,
        *,
        half_lives: Sequence[float],
        shares: Sequence[float] = (1.0,),
        soft: float = 0.0,
        by_rows: bool = False,
        most: float = np.inf,
    ) -> None:
        """Make it, with all counts at zero.

        shares: what each half-life's count weighs, divided by its half-life, so that an expert that
            is always used has the same in each.
        soft: what experts that a row did not choose get of a use: exp((logit - the last chosen
            one's) / (soft * the logits' deviation)); 0: nothing.
        by_rows: a step of one row of each of eight sequences is 8 of time, not 1.
        most: of time that a step may be, however long its prompt.
        """
        super().__init__(layers, experts)
        self.half_lives, self.shares, self.soft = half_lives, shares, soft
        self.by_rows, self.most = by_rows, most
        self.parts = np.zeros((len(half_lives), layers, experts))

    def use(self, request: Request) -> None:
        layer, rows = request.layer, len(request.ids)
        uses = np.zeros((rows, self.value.shape[1]))
        np.put_along_axis(uses, request.ids.astype(np.int64), 1.0, axis=1)
        if self.soft:
            k = request.ids.shape[1]
            edge = -np.partition(-request.logits, k - 1, axis=1)[:, k - 1 : k]
            spread = request.logits.std(axis=1, keepdims=True)
            uses = np.maximum(
                uses, np.exp(np.minimum(0, request.logits - edge) / (self.soft * spread))
            )
        age = (
            np.arange(rows - 1, -1, -1) if request.one_sequence or self.by_rows else np.zeros(rows)
        )
        passed = min(self.most, age[0] + 1)
        self.value[layer] = 0.0
        for part, (half_life, share) in enumerate(zip(self.half_lives, self.shares, strict=True)):
            self.parts[part, layer] *= 0.5 ** (passed / half_life)
            self.parts[part, layer] += (0.5 ** (age / half_life)) @ uses
            weight = share * (1 - 0.5 ** (1 / half_life))
            self.value[layer] += weight * self.parts[part, layer]


def replay(
    make: Callable[[int, int], Policy] | type[Belady],
    requests: Sequence[Request],
    size: int,
    layers: int,
    experts: int,
) -> int:
    """How many experts a cache of `size` reads for those requests that count, starting empty."""
    if make is Belady:
        return Belady(requests, layers, experts).misses(size)
    policy = make(layers, experts)
    assert isinstance(policy, Policy)
    kept = np.zeros((layers, experts), bool)
    held, share, missed = 0, size // layers, 0
    for request in requests:
        layer = request.layer
        wanted = np.unique(request.ids)
        policy.use(request)
        missing = wanted[~kept[layer, wanted]]
        if request.counts:
            missed += len(missing)
        if not len(missing):
            continue
        scope = layer if policy.per_layer else None
        room = (share - int(kept[layer].sum())) if policy.per_layer else size - held
        kept[layer, missing] = True
        held += len(missing)
        too_many = len(missing) - room
        if too_many <= 0:
            continue
        present = kept[layer] if policy.per_layer else kept
        scores = np.where(present, policy.scores(scope), np.inf)
        if policy.keeps_all:  # what this request uses goes last
            used = scores if policy.per_layer else scores[layer]
            used[wanted] += 1e300 if len(wanted) < (share if policy.per_layer else size) else 0
        drop = np.argpartition(scores, too_many - 1, axis=None)[:too_many]
        present.reshape(-1)[drop] = False
        held -= too_many
    return missed


class Belady:
    """The best that a cache can do, which knows all requests: it keeps what is wanted soonest."""

    def __init__(self, requests: Sequence[Request], layers: int, experts: int) -> None:
        self.layers, self.experts = layers, experts
        self.wanted = [np.unique(request.ids) for request in requests]
        self.requests = requests
        self.next = [np.empty(0)] * len(requests)
        coming = np.full((layers, experts), np.inf)
        for at in range(len(requests) - 1, -1, -1):
            layer, wanted = requests[at].layer, self.wanted[at]
            self.next[at] = coming[layer, wanted]
            coming[layer, wanted] = at

    def misses(self, size: int) -> int:
        """How many experts are read where requests count."""
        kept = np.zeros((self.layers, self.experts), bool)
        coming = np.full((self.layers, self.experts), np.inf)
        held = missed = 0
        for request, wanted, following in zip(self.requests, self.wanted, self.next, strict=True):
            layer = request.layer
            missing = wanted[~kept[layer, wanted]]
            if request.counts:
                missed += len(missing)
            coming[layer, wanted] = following
            kept[layer, missing] = True
            held += len(missing)
            if held > size:
                latest = np.where(kept, coming, -1.0)
                drop = np.argpartition(-latest, held - size - 1, axis=None)[: held - size]
                kept.reshape(-1)[drop] = False
                held = size
        return missed


def _decayed(*half_lives: float, keep_all: bool = False, layered: bool = False, **options: object):  # type: ignore[no-untyped-def]
    """A Decayed that `replay` can make."""

    def make(layers: int, experts: int) -> Policy:
        policy = Decayed(layers, experts, half_lives=half_lives, **options)  # type: ignore[arg-type]
        policy.keeps_all, policy.per_layer = keep_all, layered
        return policy

    return make


def _last_used(*, layered: bool = False) -> Callable[[int, int], Policy]:
    def make(layers: int, experts: int) -> Policy:
        policy = LastUsed(layers, experts)
        policy.per_layer = layered
        return policy

    return make


SOFT = (0.3, 0.6, 1.0)
HALF_LIVES = (4, 8, 16, 32, 64, 128)
POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "LRU": _last_used(),
    "LRU, a share a layer": _last_used(layered=True),
    **{f"LFU, half-life {h}": _decayed(h) for h in HALF_LIVES},
    "LFU, half-life 8, by rows": _decayed(8, by_rows=True),
    "LFU, half-life 16, all are kept": _decayed(16, keep_all=True),
    "LFU, half-life 16, a share a layer": _decayed(16, layered=True),
    "LFU, 8 + 256": _decayed(8, 256, shares=(0.5, 0.5)),
    "LFU, 8 + 1024": _decayed(8, 1024, shares=(0.5, 0.5)),
    **{f"near misses {s}, half-life {h}": _decayed(h, soft=s) for s in SOFT for h in (4, 8, 16)},
    "near misses 0.6, half-life 8, a step at most 8": _decayed(8, soft=0.6, most=8),
    "near misses 0.6, half-life 8, a step at most 32": _decayed(8, soft=0.6, most=32),
    "near misses 0.6, 8 + 1024": _decayed(8, 1024, soft=0.6, shares=(0.7, 0.3)),
}
