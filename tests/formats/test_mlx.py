"""Folders of mlx-lm stand for what mlx.core.dequantize gives, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import bfloat16, bit_stream, folder, values, words

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.quantized_checkpoint import parameters

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
Q = "model.layers.0.self_attn.q_proj"


def affine(
    name: str, shape: tuple[int, ...], bits: int, group: int, seed: int = 0
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Tensors of one module, and what they stand for: scale * code + bias, in float32."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, shape)
    groups = (*shape[:-1], shape[-1] // group)
    scales, biases = (bfloat16(rng.normal(0, 0.1, groups)) for _ in range(2))
    tensors = {
        f"{name}.weight": words(bit_stream(codes, bits)),
        f"{name}.scales": scales,
        f"{name}.biases": biases,
    }
    each = (part.float().numpy().repeat(group, axis=-1) for part in (scales, biases))
    scale, bias = each
    return tensors, scale * codes.astype(np.float32) + bias


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine_weights_are_scale_times_code_plus_bias(
    tmp_path: Path, bits: int, group: int
) -> None:
    tensors, expected = affine(Q, (7, 256), bits, group)
    config = {"quantization": {"group_size": group, "bits": bits}}
    opened = folder(tmp_path, tensors, config, {"format": "mlx"})
    np.testing.assert_array_equal(values(opened, f"{Q}.weight"), expected)
    matrix = parameters(opened)[f"{Q}.weight"]
    assert (matrix.stored, matrix.shape, set(parameters(opened))) == (
        f"MLX-{bits}",
        (7, 256),
        {f"{Q}.weight"},
    )


def test_a_note_of_a_module_goes_before_the_defaults_and_null_is_the_modes_own(
    tmp_path: Path,
) -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(4)]
    made = [
        affine(names[0], (4, 128), 4, 32, seed=1),
        affine(names[1], (4, 128), 6, 64, seed=2),  # group_size null: 64, not the folder's 32
        affine(names[2], (4, 128), 8, 128, seed=3),
        affine(names[3], (4, 128), 4, 32, seed=4),
    ]
    settings: dict[str, Any] = {
        "group_size": 32,
        "bits": 4,
        names[1]: {"group_size": None, "bits": 6, "mode": "affine"},
        names[2]: {"group_size": 128, "bits": 8},
        names[3]: True,
    }
    tensors = {name: tensor for each, _ in made for name, tensor in each.items()}
    opened = folder(tmp_path, tensors, {"quantization": settings, "quantization_config": settings})
    for name, (_, expected) in zip(names, made, strict=True):
        np.testing.assert_array_equal(values(opened, f"{name}.weight"), expected)


def test_stacked_experts_and_their_router_come_under_the_usual_names(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    expected = {}
    for index, part in enumerate(("gate_proj", "up_proj", "down_proj")):
        name = f"model.layers.0.mlp.switch_mlp.{part}"
        each, expected[part] = affine(name, (3, 8, 64), 4, 64, seed=index)
        tensors |= each
    each, router = affine("model.layers.0.mlp.gate", (3, 64), 8, 64, seed=9)
    note = {"model.layers.0.mlp.gate": {"group_size": 64, "bits": 8}}
    config = {"quantization": {"group_size": 64, "bits": 4, "mode": "affine", **note}}
    opened = folder(tmp_path, tensors | each, config)
    for part, weight in expected.items():
        found = values(opened, f"model.layers.0.mlp.experts.{part}.weight")
        np.testing.assert_array_equal(found, weight)
    np.testing.assert_array_equal(values(opened, "model.layers.0.mlp.gate.weight"), router)


def test_a_folder_without_quantisation_has_its_experts_under_the_usual_names(
    tmp_path: Path,
) -> None:
    weight = torch.randn(3, 8, 32)
    opened = folder(tmp_path, {"model.layers.0.mlp.switch_mlp.up_proj.weight": weight}, {})
    [(name, tensor)] = parameters(opened).items()
    assert (name, tensor.shape) == ("model.layers.0.mlp.experts.up_proj.weight", (3, 8, 32))


def _fp4(rng: np.random.Generator, group: int, scales: np.ndarray) -> Any:
    codes = rng.integers(0, 16, (4, 128))
    return {f"{Q}.weight": words(bit_stream(codes, 4))}, E2M1[codes] * scales.repeat(group, axis=1)


def test_mxfp4_and_nvfp4_weights_are_values_times_scales(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    powers = rng.integers(110, 140, (4, 4)).astype(np.uint8)
    tensors, expected = _fp4(rng, 32, np.ldexp(np.float32(1), powers.astype(np.int32) - 127))
    tensors[f"{Q}.scales"] = torch.from_numpy(powers)
    opened = folder(tmp_path / "mx", tensors, {"quantization": {"mode": "mxfp4"}})
    np.testing.assert_array_equal(values(opened, f"{Q}.weight"), expected)

    e4m3 = torch.rand(4, 8).to(torch.float8_e4m3fn)
    tensors, expected = _fp4(rng, 16, e4m3.float().numpy())
    tensors[f"{Q}.scales"] = e4m3.view(torch.uint8)
    settings = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
    opened = folder(tmp_path / "nv", tensors, {"quantization": settings})
    np.testing.assert_array_equal(values(opened, f"{Q}.weight"), expected)


def test_mxfp8_weights_are_values_times_powers_of_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = torch.randn(4, 64).to(torch.float8_e4m3fn)
    powers = rng.integers(110, 140, (4, 2)).astype(np.uint8)
    tensors = {
        f"{Q}.weight": codes.view(torch.uint8).view(torch.int32).view(torch.uint32),
        f"{Q}.scales": torch.from_numpy(powers),
    }
    opened = folder(tmp_path, tensors, {"quantization": {"mode": "mxfp8", "bits": 8}})
    scales = np.ldexp(np.float32(1), powers.astype(np.int32) - 127).repeat(32, axis=1)
    np.testing.assert_array_equal(values(opened, f"{Q}.weight"), codes.float().numpy() * scales)


def _without(suffix: str) -> Any:
    return lambda tensors, _settings: tensors.pop(f"{Q}.{suffix}")


def _nan(tensors: dict[str, torch.Tensor], _settings: Any) -> None:
    tensors[f"{Q}.scales"][0, 0] = float("nan")


WRONG: dict[str, tuple[Any, type[DureError], str]] = {
    "no biases": (_without("biases"), ModelFileError, "biases"),
    "no weight": (_without("weight"), ModelFileError, "weight"),
    "a NaN": (_nan, ModelFileError, "NaN"),
    "other bits": (lambda _, s: s.update(bits=8), ModelFileError, "8 bits in groups of 64"),
    "no bits": (lambda _, s: s.update(bits=0), ModelFileError, "bits"),
    "a group of 48": (lambda _, s: s.update(group_size=48), ModelFileError, "groups of 48"),
    "bits in words": (lambda _, s: s.update(bits="4"), ModelFileError, "bits"),
    "another mode": (lambda _, s: s.update(mode="ternary"), UnsupportedModelError, "ternary"),
    "a mode that is a table": (lambda _, s: s.update(mode={}), UnsupportedModelError, "mode"),
    "7 bits": (lambda _, s: s.update(bits=7), ModelFileError, "7 bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_contradicts_itself_is_refused_by_name(tmp_path: Path, what: str) -> None:
    change, error, said = WRONG[what]
    tensors, _ = affine(Q, (4, 128), 4, 64)
    settings = {"group_size": 64, "bits": 4}
    change(tensors, settings)
    opened = folder(tmp_path, tensors, {"quantization": settings})
    with pytest.raises(error, match=said):
        parameters(opened)[f"{Q}.weight"].read()


def test_settings_that_are_a_list_are_refused(tmp_path: Path) -> None:
    weight = torch.randn(3, 8, 32)
    tensors = {"model.layers.0.mlp.switch_mlp.up_proj.weight": weight}
    with pytest.raises(ModelFileError, match="not a table"):
        parameters(folder(tmp_path, tensors, {"quantization": [4, 64]}))
