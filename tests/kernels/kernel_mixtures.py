"""Mixtures of random blocks, for the tests of experts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from kernel_inputs import random_raw

from dure import kernels
from dure.kernels import reference

NUM_EXPERTS = 8

# gate, up and down types, hidden, intermediate.
FLOATS = [
    ("F32", "F32", "F32", 24, 40),
    ("BF16", "BF16", "BF16", 64, 33),
    ("F16", "F32", "F16", 7, 9),
    ("F8G128", "F8G32", "F8G32", 256, 96),
]
QUANTIZED = [
    ("Q4_0", "Q4_0", "Q8_0", 64, 96),
    ("Q4_1", "Q5_0", "Q5_1", 96, 160),
    ("Q4_K", "Q4_K", "Q6_K", 256, 512),
    ("Q2_K", "Q3_K", "Q5_K", 512, 256),
    ("IQ4_XS", "IQ4_XS", "IQ4_NL", 256, 96),
    ("MXFP4", "MXFP4", "MXFP4", 160, 32),
    ("I4G128", "I4G128", "I4G32", 128, 96),
    ("I4G64", "Q4_0", "I4G32", 192, 160),
    ("I8G128", "I8G128", "I8G32", 128, 96),
    ("U8G128", "U8G32", "U8G32", 256, 160),
    ("A4G64", "A8G64", "A4G32", 128, 96),
    ("NV4G128", "NV4G128", "NV4G32", 128, 96),
]
MIXED = [("Q4_0", "Q4_0", "F16", 64, 48), ("F32", "Q8_0", "Q4_1", 32, 64)]


@functools.cache
def mixture_of(layout: Any) -> Mixture:
    """The one mixture of this layout: packing one takes longer than most tests of it."""
    return Mixture(layout)


class Mixture:
    """Experts of random blocks: the kernels' own record, and the parts to compute with by hand."""

    def __init__(self, layout: tuple[str, str, str, int, int], *, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        gate, up, down, self.hidden, self.intermediate = layout
        self.types = {"gate": gate, "up": up, "down": down}
        self.experts = kernels.Experts(NUM_EXPERTS, self.hidden, self.intermediate, gate, up, down)
        self.raw: list[dict[str, np.ndarray]] = []
        for expert in range(NUM_EXPERTS):
            parts = {name: random_raw(rng, t, *self.shape(name)) for name, t in self.types.items()}
            for name, raw in parts.items():
                self.experts.fill(name, expert, raw, threads=2)
            self.raw.append(parts)

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns of a part."""
        shape = (self.intermediate, self.hidden)
        return shape[::-1] if part == "down" else shape

    def matrices(self) -> list[reference.ExpertMatrices]:
        """The experts as the reference takes them."""
        return [
            reference.ExpertMatrices(
                **{part: reference.QuantizedMatrix(self.types[part], raw[part]) for part in raw}
            )
            for raw in self.raw
        ]

    def floats(self) -> list[reference.ExpertMatrices]:
        """The experts dequantised."""
        return [
            reference.ExpertMatrices(
                **{part: reference.dequantize(self.types[part], raw[part]) for part in raw}
            )
            for raw in self.raw
        ]


def routes(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Random experts without repeats in a row, some of them never chosen, and their weights."""
    popular = np.array([0, 1, 2, 4, 5, 7])
    ids = np.array([rng.permutation(popular)[:k] for _ in range(n)], np.int32)
    return ids, rng.uniform(0.05, 1, (n, k)).astype(np.float32)
