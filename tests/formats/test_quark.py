"""AMD Quark's folders stand for the values that Quark's own layers multiply by.

The layouts are those of quark 0.13's pack.py and realquantizer.py, written here by other means;
tests/quantisers compares with folders that Quark itself wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import bfloat16, folder, values

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.quantized_checkpoint import parameters

P = "model.layers.0.self_attn.o_proj"
W = f"{P}.weight"
ROWS, COLS, GROUP = 16, 96, 32
AWQ_ORDER, IN_ORDER = (0, 2, 4, 6, 1, 3, 5, 7), (0, 1, 2, 3, 4, 5, 6, 7)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FORMS = {"e2m3": (2, 3, 1), "e3m2": (3, 2, 3)}


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def scales(*shape: int) -> torch.Tensor:
    return bfloat16(np.asarray(np.exp(rng().normal(-3, 1, shape)), np.float32))


def config(
    *stages: str, scale_format: str | None = None, pack: str = "reorder", **more: Any
) -> dict[str, Any]:
    """A config.json of modules whose weights have these types, a stage each."""
    specs = [{"dtype": dtype, "scale_format": scale_format} for dtype in stages]
    weight = specs[0] if len(specs) == 1 else specs
    settings = {
        "quant_method": "quark",
        "global_quant_config": {"weight": weight, "input_tensors": None},
        "layer_quant_config": {},
        "exclude": ["lm_head"],
        "export": {"pack_method": pack, "weight_format": "real_quantized"},
        **more,
    }
    return {"quantization_config": settings}


def packed(codes: np.ndarray, pack: str) -> torch.Tensor:
    """Rows of codes of 4 bits, eight a word; the last word of a row may have some left over."""
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    eights = codes.reshape(len(codes), -1, 8).astype(np.uint32) & 15
    order = AWQ_ORDER if pack == "reorder" else IN_ORDER
    words = sum(eights[..., place] << np.uint32(4 * slot) for slot, place in enumerate(order))
    return torch.from_numpy(np.asarray(words, np.uint32).view(np.int32))


def drawn(dtype: str, *shape: int) -> np.ndarray:
    """Codes of an integer type."""
    bits = int(dtype[-1])
    low = 0 if dtype.startswith("u") else -(1 << bits - 1)
    return rng().integers(low, low + (1 << bits), shape)


def expected(codes: np.ndarray, zeros: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return scale.astype(np.float32) * (codes - zeros).astype(np.float32)


@pytest.mark.parametrize("pack", ["reorder", "order"])
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("rows", [16, 20])
def test_four_bits_in_groups_are_packed_along_the_rows(
    tmp_path: Path, dtype: str, pack: str, rows: int
) -> None:
    codes, zeros = drawn(dtype, rows, COLS), drawn(dtype, rows, COLS // GROUP)
    scale = scales(rows, COLS // GROUP)
    tensors = {
        W: packed(codes.T, pack),
        f"{P}.weight_scale": scale.T,
        f"{P}.weight_zero_point": packed(zeros.T, pack),
    }
    opened = folder(tmp_path, tensors, config(dtype, pack=pack))
    each = [part.repeat(GROUP, axis=1) for part in (zeros, scale.float().numpy())]
    np.testing.assert_array_equal(values(opened, W), expected(codes, *each))
    assert parameters(opened)[W].dtype == "I4G32"


@pytest.mark.parametrize("pack", ["reorder", "order"])
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("alone", [False, True])
def test_four_bits_by_row_or_matrix_are_packed_along_the_columns(
    tmp_path: Path, dtype: str, pack: str, alone: bool
) -> None:
    count = 1 if alone else ROWS
    codes, zeros, scale = drawn(dtype, ROWS, COLS), drawn(dtype, count), scales(count)
    word = torch.tensor(int(zeros[0]), dtype=torch.int32)
    tensors = {
        W: packed(codes, pack),
        f"{P}.weight_scale": scale[0] if alone else scale,
        f"{P}.weight_zero_point": word if alone else packed(zeros[None], pack)[0],
    }
    opened = folder(tmp_path, tensors, config(dtype, pack=pack))
    each = zeros[:, None], scale.float().numpy()[:, None]
    np.testing.assert_array_equal(values(opened, W), expected(codes, *each))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("shape", [(), (ROWS,), (ROWS, COLS // GROUP)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_eight_bits_are_code_less_zero_times_scale(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], symmetric: bool
) -> None:
    codes, zeros = drawn(dtype, ROWS, COLS), drawn(dtype, *shape)
    if symmetric:
        zeros = np.zeros_like(zeros)
    scale, kind = scales(*shape), np.dtype(dtype)
    turned = len(shape) == 2  # groups lie along the rows
    tensors = {
        W: torch.from_numpy((codes.T if turned else codes).astype(kind)),
        f"{P}.weight_scale": scale.T if turned else scale,
        f"{P}.weight_zero_point": torch.from_numpy(np.asarray(zeros.T, kind)),
        f"{P}.input_scale": torch.tensor(0.5),
        f"{P}.input_zero_point": torch.tensor(0, dtype=torch.int8),
    }
    opened = folder(tmp_path, tensors, config(dtype))
    each = [
        np.asarray(part).reshape(*shape, *[1] * (2 - len(shape))) for part in (zeros, scale.float())
    ]
    each = [part.repeat(GROUP, axis=1) if turned else part for part in each]
    np.testing.assert_array_equal(values(opened, W), expected(codes, *each))
    assert set(parameters(opened)) == {W}


@pytest.mark.parametrize("shape", [(), (ROWS,), (2, 3)])
def test_fp8_of_a_matrix_a_row_or_a_block(tmp_path: Path, shape: tuple[int, ...]) -> None:
    codes = torch.from_numpy(rng().normal(0, 1, (ROWS, COLS))).to(torch.float8_e4m3fn)
    scale = scales(*shape)
    settings = config("fp8_e4m3")
    if len(shape) == 2:
        spec = settings["quantization_config"]["global_quant_config"]["weight"]
        spec["block_size"] = [ROWS // 2, GROUP]
    opened = folder(tmp_path, {W: codes, f"{P}.weight_scale": scale}, settings)
    each = scale.float().numpy().reshape(*shape, *[1] * (2 - len(shape)))
    if len(shape) == 2:
        each = each.repeat(ROWS // 2, axis=0).repeat(GROUP, axis=1)
    np.testing.assert_array_equal(values(opened, W), codes.float().numpy() * each)


def six_bits(form: str) -> np.ndarray:
    """The values of the 64 codes of a form, as the standard defines them."""
    exponent_bits, fraction_bits, bias = FORMS[form]
    found = []
    for code in range(64):
        exponent = code >> fraction_bits & (1 << exponent_bits) - 1
        fraction = (code & (1 << fraction_bits) - 1) / (1 << fraction_bits)
        size = 2.0 ** (exponent - bias) * (1 + fraction)
        if exponent == 0:
            size = 2.0 ** (1 - bias) * fraction
        found.append(-size if code >= 32 else size)
    return np.array(found, np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_mxfp6_is_a_value_of_six_bits_times_a_power_of_two(tmp_path: Path, form: str) -> None:
    codes = np.concatenate([np.arange(64), rng().integers(0, 64, ROWS * COLS - 64)])
    codes = codes.reshape(ROWS, COLS)
    first, second, third, fourth = (codes[:, place::4] for place in range(4))
    triples = np.stack(
        [first | second << 6, second >> 2 | third << 4, third >> 4 | fourth << 2], axis=-1
    )
    powers = rng().integers(115, 130, (ROWS, COLS // 32)).astype(np.uint8)
    tensors = {
        W: torch.from_numpy((triples & 255).astype(np.uint8).reshape(ROWS, -1)),
        f"{P}.weight_scale": torch.from_numpy(powers),
    }
    opened = folder(tmp_path, tensors, config(f"fp6_{form}", scale_format="e8m0"))
    scale = np.float32(2) ** (powers.astype(np.float32) - 127)
    np.testing.assert_array_equal(
        values(opened, W), six_bits(form)[codes] * scale.repeat(32, axis=1)
    )
    powers[1, 1] = 255
    tensors[f"{P}.weight_scale"] = torch.from_numpy(powers)
    opened = folder(tmp_path, tensors, config(f"fp6_{form}", scale_format="e8m0"))
    with pytest.raises(ModelFileError, match="NaN"):
        parameters(opened)[W].read()


def e5m3(codes: np.ndarray) -> np.ndarray:
    """The values of e5m3: no sign, a bias of 15, subnormal numbers below 2^-14."""
    exponent, fraction = codes >> 3, (codes & 7) / 8
    normal = 2.0 ** (exponent - 15.0) * (1 + fraction)
    return np.where(exponent > 0, normal, 2.0**-14 * fraction).astype(np.float32)


@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("tool", ["quark", "auto-round"])
def test_amdfp4_is_a_value_of_e2m1_times_a_scale_of_e5m3(
    tmp_path: Path, tool: str, group: int
) -> None:
    codes = rng().integers(0, 16, (ROWS, COLS))
    steps = np.concatenate([np.arange(255), rng().integers(0, 255, ROWS * COLS // group)])
    steps = steps[: ROWS * COLS // group].reshape(ROWS, -1).astype(np.uint8)
    halves = torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8))
    settings = config("fp4", scale_format="e5m3")
    if tool == "auto-round":
        form = {"packing_format": "auto_round:llm_compressor_nvfp4_e5m3", "data_type": "nvfp4_v2"}
        settings = {"quantization_config": {"quant_method": tool, "bits": 4, **form}}
    name = W if tool == "quark" else f"{P}.weight_packed"
    tensors = {name: halves, f"{P}.weight_scale": torch.from_numpy(steps)}
    opened = folder(tmp_path, tensors, settings)
    wanted = E2M1[codes] * e5m3(steps.astype(np.int64)).repeat(group, axis=1)
    np.testing.assert_array_equal(values(opened, W), wanted)
    steps[0, 0] = 255
    tensors[f"{P}.weight_scale"] = torch.from_numpy(steps)
    with pytest.raises(ModelFileError, match="NaN"):
        parameters(folder(tmp_path, tensors, settings))[W].read()


def test_mxint4_of_autoround_is_a_signed_size_in_quarters_times_a_power_of_two(
    tmp_path: Path,
) -> None:
    codes = rng().integers(0, 16, (ROWS, COLS))
    powers = rng().integers(100, 140, (ROWS, COLS // 32)).astype(np.uint8)
    halves = torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8))
    tensors = {f"{P}.weight_packed": halves, f"{P}.weight_scale": torch.from_numpy(powers)}
    settings = {"quant_method": "auto-round", "bits": 4, "data_type": "mx_int"}
    opened = folder(tmp_path / "a", tensors, {"quantization_config": settings})
    sizes = np.where(codes < 8, codes, 8 - codes).astype(np.float32) / 4
    scale = np.float32(2) ** (powers.astype(np.float32) - 127)
    np.testing.assert_array_equal(values(opened, W), sizes * scale.repeat(32, axis=1))
    settings["extra_config"] = {"lm_head": {"data_type": "mx_fp"}}
    with pytest.raises(UnsupportedModelError, match="mx_fp and of mx_int"):
        parameters(folder(tmp_path / "b", tensors, {"quantization_config": settings}))


def test_four_bits_under_a_row_and_a_matrix_scale_have_one_rounding(tmp_path: Path) -> None:
    codes, row, whole = drawn("int4", ROWS, COLS), scales(ROWS).float(), scales(1).float()[0]
    tensors = {
        W: packed(codes, "reorder"),
        f"{P}.weight_scale": whole,
        f"{P}.weight_scale_2": row,
        f"{P}.weight_zero_point_2": torch.zeros(ROWS // 8, dtype=torch.int32),
    }
    opened = folder(tmp_path, tensors, config("fp8_e4m3", "int4"))
    tool = codes.astype(np.float32) * row.numpy()[:, None] * whole.numpy()
    np.testing.assert_allclose(values(opened, W), tool, rtol=2**-22)
    assert set(parameters(opened)) == {W}


@pytest.mark.parametrize("pack", ["reorder", "order"])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
def test_awq_by_quark_may_be_signed_in_order_or_of_eight_bits(
    tmp_path: Path, dtype: str, pack: str
) -> None:
    codes, zeros = drawn(dtype, ROWS, COLS), drawn(dtype, ROWS, COLS // GROUP)
    scale, norm, bits = scales(ROWS, COLS // GROUP), scales(COLS), int(dtype[-1])

    def stored(array: np.ndarray) -> torch.Tensor:
        return packed(array, pack) if bits == 4 else torch.from_numpy(array.astype(dtype))

    tensors = {
        f"{P}.qweight": stored(codes.T),
        f"{P}.scales": scale.T,
        f"{P}.qzeros": stored(zeros.T),
        "model.norm.qweight": norm,  # as it is written with transformers 5
    }
    settings = {
        "quant_method": "awq",
        "bits": bits,
        "group_size": GROUP,
        "version": "gemm",
        "zero_point": dtype.startswith("u"),
        "pack_method": pack,
    }
    opened = folder(tmp_path, tensors, {"quantization_config": settings})
    each = [part.repeat(GROUP, axis=1) for part in (zeros, scale.float().numpy())]
    np.testing.assert_array_equal(values(opened, W), expected(codes, *each))
    np.testing.assert_array_equal(values(opened, "model.norm.weight"), norm.float().numpy())


def test_a_folder_of_rounded_floats_is_read_as_floats(tmp_path: Path) -> None:
    weight = bfloat16(rng().normal(0, 1, (ROWS, COLS)))
    tensors = {W: weight, f"{P}.weight_scale": scales(), f"{P}.input_scale": scales()}
    export = {"pack_method": "reorder", "weight_format": "fake_quantized"}
    opened = folder(tmp_path, tensors, config("fp8_e4m3", export=export))
    np.testing.assert_array_equal(values(opened, W), weight.float().numpy())
    assert set(parameters(opened)) == {W}


@pytest.mark.parametrize(
    ("stages", "scale_format", "says"),
    [
        (["fp8_e5m2"], None, "fp8_e5m2"),
        (["fp4"], "e4m3", "fp4 with scales of e4m3"),
        (["fp4", "fp8_e5m3"], None, "fp4 and fp8_e5m3"),
        (["int3"], None, "int3"),
        (["int2"], None, "int2"),
        (["mx9"], None, "mx9"),
        (["bfp16"], None, "bfp16"),
    ],
)
def test_other_types_of_quark_are_refused_by_name(
    tmp_path: Path, stages: list[str], scale_format: str | None, says: str
) -> None:
    tensors = {W: torch.zeros(ROWS, COLS, dtype=torch.uint8), f"{P}.weight_scale": scales(ROWS)}
    opened = folder(tmp_path, tensors, config(*stages, scale_format=scale_format))
    with pytest.raises(UnsupportedModelError, match=f"AMD Quark's {says}, "):
        parameters(opened)


def test_signs_that_the_config_leaves_open_are_refused(tmp_path: Path) -> None:
    codes = drawn("int4", ROWS, COLS)
    tensors = {W: packed(codes, "reorder"), f"{P}.weight_scale": scales(ROWS)}
    other = {"*down_proj": {"weight": {"dtype": "uint4"}}}
    opened = folder(tmp_path, tensors, config("int4", layer_quant_config=other))
    with pytest.raises(UnsupportedModelError, match="int4 and of uint4"):
        parameters(opened)
    with pytest.raises(ModelFileError, match="int4 or uint4"):
        parameters(folder(tmp_path, tensors, config("fp8_e4m3")))


def test_a_model_that_turns_its_inputs_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {
        W: drawn_fp8(),
        f"{P}.weight_scale": scales(ROWS),
        f"{P}.input_rotation": torch.eye(COLS, dtype=torch.int8),
    }
    with pytest.raises(UnsupportedModelError, match="rotates activations"):
        parameters(folder(tmp_path, tensors, config("fp8_e4m3")))


def drawn_fp8() -> torch.Tensor:
    return torch.from_numpy(rng().normal(0, 1, (ROWS, COLS))).to(torch.float8_e4m3fn)


WRONG: dict[str, Any] = {
    "not a table": {"layer_quant_config": [1]},
    "quant_config that is not a table": {"global_quant_config": 3},
    "weight = 3": {"global_quant_config": {"weight": 3}},
    "pack_method = 'other'": {"export": {"pack_method": "other"}},
    "weight_format = 'onnx'": {"export": {"weight_format": "onnx"}},
}


@pytest.mark.parametrize("says", WRONG)
def test_a_config_that_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path, says: str) -> None:
    tensors = {W: drawn_fp8(), f"{P}.weight_scale": scales(ROWS)}
    opened = folder(tmp_path, tensors, config("fp8_e4m3", **WRONG[says]))
    with pytest.raises((ModelFileError, UnsupportedModelError), match=says):
        parameters(opened)
