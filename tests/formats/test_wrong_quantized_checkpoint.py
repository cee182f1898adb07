"""Quantised folders that are refused: not read, in contradiction with themselves, or no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
import torch
from packed_folders import AUTOROUND, AWQ, FP8, GPTQ, MXFP4, NAME, compressed, folder_with, weights

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.quantized_checkpoint import parameters, parameters_or_tensors


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
