"""Quantised layouts of Hugging Face folders stand for what their tools' packing defines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
import torch
from packed_folders import (
    AUTOROUND,
    AWQ,
    FP8,
    FP8_CHANNEL,
    GPTQ,
    MXFP4,
    NAME,
    compressed,
    folder_with,
    weights,
)

from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.quantized_checkpoint import parameters
from dure.kernels.dequantize import dequantize


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
