"""What the real quantisers wrote has their own dequantised values, and computes what these do.

Run by name, after build.py: DURE_QUANTISERS=FOLDER pytest tests/quantisers/check_quantisers.py.
pytest does not collect this file by itself. `DURE_QUANTISERS=FOLDER python check_quantisers.py`
prints a line for each folder instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dure import LLM, kernels
from dure.errors import DureError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.quantized_checkpoint import parameters
from dure.kernels.dequantize import dequantize
from dure.weights.names import canonical_name

if TYPE_CHECKING:
    from dure.formats.quantized_checkpoint import Parameter

FOLDER = Path(os.environ.get("DURE_QUANTISERS", "quantisers-are-not-built"))
ORACLES = sorted(path.parent.parent for path in FOLDER.glob("*/oracle/weights.safetensors"))
LOGITS = [path for path in ORACLES if (path / "oracle" / "logits.safetensors").is_file()]
# What dure refuses by name, and the word its error has to say.
REFUSED = {
    "quark-fp8_e5m2": "fp8_e5m2",
    "quark-int2_group": "int2",
    "quark-int3_row": "int3",
    "quark-amdfp4_global16": "fp8_e5m3",
    "quark-amdfp4_global32": "fp8_e5m3",
}
# Tools that multiply in another order: the last bit of a float32 may differ.
ONE_ROUNDING = re.compile(
    r"transformers-(bnb-int8|hqq)|modelopt-.*nvfp4|autoround-nvfp4|quark-int4_fp8"
)


def test_the_folders_are_there() -> None:
    assert ORACLES, f"build them first: python tests/quantisers/build.py {FOLDER}"


@pytest.mark.parametrize("folder", ORACLES, ids=lambda path: path.name)
def test_weights_are_the_tools_own_values(folder: Path) -> None:
    if folder.name in REFUSED:
        with pytest.raises(DureError, match=REFUSED[folder.name]):
            parameters(open_checkpoint(folder))
        return
    assert worst_of(folder) <= (2**-22 if ONE_ROUNDING.match(folder.name) else 0)


@pytest.mark.parametrize("folder", LOGITS, ids=lambda path: path.name)
def test_a_quantisers_folder_computes_what_its_own_values_compute(folder: Path) -> None:
    wanted = load_file(folder / "oracle" / "logits.safetensors")
    if folder.name in REFUSED:
        with pytest.raises(DureError, match=REFUSED[folder.name]):
            LLM(folder, exact=True)
        return
    got = LLM(folder, exact=True).logits(wanted["ids"][0].tolist())
    reference = wanted["logits"][0]
    assert np.abs(got - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize("folder", LOGITS, ids=lambda path: path.name)
def test_activations_of_eight_bits_change_little_where_the_same_experts_are_chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts of tiny random mixtures lie so close that 8 bits choose another for one token in 80
    (the two were 0.000 to 0.031 of the row's range apart), which moves logits by up to 19 %: so
    the choice of the run with float activations is made here, too.
    """
    if folder.name in REFUSED:
        pytest.skip("refused")
    wanted = load_file(folder / "oracle" / "logits.safetensors")
    ids, route = wanted["ids"][0].tolist(), kernels.route
    chosen: list[Any] = []

    def recorded(scores: Any, **how: Any) -> Any:
        chosen.append(route(scores, **how))
        return chosen[-1]

    monkeypatch.setattr(kernels, "route", recorded)
    LLM(folder, exact=True).logits(ids)
    again = iter(chosen)
    monkeypatch.setattr(kernels, "route", lambda _scores, **_how: next(again))
    got, reference = LLM(folder).logits(ids), wanted["logits"][0]
    assert next(again, None) is None
    apart = np.abs(got - reference).max(axis=1) / np.abs(reference).max()
    assert np.median(apart) < 0.015  # what 8 bits in blocks of 32 lose in two layers
    assert apart.max() < 0.04  # dense models of one-sided rows reach 0.032


def worst_of(folder: Path) -> float:
    """The largest difference of a weight from the tool's own, relative to its row's largest."""
    checkpoint = open_checkpoint(folder)
    found = {
        canonical_name(name, checkpoint.kind == "gguf", {}): each
        for name, each in parameters(checkpoint).items()
    }
    worst = 0.0
    for name, wanted in load_file(folder / "oracle" / "weights.safetensors").items():
        if ".mtp_" in name:
            continue  # a layer that drafts, which dure does not run
        got = _values(found, name).reshape(wanted.shape)
        most = np.abs(wanted).max(axis=-1, keepdims=True, initial=1e-30)
        worst = max(worst, float(np.nan_to_num(np.abs(got - wanted) / most, nan=1.0).max()))
    return worst


def _values(found: Mapping[str, Parameter], name: str) -> np.ndarray:
    """A parameter in float32: one by itself, or one expert of a stack."""
    if name in found:
        return _floats(found[name])
    layer, _, rest = name.partition(".mlp.experts.")
    expert, part, _ = rest.split(".")
    for stacked in (f"{layer}.mlp.experts.{part}.weight", f"{layer}.mlp.switch_mlp.{part}.weight"):
        if stacked in found:
            return _floats(found[stacked])[int(expert)]
    both = _floats(found[f"{layer}.mlp.experts.gate_up_proj"])[int(expert)]
    half = len(both) // 2
    return both[:half] if part == "gate_proj" else both[half:]


def _floats(parameter: Parameter) -> np.ndarray:
    values = dequantize(parameter.dtype, parameter.read())
    if isinstance(parameter, QuantizedMatrix) and parameter.columns is not None:
        ordered = np.empty_like(values)
        ordered[..., parameter.columns] = values
        values = ordered
    return values.reshape(parameter.shape)


if __name__ == "__main__":
    for folder in ORACLES:
        try:
            print(f"{folder.name}: {worst_of(folder):.2g}")
        except DureError as error:
            print(f"{folder.name}: refused: {error.message}")
