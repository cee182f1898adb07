"""Tiny models that several tests share: each is made, saved and run by the oracle once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import loaded, oracle, oracle_logits, random_sequences, saved

from dure.models import Model

SEQUENCES = random_sequences(75, 40, 5, 33)


@dataclass(frozen=True)
class Tiny:
    """One tiny model: saved as transformers saves it, and what transformers computes."""

    name: str
    folder: Path
    model: Model  # ours, of that folder
    sequences: list[list[int]]
    oracle: Any  # for oracle_logits of other tokens

    @cached_property
    def expected(self) -> list[np.ndarray]:
        """transformers' logits (tokens, vocabulary) of each sequence."""
        return [oracle_logits(self.oracle, tokens) for tokens in self.sequences]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The Tiny of a name in tiny_models.MODELS."""
    made: dict[str, Tiny] = {}

    def make(name: str) -> Tiny:
        if name not in made:
            model = oracle(name)
            folder = saved(name, model, tmp_path_factory.mktemp(name))
            made[name] = Tiny(name, folder, loaded(folder), SEQUENCES, model)
        return made[name]

    return make
