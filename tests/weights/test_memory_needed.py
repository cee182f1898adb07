"""The memory that is planned, and that `dure show` says, is what quantised folders take packed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
from tiny_gguf import config_of, parameters_of

from dure import kernels
from dure.formats.checkpoint import open_checkpoint
from dure.loading.describe import describe
from dure.models import load_model, memory_needed

WIDE = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256}
EXPERT = re.compile(r".*\.experts\.(\d+)\.(gate|up|down)_proj\.weight")


def gptq_of(bits: int, group: int = 64) -> Callable[[np.ndarray], packings.Packed]:
    return lambda weight: packings.gptq(weight, bits=bits, group=group)


def alike(name: str, weight: np.ndarray) -> packings.Packed | None:
    """Experts of 4 bits in groups of 64."""
    return gptq_of(4)(weight) if EXPERT.fullmatch(name) else None


def of_two_types(name: str, weight: np.ndarray) -> packings.Packed | None:
    """Odd experts of 8 bits: all of a mixture get one type that holds both."""
    match = EXPERT.fullmatch(name)
    return gptq_of(8 if int(match[1]) % 2 else 4)(weight) if match else None


def some_of_floats(name: str, weight: np.ndarray) -> packings.Packed | None:
    """Odd experts not quantised: all of a mixture are float32."""
    match = EXPERT.fullmatch(name)
    return gptq_of(4)(weight) if match and int(match[1]) % 2 == 0 else None


def in_odd_groups(name: str, weight: np.ndarray) -> packings.Packed | None:
    """Groups of 8, which no type has: float32."""
    return gptq_of(4, 8)(weight) if ".self_attn." in name and weight.ndim == 2 else None


@pytest.mark.parametrize("pack", [alike, of_two_types, some_of_floats, in_odd_groups])
def test_what_is_planned_is_what_the_packed_weights_take(
    tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def recorded(kind: type) -> Any:
        def make(*arguments: Any) -> Any:
            made.append(kind(*arguments))
            return made[-1]

        return make

    config = config_of("qwen3_moe", **WIDE)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}
    settings["dynamic"] = {"+:.*": {"bits": 8}, "+:attn": {"group_size": 8}}
    packings.write_packed(tmp_path, config, parameters_of(config), settings, pack)
    checkpoint = open_checkpoint(tmp_path)
    needed = memory_needed(checkpoint)
    monkeypatch.setattr(kernels, "Matrix", recorded(kernels.Matrix))
    monkeypatch.setattr(kernels, "Experts", recorded(kernels.Experts))
    load_model(checkpoint)
    packed = sum(each.nbytes for each in made)
    # Vectors are kept as floats, and each expert starts on a page of 4 KiB, which nobody counts.
    assert abs(packed - needed) < 4096 * sum(getattr(each, "count", 2) for each in made)
    assert describe(checkpoint).weight_bytes == needed
