"""Quantised layouts of Hugging Face folders stand for what their tools' packing defines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
import torch

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.quantized_checkpoint import parameters, parameters_or_tensors
from dure.kernels.dequantize import dequantize

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MXFP4 = {"quant_method": "mxfp4"}
AUTOROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "int"}
NAME = "model.layers.0.mlp.up_proj.weight"


def compressed(format: str = "pack-quantized", **weights: Any) -> dict[str, Any]:  # noqa: A002
    """The config of compressed-tensors with these arguments of weights."""
    known = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": known}},
    }


FP8_CHANNEL = compressed(num_bits=8, type="float", strategy="channel", group_size=None)


def weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Rows of mixed size, with a few zeros."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, 0.05, (rows, cols)) * np.exp(rng.normal(0, 1, (rows, 1)))
    drawn[rng.random((rows, cols)) < 0.01] = 0
    return drawn.astype(np.float32)


def folder_with(
    path: Path, settings: Any, packed: packings.Packed, name: str = NAME, **extra: torch.Tensor
) -> Checkpoint:
    """A folder with one packed matrix, and what else it is given."""
    packings.write_packed(path, {}, {name: np.zeros(1)}, settings, lambda _n, _w: packed)
    if extra:
        from safetensors.torch import load_file, save_file  # noqa: PLC0415

        tensors = load_file(path / "model.safetensors")
        save_file({**tensors, **extra}, path / "model.safetensors")
    return open_checkpoint(path)


def read_values(matrix: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
    """What a matrix stands for, its columns in order."""
    assert isinstance(matrix, QuantizedMatrix)
    values = dequantize(
        matrix.dtype, matrix.read_rows(start, matrix.num_rows if stop is None else stop)
    )
    if matrix.columns is not None:
        ordered = np.empty_like(values)
        ordered[:, matrix.columns] = values
        return ordered
    return values


CASES: dict[str, tuple[Any, Callable[[np.ndarray], packings.Packed], tuple[int, int], str]] = {
    "gptq": (GPTQ, packings.gptq, (40, 96), "I4G32"),
    "gptq 64": (
        {**GPTQ, "group_size": 64},
        lambda w: packings.gptq(w, group=64),
        (24, 192),
        "I4G64",
    ),
    "gptq 128": (
        {**GPTQ, "group_size": 128},
        lambda w: packings.gptq(w, group=128),
        (16, 384),
        "I4G128",
    ),
    "gptq, a last group that is cut": (
        {**GPTQ, "group_size": 128},
        lambda w: packings.gptq(w, group=128),
        (16, 320),
        "I4G64",
    ),
    "gptq, a group a row": (
        {**GPTQ, "group_size": -1},
        lambda w: packings.gptq(w, group=-1),
        (8, 160),
        "I4G32",
    ),
    "gptq, groups of 256": (
        {**GPTQ, "group_size": 256},
        lambda w: packings.gptq(w, group=256),
        (8, 512),
        "I4G128",
    ),
    "gptq, groups of 24": (
        {**GPTQ, "group_size": 24},
        lambda w: packings.gptq(w, group=24),
        (8, 48),
        "F32",
    ),
    "gptq without g_idx": (GPTQ, lambda w: packings.gptq(w, with_indices=False), (8, 64), "I4G32"),
    **{
        f"gptq of {bits} bits, version {version}": (
            {**GPTQ, "bits": bits, "checkpoint_format": {1: "gptq", 2: "gptq_v2"}[version]},
            lambda w, bits=bits, version=version: packings.gptq(
                one_sided(w), bits=bits, version=version, with_indices=version == 1
            ),
            (64, 96),
            "I4G32" if bits <= 4 else "U8G32",
        )
        for bits in (2, 3, 4, 8)
        for version in (1, 2)
    },
    **{
        f"gptq of {bits} bits in planes": (
            {**GPTQ, "bits": bits, "checkpoint_format": "gptq_p"},
            lambda w, bits=bits: packings.gptq(one_sided(w), bits=bits, version=2, planar=True),
            (64, 96),
            "I4G32" if bits <= 4 else "U8G32",
        )
        for bits in (3, 5, 6, 7)
    },
    "gptq of other bits than the config's, for this module": (
        {**GPTQ, "dynamic": {"+:.*up_proj": {"bits": 8, "group_size": 64}}},
        lambda w: packings.gptq(w, bits=8, group=64),
        (32, 128),
        "U8G32",
    ),
    "auto-round in gptq's packing": (
        {**AUTOROUND, "packing_format": "auto_round:auto_gptq"},
        lambda w: packings.gptq(one_sided(w), with_indices=False),
        (32, 96),
        "I4G32",
    ),
    **{
        f"auto-round in its own packing of {bits} bits": (
            {**AUTOROUND, "bits": bits, "packing_format": "auto_round"},
            lambda w, bits=bits: packings.gptq(
                one_sided(w), bits=bits, version=2, with_indices=False
            ),
            (32, 96),
            "I4G32" if bits <= 4 else "U8G32",
        )
        for bits in (2, 3, 5, 6, 7)
    },
    "auto-round in gptqmodel's packing": (
        {**AUTOROUND, "packing_format": "auto_round:gptqmodel"},
        lambda w: packings.gptq(one_sided(w), version=2),
        (32, 96),
        "I4G32",
    ),
    "auto-round in awq's packing": (
        {**AUTOROUND, "packing_format": "auto_round:auto_awq"},
        packings.awq,
        (40, 96),
        "I4G32",
    ),
    "auto-round with other bits for this module": (
        {**AUTOROUND, "extra_config": {".*up.*": {"bits": 2, "group_size": 64}}},
        lambda w: packings.gptq(w, bits=2, group=64, with_indices=False),
        (32, 128),
        "I4G64",
    ),
    "auto-round in nvfp4": (
        {**AUTOROUND, "data_type": "nv_fp", "packing_format": "auto_round:llm_compressor"},
        packings.nvfp4,
        (24, 96),
        "NV4G32",
    ),
    "auto-round in mxfp4": (
        {**AUTOROUND, "data_type": "mx_fp", "packing_format": "auto_round:llm_compressor"},
        lambda w: packings.mxfp4(w, names=("weight_packed", "weight_scale"), split=False),
        (21, 96),
        "MXFP4",
    ),
    "auto-round in fp8": (
        {**AUTOROUND, "data_type": "fp", "bits": 8, "packing_format": "auto_round:fp8_static"},
        lambda w: flat(packings.fp8(w, block=(1, -1), suffix="weight_scale")),
        (33, 128),
        "F8G128",
    ),
    "gptq version 2": (
        {**GPTQ, "checkpoint_format": "gptq_v2"},
        lambda w: packings.gptq(w, version=2),
        (16, 64),
        "I4G32",
    ),
    "gptq desc_act": (
        {**GPTQ, "desc_act": True},
        lambda w: packings.gptq(w, order=np.random.default_rng(3).permutation(w.shape[1])),
        (40, 160),
        "I4G32",
    ),
    "awq": (AWQ, packings.awq, (40, 96), "I4G32"),
    "awq 128": (
        {**AWQ, "group_size": 128},
        lambda w: packings.awq(w, group=128),
        (16, 384),
        "I4G128",
    ),
    "compressed": (compressed(), packings.pack_quantized, (21, 96), "I4G32"),
    "compressed with zero points": (
        compressed(symmetric=False, group_size=64),
        lambda w: packings.pack_quantized(w, group=64, symmetric=False),
        (21, 192),
        "I4G64",
    ),
    "compressed, a scale a row": (
        compressed(strategy="channel", group_size=None),
        lambda w: packings.pack_quantized(w, group=-1),
        (5, 288),
        "I4G32",
    ),
    "compressed, rows that end in a word": (
        compressed(strategy="channel", group_size=None),
        lambda w: packings.pack_quantized(w, group=-1, symmetric=False),
        (5, 43),
        "F32",
    ),
    **{
        f"compressed of {bits} bits, {form}, {kind}": (
            compressed(num_bits=bits, symmetric=kind == "symmetric"),
            lambda w, bits=bits, form=form, kind=kind: packings.pack_quantized(
                w, bits=bits, symmetric=kind == "symmetric", dense=form == "dense"
            ),
            (21, 192),
            "I4G32" if bits <= 4 else "I8G32" if kind == "symmetric" else "U8G32",
        )
        for bits in (2, 3, 5, 6, 7, 8)
        for form in ("dense", "word by word")
        for kind in ("symmetric", "asymmetric")
    },
    "compressed in int8, a scale a row": (
        compressed(num_bits=8, strategy="channel", group_size=None, format="int-quantized"),
        packings.int_quantized,
        (21, 384),
        "I8G128",
    ),
    "compressed in int8, a scale a matrix": (
        compressed(num_bits=8, strategy="tensor", group_size=None, format="int-quantized"),
        lambda w: alone(packings.int_quantized(np.repeat(w[:1], len(w), axis=0))),
        (21, 384),
        "I8G128",
    ),
    "compressed in int8, a scale a group": (
        compressed(num_bits=8, group_size=64, format="int-quantized"),
        lambda w: packings.int_quantized(w, group=64),
        (21, 384),
        "I8G32",
    ),
    "compressed in int8 with zero points": (
        compressed(num_bits=8, strategy="channel", symmetric=False, format="int-quantized"),
        lambda w: packings.int_quantized(one_sided(w), symmetric=False),
        (24, 384),
        "U8G128",
    ),
    "compressed in four bits, a byte each": (
        compressed(num_bits=4, group_size=128, format="int-quantized"),
        lambda w: packings.int_quantized(w, bits=4, group=128),
        (21, 384),
        "I4G128",
    ),
    "compressed in four bits, a byte each, with zero points": (
        compressed(num_bits=4, group_size=128, symmetric=False, format="int-quantized"),
        lambda w: packings.int_quantized(one_sided(w), bits=4, group=128, symmetric=False),
        (24, 384),
        "I4G128",
    ),
    "nvfp4 by compressed-tensors": (
        compressed(
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
            format="nvfp4-pack-quantized",
        ),
        packings.nvfp4,
        (24, 256),
        "NV4G128",
    ),
    "nvfp4 of rows that fit no type": (
        compressed(num_bits=4, type="float", strategy="tensor_group", group_size=16),
        packings.nvfp4,
        (24, 112),
        "F32",
    ),
    "mxfp8 by compressed-tensors": (
        compressed(num_bits=8, type="float", group_size=32, format="mxfp8-quantized"),
        packings.mxfp8,
        (24, 96),
        "F8G32",
    ),
    "compressed, groups that lie apart": (
        compressed(actorder="group"),
        lambda w: packings.pack_quantized(
            w, order=np.random.default_rng(4).permutation(w.shape[1])
        ),
        (21, 96),
        "I4G32",
    ),
    "fp8": (FP8, packings.fp8, (256, 256), "F8G128"),
    "fp8, a block of rows that is cut": (FP8, packings.fp8, (194, 384), "F8G128"),
    "fp8, a block of columns that is cut": (FP8, packings.fp8, (130, 320), "F8G32"),
    "fp8, columns that fit no type": (FP8, packings.fp8, (20, 200), "F32"),
    "fp8 smaller than a block": (FP8, packings.fp8, (32, 96), "F8G32"),
    "fp8 of powers of two": (
        {**FP8, "scale_fmt": "ue8m0"},
        lambda w: packings.fp8(w, powers=True),
        (130, 256),
        "F8G128",
    ),
    "fp8 of powers of two by their exponents": (
        {**FP8, "scale_fmt": "ue8m0"},
        lambda w: packings.fp8(w, powers=True, scale_type=torch.float8_e8m0fnu),
        (130, 256),
        "F8G128",
    ),
    "fp8, a scale a row": (
        FP8_CHANNEL,
        lambda w: packings.fp8(w, block=(1, -1), suffix="weight_scale", scale_type=torch.bfloat16),
        (33, 256),
        "F8G128",
    ),
    "fp8, a scale a matrix": (
        compressed(num_bits=8, type="float", strategy="tensor", group_size=None),
        lambda w: scalar(packings.fp8(w, block=(-1, -1), suffix="weight_scale")),
        (33, 128),
        "F8G128",
    ),
    "fp8 in blocks by compressed-tensors": (
        compressed(num_bits=8, type="float", strategy="block", block_structure=[128, 128]),
        lambda w: packings.fp8(w, suffix="weight_scale"),
        (194, 256),
        "F8G128",
    ),
    "mxfp4": (
        MXFP4,
        lambda w: packings.mxfp4(w, names=("weight_blocks", "weight_scales"), split=True),
        (21, 96),
        "MXFP4",
    ),
    "mxfp4 by compressed-tensors": (
        compressed(num_bits=4, type="float"),
        lambda w: packings.mxfp4(w, names=("weight_packed", "weight_scale"), split=False),
        (21, 96),
        "MXFP4",
    ),
}


def flat(packed: packings.Packed) -> packings.Packed:
    """Its scales in one dimension."""
    tensors, values = packed
    return {**tensors, "weight_scale": tensors["weight_scale"].reshape(-1)}, values


def alone(packed: packings.Packed) -> packings.Packed:
    """The first of its scales, which all rows share."""
    tensors, values = packed
    return {**tensors, "weight_scale": tensors["weight_scale"].reshape(-1)[:1]}, values


def one_sided(drawn: np.ndarray) -> np.ndarray:
    """Every third row of positive weights alone, another third of negative ones, so that zero
    points are the lowest and the highest there are."""
    changed = drawn.copy()
    changed[::3] = np.abs(changed[::3]) + np.float32(1e-3)
    changed[1::3] = -np.abs(changed[1::3]) - np.float32(1e-3)
    return changed


def scalar(packed: packings.Packed) -> packings.Packed:
    """Its one scale without dimensions."""
    tensors, values = packed
    return {**tensors, "weight_scale": tensors["weight_scale"].reshape(())}, values


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_that_of_the_packing(tmp_path: Path, case: str) -> None:
    settings, pack, shape, dtype = CASES[case]
    packed = pack(weights(*shape))
    found = parameters(folder_with(tmp_path, settings, packed))
    matrix = found.pop(NAME)
    assert found == {}
    assert (matrix.shape, matrix.dtype) == (shape, dtype)
    actual = read_values(matrix)
    np.testing.assert_array_equal(actual, packed[1])
    part = read_values(matrix, shape[0] // 3, shape[0] // 2)
    np.testing.assert_array_equal(part, actual[shape[0] // 3 : shape[0] // 2])


def test_every_code_of_fp8_is_the_float_that_torch_reads(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes[codes & 127 == 127] = 0  # which are no numbers
    scale = torch.tensor([[0.37]])
    expected = codes.view(torch.float8_e4m3fn).float().numpy() * np.float32(0.37)
    packed = {"weight": codes.view(torch.float8_e4m3fn)[None], "weight_scale_inv": scale}, expected
    settings = {**FP8, "weight_block_size": None}
    matrix = parameters(folder_with(tmp_path, settings, packed))[NAME]
    np.testing.assert_array_equal(read_values(matrix)[0], expected)


def test_fused_experts_in_fp8_have_each_their_own_blocks(tmp_path: Path) -> None:
    each = [packings.fp8(weights(130, 256, seed)) for seed in range(3)]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stacks = {
        part: torch.stack([tensors[key] for tensors, _ in each])
        for part, key in (("", "weight"), ("_scale_inv", "weight_scale_inv"))
    }
    packings.write_packed(
        tmp_path,
        {},
        {name: np.zeros(1)},
        FP8,
        lambda n, _w: ({n + k: t for k, t in stacks.items()}, _w),
    )
    checkpoint = open_checkpoint(tmp_path)
    checkpoint = Checkpoint(
        checkpoint.path,
        "safetensors",
        {n.replace(name + name, name): t for n, t in checkpoint.tensors.items()},
        config=checkpoint.config,
    )
    matrix = parameters(checkpoint)[name]
    assert matrix.shape == (3, 130, 256)
    expected = np.concatenate([values for _, values in each])
    np.testing.assert_array_equal(read_values(matrix), expected)
    np.testing.assert_array_equal(read_values(matrix, 129, 262), expected[129:262])


def test_what_runtimes_store_beside_weights_is_left_out(tmp_path: Path) -> None:
    packed = packings.fp8(weights(32, 64), block=(1, -1), suffix="weight_scale")
    extra = {
        NAME.replace("weight", "input_scale"): torch.ones(1),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
        "model.norm.weight": torch.ones(64),
    }
    found = parameters(folder_with(tmp_path, FP8_CHANNEL, packed, **extra))
    assert sorted(found) == [NAME, "model.norm.weight"]


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"quant_method": "vptq"}, "vptq"),
        ({"quant_method": None}, "None"),
        ({**GPTQ, "bits": 16}, "bits = 16"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
        ({**AWQ, "version": "gemv"}, "gemv"),
        ({**FP8, "fmt": "e5m2"}, "e5m2"),
        (compressed(num_bits=16), "('int', 16)"),
        (compressed("marlin-24"), "marlin-24"),
        ({**AUTOROUND, "data_type": "mx_odd"}, "mx_odd"),
        ({**AUTOROUND, "extra_config": {"lm_head": {"data_type": "nvfp4_v9"}}}, "nvfp4_v9"),
        ({**AUTOROUND, "packing_format": "auto_round:other"}, "other"),
    ],
)
def test_what_is_not_read_is_refused_by_name_with_what_is(
    tmp_path: Path, settings: Any, named: str
) -> None:
    checkpoint = folder_with(tmp_path, settings, packings.gptq(weights(8, 64)))
    with pytest.raises(UnsupportedModelError) as caught:
        parameters(checkpoint)
    assert named in caught.value.message
    known = caught.value.message + caught.value.hint
    assert any(word in known for word in ("gptq", "4", "gemm", "e4m3", "nv_fp", "pack-quantized"))
    assert parameters_or_tensors(checkpoint) == checkpoint.tensors


def replaced(packed: packings.Packed, **parts: Any) -> packings.Packed:
    """The same with other tensors; None takes one away."""
    tensors = {**packed[0], **parts}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}, packed[1]


GOOD = packings.gptq(weights(16, 64))
WRONG: dict[str, tuple[Any, packings.Packed, str]] = {
    "no config": (None, GOOD, "no quantization_config"),
    "a config that is no table": ("gptq", GOOD, "not a table"),
    "another group size": ({**GPTQ, "group_size": 16}, GOOD, "scales"),
    "no group size": ({**GPTQ, "group_size": 0}, GOOD, "group_size = 0"),
    "groups of a size below -1": ({**GPTQ, "group_size": -2}, GOOD, "group_size = -2"),
    "groups of a huge size": ({**GPTQ, "group_size": 1 << 70}, GOOD, "at most 2,147,483,648"),
    "groups of half a column": ({**GPTQ, "group_size": 0.5}, GOOD, "group_size = 0.5"),
    "dynamic that is no table": ({**GPTQ, "dynamic": [1]}, GOOD, "dynamic"),
    "dynamic groups below -1": ({**GPTQ, "dynamic": {"a": {"group_size": -7}}}, GOOD, "-7"),
    "bits that are text": ({**GPTQ, "bits": "4"}, GOOD, "bits"),
    "compressed groups of none": (
        compressed(group_size=0),
        packings.pack_quantized(weights(8, 64)),
        "group_size = 0",
    ),
    "compressed groups that are text": (
        compressed(group_size="32"),
        packings.pack_quantized(weights(8, 64)),
        "group_size",
    ),
    "compressed weights that are no table": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": 4}},
        },
        GOOD,
        "weights = 4",
    ),
    "codes of other bits than the config's": (
        compressed(num_bits=8),
        packings.pack_quantized(weights(8, 64)),
        "no codes of the bits",
    ),
    "an empty matrix": (
        GPTQ,
        replaced(GOOD, qweight=torch.zeros(0, 16, dtype=torch.int32)),
        "qweight",
    ),
    "empty codes of fp8": (
        FP8,
        (
            {
                "weight": torch.zeros(0, 64).to(torch.float8_e4m3fn),
                "weight_scale_inv": torch.zeros(0, 1),
            },
            GOOD[1],
        ),
        "must be a matrix",
    ),
    "empty codes of mxfp4": (
        MXFP4,
        (
            {
                "weight_blocks": torch.zeros(4, 0, 16, dtype=torch.uint8),
                "weight_scales": torch.zeros(4, 0, dtype=torch.uint8),
            },
            GOOD[1],
        ),
        "empty",
    ),
    "empty codes of int8": (
        compressed("int-quantized", num_bits=8, strategy="channel"),
        (
            {
                "weight": torch.zeros(0, 64, dtype=torch.int8),
                "weight_scale": torch.zeros(0, 1),
            },
            GOOD[1],
        ),
        "must be a matrix",
    ),
    "nvfp4 of another shape": (
        compressed(num_bits=4, type="float"),
        replaced(packings.nvfp4(weights(8, 64)), weight_packed=torch.zeros(8, 16).byte()),
        "no NVFP4 matrix",
    ),
    "nvfp4 without its global scale": (
        compressed(num_bits=4, type="float"),
        replaced(packings.nvfp4(weights(8, 64)), weight_global_scale=None),
        "weight_global_scale",
    ),
    "a size that is no number": ({**GPTQ, "group_size": "32"}, GOOD, "group_size"),
    "scales that are missing": (GPTQ, replaced(GOOD, scales=None), "no .*up_proj.scales"),
    "zero points of another shape": (
        GPTQ,
        replaced(GOOD, qzeros=torch.zeros(2, 3, dtype=torch.int32)),
        "qzeros",
    ),
    "codes of another type": (
        GPTQ,
        replaced(GOOD, qweight=torch.zeros(8, 16, dtype=torch.int64)),
        "qweight",
    ),
    "weights beside their codes": (GPTQ, replaced(GOOD, weight=torch.zeros(16, 64)), "twice"),
    "nothing that is quantised": (GPTQ, ({"weight": torch.zeros(16, 64)}, GOOD[1]), "no tensor is"),
    "another method's tensors": (AWQ, GOOD, "scales"),
    "blocks of another size": (
        {**FP8, "weight_block_size": [64, 64]},
        packings.fp8(weights(256, 256)),
        "blocks of",
    ),
    "blocks that are none": (
        {**FP8, "weight_block_size": [0, 64]},
        packings.fp8(weights(256, 256)),
        "two sizes",
    ),
    "fp8 without scales": (
        FP8,
        replaced(packings.fp8(weights(16, 64)), weight_scale_inv=None),
        "no .*weight_scale",
    ),
    "groups that the config does not know": (
        compressed(group_size=128),
        packings.pack_quantized(weights(8, 256)),
        "no groups of 128",
    ),
    "a shape that is not that of the codes": (
        compressed(),
        replaced(packings.pack_quantized(weights(8, 64)), weight_shape=torch.tensor([8, 96])),
        "weight_packed",
    ),
    "a shape below zero": (
        compressed(),
        replaced(packings.pack_quantized(weights(8, 64)), weight_shape=torch.tensor([-8, 64])),
        "-8 rows",
    ),
    "no groups": ({"quant_method": "compressed-tensors"}, GOOD, "config_groups"),
    "scales of other blocks": (
        MXFP4,
        ({"weight_blocks": torch.zeros(4, 2, 16), "weight_scales": torch.zeros(4, 3)}, GOOD[1]),
        "no MXFP4 matrix",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_config_that_contradicts_its_tensors_is_refused(tmp_path: Path, case: str) -> None:
    settings, packed, named = WRONG[case]
    checkpoint = folder_with(tmp_path, settings, packed)
    with pytest.raises(ModelFileError, match=named):
        parameters(checkpoint)


@pytest.mark.parametrize(
    "settings, packed",
    [
        (
            {**GPTQ, "desc_act": True},
            replaced(GOOD, g_idx=torch.zeros(64, dtype=torch.int32)),
        ),
        (
            {**GPTQ, "desc_act": True},
            replaced(GOOD, g_idx=torch.full((64,), -1, dtype=torch.int32)),
        ),
        (
            FP8,
            (
                {
                    "weight": torch.full((2, 64), np.nan).to(torch.float8_e4m3fn),
                    "weight_scale_inv": torch.ones(1, 1),
                },
                GOOD[1],
            ),
        ),
        (
            MXFP4,
            (
                {
                    "weight_blocks": torch.zeros(4, 2, 16, dtype=torch.uint8),
                    "weight_scales": torch.full((4, 2), 255, dtype=torch.uint8),
                },
                GOOD[1],
            ),
        ),
        (GPTQ, replaced(GOOD, scales=torch.full((2, 16), np.inf).half())),
        (
            compressed("int-quantized", num_bits=8, strategy="channel"),
            replaced(
                packings.int_quantized(weights(16, 64)), weight_scale=torch.full((16, 1), np.nan)
            ),
        ),
        (
            compressed("int-quantized", num_bits=4, strategy="channel"),
            packings.int_quantized(weights(16, 64), bits=5),
        ),
        (FP8, replaced(packings.fp8(weights(16, 64)), weight_scale_inv=torch.full((1, 1), np.nan))),
        (
            compressed(num_bits=4, type="float"),
            replaced(
                packings.nvfp4(weights(16, 64)),
                weight_scale=torch.full((16, 4), np.nan).to(torch.float8_e4m3fn),
            ),
        ),
        (
            compressed(num_bits=4, type="float"),
            replaced(packings.nvfp4(weights(16, 64)), weight_global_scale=torch.zeros(1)),
        ),
        (
            compressed(num_bits=4, type="float"),
            replaced(packings.nvfp4(weights(16, 64)), weight_global_scale=torch.tensor([np.inf])),
        ),
    ],
    ids=[
        "all columns in one group",
        "groups below zero",
        "codes that are no numbers",
        "scales that are no numbers",
        "gptq scales that are infinite",
        "int8 scales that are no numbers",
        "four bits that are five",
        "fp8 scales that are no numbers",
        "nvfp4 scales that are no numbers",
        "a global scale of zero",
        "a global scale that is infinite",
    ],
)
def test_contents_that_make_no_sense_are_refused(
    tmp_path: Path, settings: Any, packed: packings.Packed
) -> None:
    matrix = parameters(folder_with(tmp_path, settings, packed))[NAME]
    with pytest.raises(DureError, match="up_proj"):
        matrix.read()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**FP8, "weight_block_size": [1 << 70, 128]}, "must be two sizes"),
        ({**GPTQ, "group_size": 1 << 70}, "group_size"),
    ],
)
def test_sizes_that_no_matrix_has_are_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    pack = packings.fp8 if settings["quant_method"] == "fp8" else packings.gptq
    with pytest.raises(ModelFileError, match=said):
        parameters(folder_with(tmp_path, settings, pack(weights(16, 64))))
