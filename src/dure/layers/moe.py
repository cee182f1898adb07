"""Mixtures of experts: a router, its experts, and a shared expert beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure import kernels
from dure.layers.basic import GatedMLP, Linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Rows = Floats | kernels.Activations  # (n, width), what a layer takes


@dataclass(frozen=True)
class Routing:
    """How a router chooses a row's experts, and weighs them; see kernels.route."""

    top_k: int
    normalize: bool
    score: Literal["softmax", "sigmoid"] = "softmax"
    group_rule: kernels.GroupRule = "none"
    groups: int = 1
    kept_groups: int = 1
    scale: float = 1.0


class SparseMLP:
    """The weighted sum of each row's top-k experts, plus the shared expert if there is one."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        *,
        hidden: int,
        intermediate: int,
        experts: int,
        routing: Routing,
        bias: str | None = None,
        scales: str | None = None,
        shared: str | None = None,
        shared_intermediate: int = 0,
        shared_bias: bool = False,
        shared_gate: str | None = None,
        gate_bias: bool = False,
        expert_biases: bool = False,
        clamp: tuple[float, float] | None = None,
        limits: tuple[float, float] = (0.0, 0.0),
        gelu: bool = False,
    ) -> None:
        """Load the router, the experts, and the shared expert if there is one.

        bias (for the choice), scales (of experts' weights), shared (an MLP of width
        shared_intermediate, with biases if shared_bias) and shared_gate (whose sigmoid weighs it):
        their names below `name`; those of bias and scales are complete. gate_bias: whether the
        router's product has a bias; expert_biases: those of the experts'. clamp: alpha and limit of
        the experts' activation, if it is not silu's (`Experts.clamp`). limits: of silu and of what
        it multiplies, in the experts and in the shared one; 0: none (`Experts.limit`). gelu:
        whether it is GELU's, by its tanh.
        """
        self.gate = Linear(weights, f"{name}.gate", experts, hidden, bias=gate_bias)
        self.experts = weights.experts(f"{name}.experts", experts, hidden, intermediate)
        if expert_biases:
            widths = {"gate": intermediate, "up": intermediate, "down": hidden}
            biases = [
                weights.floats(f"{name}.experts.{part}_proj.bias", (experts, width))
                for part, width in widths.items()
            ]
            if self.experts is not None:  # None where tensors are missing, which `check` tells
                self.experts.add_biases(*map(np.ascontiguousarray, biases))
        if clamp is not None and self.experts is not None:
            self.experts.clamp(*clamp)
        if limits[0] and self.experts is not None:
            self.experts.limit(limits[0])
        if (gelu or weights.gelu) and self.experts is not None:
            self.experts.use_gelu()
        self.bias = weights.vector(f"{name}.{bias}", experts, as_row=True) if bias else None
        self.scales = weights.vector(f"{name}.{scales}", experts, as_row=True) if scales else None
        self.shared = self.shared_gate = None
        if shared is not None:
            self.shared = GatedMLP(
                weights,
                f"{name}.{shared}",
                hidden,
                shared_intermediate,
                bias=shared_bias,
                limit=limits[1],
            )
        if shared_gate is not None:
            self.shared_gate = Linear(weights, f"{name}.{shared_gate}", 1, hidden)
        self._routing, self._pool = routing, weights.expert_pool
        self._exact, self._threads = weights.exact, weights.threads
        if self.experts is not None:
            self._pool.attach(self.experts, self._experts_of, top_k=routing.top_k)

    def __call__(
        self, x: Rows, *, add: Floats | None = None, chosen_by: Rows | None = None
    ) -> Floats:
        """Return the mixture of x (n, hidden) + add.

        chosen_by: what the router gets, (n, hidden), if it is not x.
        """
        seen = x if chosen_by is None else chosen_by
        logits = self.gate(seen)
        ids, shares = self._route(logits)
        work = self._pool.begin(self.experts, ids, seen, self._scores(logits))
        if self.shared is not None:
            add = self._shared(x, add, self.shared)
        return work.mlp(x, shares, add=add, exact=self._exact, threads=self._threads)

    def _experts_of(self, x: Rows) -> Ints:
        return self._route(self.gate(x))[0]

    def _scores(self, logits: Floats) -> Floats:
        """Return what a row's experts are chosen by, (n, experts), but for groups of them."""
        if not self._pool.streams or self._routing.score == "softmax":
            return logits
        scores: Floats = np.float32(1) / (np.float32(1) + np.exp(-logits))
        return scores if self.bias is None else scores + self.bias

    def _route(self, logits: Floats) -> tuple[Ints, Floats]:
        """Return the experts of each row and their shares, (n, top_k) each."""
        routing = self._routing
        return kernels.route(
            logits,
            top_k=routing.top_k,
            normalize=routing.normalize,
            score=routing.score,
            bias=self.bias,
            group_rule=routing.group_rule,
            groups=routing.groups,
            kept_groups=routing.kept_groups,
            scale=routing.scale,
            scales=self.scales,
        )

    def _shared(self, x: Rows, add: Floats | None, shared: GatedMLP) -> Floats:
        """Compute the shared expert, weighed by its gate if it has one, + add."""
        if self.shared_gate is None:
            return shared(x, add=add)
        # A mixture of one expert, whose router knows no other.
        ids, shares = kernels.route(self.shared_gate(x), top_k=1, normalize=False, score="sigmoid")
        return kernels.experts_mlp(
            x, ids, shares, shared.weight, add=add, exact=self._exact, threads=self._threads
        )
