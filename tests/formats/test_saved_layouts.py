"""Folders of bitsandbytes, torchao, ModelOpt, HQQ and msModelSlim stand for their tools' values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import bfloat16, folder, values
from safetensors.torch import load_file, save_file

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.formats.quantized_checkpoint import parameters

P = "model.layers.0.self_attn.o_proj"
W = f"{P}.weight"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def int8(rows: int, cols: int) -> torch.Tensor:
    return torch.from_numpy(rng().integers(-128, 128, (rows, cols)).astype(np.int8))


def scales(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.exp(rng().normal(-3, 1, shape)).astype(np.float32))


def method(name: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": name, **more}}


def table(*, double: bool) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """bitsandbytes' four bits of a matrix (6, 96): blocks of 64 go over the rows' ends."""
    codes = rng().integers(0, 16, 6 * 96)
    levels = np.sort(rng().normal(0, 0.5, 16)).astype(np.float32)
    blocks = 6 * 96 // 64
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": [6, 96]}
    tensors = {
        W: torch.from_numpy((codes[0::2] << 4 | codes[1::2]).astype(np.uint8)[:, None]),
        f"{W}.quant_map": torch.from_numpy(levels),
    }
    absmax = scales(blocks).numpy()
    if double:
        nested = rng().integers(0, 256, blocks).astype(np.uint8)
        second = np.sort(rng().normal(0, 0.5, 256)).astype(np.float32)
        state |= {"nested_blocksize": 4, "nested_offset": 0.25}
        outer = scales(-(-blocks // 4)).numpy()
        tensors |= {
            f"{W}.absmax": torch.from_numpy(nested),
            f"{W}.nested_quant_map": torch.from_numpy(second),
            f"{W}.nested_absmax": torch.from_numpy(outer),
        }
        absmax = second[nested] * outer[np.arange(blocks) // 4] + np.float32(0.25)
    else:
        tensors[f"{W}.absmax"] = torch.from_numpy(absmax)
    raw = json.dumps(state).encode()
    tensors[f"{W}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(raw), dtype=torch.uint8)
    return tensors, (levels[codes] * absmax.repeat(64)).reshape(6, 96)


@pytest.mark.parametrize("double", [False, True])
def test_nf4_is_a_tables_entry_times_the_scale_of_its_block(tmp_path: Path, double: bool) -> None:
    tensors, expected = table(double=double)
    opened = folder(tmp_path, tensors, method("bitsandbytes", load_in_4bit=True))
    np.testing.assert_array_equal(values(opened, W), expected)
    assert set(parameters(opened)) == {W}


def test_int8_of_bitsandbytes_is_code_times_its_rows_scale_over_127(tmp_path: Path) -> None:
    codes, scb = int8(5, 96), scales(5)
    tensors = {W: codes, f"{P}.SCB": scb, f"{P}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    opened = folder(tmp_path, tensors, method("bitsandbytes", load_in_8bit=True))
    expected = (scb.numpy() / np.float32(127))[:, None] * codes.numpy().astype(np.float32)
    np.testing.assert_array_equal(values(opened, W), expected)
    tensors[f"{P}.weight_format"] = torch.tensor(2, dtype=torch.uint8)
    with pytest.raises(UnsupportedModelError, match="weight_format"):
        parameters(folder(tmp_path, tensors, method("bitsandbytes")))


def torchao(
    path: Path, kind: str, data: dict[str, Any], parts: dict[str, torch.Tensor]
) -> Checkpoint:
    note = json.dumps({"_type": kind, "_data": data, "_tensor_data_names": list(parts)})
    tensors = {f"{P}._weight_{name}": part for name, part in parts.items()}
    return folder(path, tensors, method("torchao"), {"format": "pt", W: note})


@pytest.mark.parametrize(("groups", "zeros"), [(1, False), (1, True), (3, False), (3, True)])
def test_int8_of_torchao_is_code_less_zero_times_scale(
    tmp_path: Path, groups: int, zeros: bool
) -> None:
    codes, scale = int8(4, 96), scales(4, groups)
    zero = torch.from_numpy(rng().integers(-9, 9, (4, groups)).astype(np.int8)) * zeros
    parts = {"qdata": codes, "scale": scale, "zero_point": zero}
    opened = torchao(tmp_path, "Int8Tensor", {"block_size": [1, 96 // groups]}, parts)
    each = [part.numpy().astype(np.float32).repeat(96 // groups, axis=1) for part in (scale, zero)]
    expected = each[0] * (codes.numpy().astype(np.float32) - each[1])
    np.testing.assert_array_equal(values(opened, W), expected)


def test_int4_and_float8_of_torchao_are_read_and_other_classes_refused(tmp_path: Path) -> None:
    codes = torch.from_numpy(rng().integers(-8, 8, (4, 64)).astype(np.int8))
    scale = bfloat16(np.exp(rng().normal(-3, 1, (4, 2))))
    int4 = {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}}
    parts = {"qdata": codes, "scale": scale}
    opened = torchao(tmp_path / "a", "IntxUnpackedToInt8Tensor", int4, parts)
    expected = scale.float().numpy().repeat(32, axis=1) * codes.numpy()
    np.testing.assert_array_equal(values(opened, W), expected)

    floats, row = torch.randn(4, 64).to(torch.float8_e4m3fn), scales(4, 1)
    opened = torchao(tmp_path / "b", "Float8Tensor", {}, {"qdata": floats, "scale": row})
    np.testing.assert_array_equal(values(opened, W), floats.float().numpy() * row.numpy())

    with pytest.raises(UnsupportedModelError, match="Int4TilePackedTo4dTensor"):
        parameters(torchao(tmp_path / "c", "Int4TilePackedTo4dTensor", {}, parts))


MODELOPT = method("modelopt", quant_algo="X")


def test_modelopt_is_known_by_its_own_file_where_config_json_says_nothing(tmp_path: Path) -> None:
    codes, row = int8(4, 64), scales(4)
    folder(tmp_path, {W: codes, f"{P}.weight_scale": row}, {})
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W8A16"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
    expected = row.numpy()[:, None] * codes.numpy().astype(np.float32)
    np.testing.assert_array_equal(values(open_checkpoint(tmp_path), W), expected)


def test_a_pickle_of_a_known_tool_is_refused_by_the_tools_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(method("torchao")))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelFileError, match="of torchao, which can run code") as caught:
        open_checkpoint(tmp_path)
    assert "safetensors" in caught.value.hint


def test_int4_of_modelopt_has_two_rows_in_a_byte(tmp_path: Path) -> None:
    codes, scale = rng().integers(-8, 8, (6, 128)), scales(6, 1)
    pairs = ((codes[0::2] & 15) | (codes[1::2] & 15) << 4).astype(np.uint8)
    tensors = {W: torch.from_numpy(pairs), f"{P}.weight_scale": scale}
    expected = scale.numpy() * codes.astype(np.float32)
    plain = folder(tmp_path / "a", tensors, MODELOPT)
    np.testing.assert_array_equal(values(plain, W), expected)
    tensors |= {
        f"{P}.pre_quant_scale": bfloat16(np.linspace(0.5, 2, 128)),
        f"{P}.weight_scale_2": torch.tensor(0.01),  # of its FP8 kernels, not of the weight
        f"{P}.input_scale": torch.tensor(0.5),
    }
    opened = folder(tmp_path / "b", tensors, MODELOPT)
    before = tensors[f"{P}.pre_quant_scale"].float().numpy()
    np.testing.assert_array_equal(values(opened, W), expected * before)
    assert set(parameters(opened)) == {W}


@pytest.mark.parametrize("group", [16, 32])
def test_nvfp4_of_modelopt_multiplies_by_both_scales(tmp_path: Path, group: int) -> None:
    codes = rng().integers(0, 16, (4, 64))
    scale = torch.rand(4, 64 // group).to(torch.float8_e4m3fn)
    tensors = {
        W: torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)),
        f"{P}.weight_scale": scale,
        f"{P}.weight_scale_2": torch.tensor(0.3),
    }
    each = (scale.float().numpy() * np.float32(0.3)).repeat(group, axis=1)
    found = values(folder(tmp_path, tensors, MODELOPT), W)
    np.testing.assert_allclose(found, E2M1[codes] * each, rtol=2e-7)


def test_fp8_of_modelopt_in_blocks_of_four_dimensions_and_mxfp8(tmp_path: Path) -> None:
    codes = torch.randn(256, 128).to(torch.float8_e4m3fn)
    block = scales(2, 1, 1, 1)
    opened = folder(tmp_path / "a", {W: codes, f"{P}.weight_scale": block}, MODELOPT)
    expected = codes.float().numpy() * block.numpy().reshape(2, 1).repeat(128, axis=0)
    np.testing.assert_array_equal(values(opened, W), expected)
    powers = torch.from_numpy(rng().integers(120, 130, (256, 4)).astype(np.uint8))
    opened = folder(tmp_path / "b", {W: codes, f"{P}.weight_scale": powers}, MODELOPT)
    each = np.ldexp(np.float32(1), powers.numpy().astype(np.int32) - 127).repeat(32, axis=1)
    np.testing.assert_array_equal(values(opened, W), codes.float().numpy() * each)


def hqq(bits: int, axis: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """A matrix (20, 128) in groups of 64, packed as hqq.core.bitpack does."""
    lines = rng().integers(0, 1 << bits, (40, 64) if axis == 1 else (64, 40))
    scale, zero = (rng().normal(1, 0.3, 40).astype(np.float32) for _ in range(2))
    over = (slice(None), None) if axis == 1 else (None, slice(None))
    expected = ((lines.astype(np.float32) - zero[over]) * scale[over]).reshape(20, 128)
    each = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}[bits]
    padded = np.zeros((-(-len(lines) // each) * each, lines.shape[1]), np.int64)
    padded[: len(lines)] = lines
    word = np.zeros((len(padded) // each, lines.shape[1]), np.int64)
    for part in np.split(padded, each):  # the first in the highest bits
        word = word << bits | part
    flags = {"view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "round_zero": 1, "optimize": 1}
    numbers = {"nbits": bits, "group_size": 64, "axis": axis}
    shape = (40, 1) if axis == 1 else (1, 40)
    tensors = {
        f"{P}.W_q": torch.from_numpy(word.astype(np.int32 if bits == 3 else np.uint8)),
        f"{P}.scale": torch.from_numpy(scale.reshape(shape)),
        f"{P}.zero": torch.from_numpy(zero.reshape(shape)),
        f"{P}.shape": torch.tensor([20, 128]),
        f"{P}.packing": torch.tensor(list(b"4bit_u8"), dtype=torch.uint8),
        **{f"{P}.{k}": torch.tensor(v, dtype=torch.uint8) for k, v in flags.items()},
        **{f"{P}.{k}": torch.tensor(v, dtype=torch.int32) for k, v in numbers.items()},
    }
    return tensors, expected


@pytest.mark.parametrize(("bits", "axis"), [(8, 1), (4, 1), (3, 1), (2, 1), (1, 1), (4, 0), (3, 0)])
def test_hqq_is_code_less_zero_times_scale(tmp_path: Path, bits: int, axis: int) -> None:
    tensors, expected = hqq(bits, axis)
    opened = folder(tmp_path, tensors, method("hqq"))
    # scale * code - scale * zero where the tool subtracts first: a rounding apart.
    np.testing.assert_allclose(values(opened, W), expected, rtol=0, atol=2e-7 * (1 << bits))
    assert set(parameters(opened)) == {W}


def test_hqq_with_quantised_scales_is_refused_by_name(tmp_path: Path) -> None:
    tensors, _ = hqq(4, 1)
    tensors[f"{P}.quant_scale"] = torch.tensor(1, dtype=torch.uint8)
    with pytest.raises(UnsupportedModelError, match="quant_scale"):
        parameters(folder(tmp_path, tensors, method("hqq")))


def ascend(path: Path, tensors: dict[str, torch.Tensor], kinds: dict[str, Any]) -> Checkpoint:
    """A folder as msModelSlim names its files; config.json says nothing."""
    folder(path, tensors, {})
    save_file(load_file(path / "model.safetensors"), path / "quant_model_weights.safetensors")
    (path / "model.safetensors").unlink()
    description = {**kinds, "version": "1.0.0", "metadata": {}, "group_size": 0}
    (path / "quant_model_description.json").write_text(json.dumps(description))
    return open_checkpoint(path)


@pytest.mark.parametrize("as_integers", [False, True])
def test_static_w8a8_of_ascend_is_code_times_deq_scale_over_input_scale(
    tmp_path: Path, as_integers: bool
) -> None:
    codes, deq, step = int8(4, 64), scales(4), torch.tensor([0.03])
    stored = deq.view(torch.int32).to(torch.int64) if as_integers else deq
    tensors = {
        W: codes,
        f"{P}.deq_scale": stored,
        f"{P}.input_scale": step,
        f"{P}.input_offset": torch.tensor([3.0]),
        f"{P}.quant_bias": torch.arange(4, dtype=torch.int32),
        f"{P}.bias": torch.arange(4.0),
    }
    kinds = dict.fromkeys(tensors, "W8A8") | {f"{P}.bias": "FLOAT"}
    opened = ascend(tmp_path, tensors, kinds)
    row = (deq.numpy() / step.numpy())[:, None]
    np.testing.assert_array_equal(values(opened, W), row * codes.numpy().astype(np.float32))
    # The layer's own bias is stored twice; it is one parameter.
    assert set(parameters(opened)) == {W, f"{P}.bias"}


def test_dynamic_w8a8_w8a16_and_w4a8_of_ascend(tmp_path: Path) -> None:
    codes, scale = int8(4, 64), scales(4, 1)
    zero = torch.tensor([[0.0], [3.0], [-4.0], [5.0]])
    for kind, offset in (("W8A8_DYNAMIC", 0 * zero), ("W8A16", zero)):
        tensors = {W: codes, f"{P}.weight_scale": scale, f"{P}.weight_offset": offset}
        opened = ascend(tmp_path / kind, tensors, dict.fromkeys(tensors, kind))
        expected = scale.numpy() * (codes.numpy().astype(np.float32) - offset.numpy())
        np.testing.assert_array_equal(values(opened, W), expected)
    four = rng().integers(-8, 8, (6, 64))
    pairs = ((four[0::2] & 15) | (four[1::2] & 15) << 4).astype(np.uint8).view(np.int8)
    scale = scales(6, 1)
    tensors = {
        W: torch.from_numpy(pairs),
        f"{P}.weight_scale": scale,
        f"{P}.weight_offset": torch.zeros(6, 1),
        f"{P}.scale_bias": torch.ones(6, 1),
    }
    opened = ascend(tmp_path / "w4a8", tensors, dict.fromkeys(tensors, "W4A8_DYNAMIC"))
    np.testing.assert_array_equal(values(opened, W), scale.numpy() * four.astype(np.float32))
    assert set(parameters(opened)) == {W}


WRONG: dict[str, tuple[Any, type[DureError], str]] = {
    "another type": ({W: "W2A2_MAGIC"}, UnsupportedModelError, "W2A2_MAGIC"),
    "a weight that is not there": ({f"{P}2.weight": "W8A8"}, ModelFileError, "o_proj2"),
    "no scale": ({W: "W8A8_DYNAMIC"}, ModelFileError, "weight_scale"),
    "rotations": ({"metadata": {"quarot": {"a": 1}}}, UnsupportedModelError, "quarot"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_description_that_cannot_be_followed_is_refused_by_name(
    tmp_path: Path, what: str
) -> None:
    kinds, error, said = WRONG[what]
    path = tmp_path
    ascend(path, {W: int8(4, 64)}, {})
    (path / "quant_model_description.json").write_text(json.dumps(kinds))
    with pytest.raises(error, match=said):
        parameters(open_checkpoint(path))
