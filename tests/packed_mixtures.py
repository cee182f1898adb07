"""Tiny mixtures of experts in every layout that a folder or a GGUF file may have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import packings
import torch
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import config_of, matrices_as, parameters_of, write_folder, write_gguf

GGUF_KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_XS"]
WIDE = {
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "head_dim": 64,
}  # rows that blocks of 256 divide


def one_order(name: str, cols: int) -> np.ndarray:
    """The order of GPTQ's columns: alike in all gates and ups, of each expert's own in downs."""
    seed = int(name.split(".")[-3]) if "down_proj" in name else 99
    return np.random.default_rng(seed).permutation(cols)


def _weights(format_: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"weights": weights}}
    return {"quant_method": "compressed-tensors", "format": format_, "config_groups": groups}


Pack = Callable[[str, np.ndarray], packings.Packed]
METHODS: dict[str, tuple[dict[str, Any], Pack]] = {
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [32, 64]},
        lambda _, w: packings.fp8(w, block=(32, 64)),
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        lambda _, w: packings.gptq(w),
    ),
    "gptq desc_act": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        lambda n, w: packings.gptq(w, order=one_order(n, w.shape[1])),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        lambda _, w: packings.awq(w),
    ),
    "compressed": (
        _weights("pack-quantized", num_bits=4, group_size=32, symmetric=False),
        lambda _, w: packings.pack_quantized(w, symmetric=False),
    ),
    "mxfp4": (
        _weights("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32),
        lambda _, w: packings.mxfp4(w, names=("weight_packed", "weight_scale"), split=False),
    ),
    "nvfp4": (
        _weights("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group"),
        lambda _, w: packings.nvfp4(w),
    ),
    "auto-round": (
        {"quant_method": "auto-round", "bits": 2, "group_size": 32},
        lambda _, w: packings.gptq(w, bits=2, with_indices=False),
    ),
}
LAYOUTS = [*METHODS, "mlx", "bfloat16", "float32", "several bits"]


def mixture(folder: Path, layout: str, *, name: str = "qwen3_moe", **changes: Any) -> Path:
    """A folder whose experts, and nothing else, are stored in a layout."""
    config = config_of(name, **changes)
    parameters = parameters_of(config)
    if layout == "float32":
        return write_folder(folder, config, parameters)
    if layout == "bfloat16":
        half = {n: v.astype(ml_dtypes.bfloat16) for n, v in parameters.items()}
        return write_folder(folder, config, half)
    if layout == "mlx":
        return _mlx(folder, config, parameters)
    if layout == "several bits":
        settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
        settings["dynamic"] = {"+:.*experts.1.*": {"bits": 8}}

        def pack(name: str, weight: np.ndarray) -> packings.Packed:
            return packings.gptq(weight, bits=8 if ".experts.1." in name else 4)

    else:
        settings, pack = METHODS[layout]
    packings.write_packed(
        folder, config, parameters, settings, lambda n, w: pack(n, w) if ".experts." in n else None
    )
    return folder


def gguf_mixture(path: Path, kind: str, **changes: Any) -> Path:
    """A GGUF file whose matrices are of one type."""
    wide = WIDE if kind in ("Q4_K", "Q6_K", "IQ4_XS") else {}
    config = config_of("qwen3_moe", **{**wide, **changes})
    write_gguf(path, config, parameters_of(config), matrices_as(Kind[kind]))
    return path


def _mlx(folder: Path, config: dict[str, Any], parameters: dict[str, np.ndarray]) -> Path:
    """mlx-lm's stacks of experts, in 4 bits under bfloat16 scales and biases."""
    from safetensors.torch import save_file  # noqa: PLC0415

    rng = np.random.default_rng(0)
    stored: dict[str, torch.Tensor] = {}
    for name, values in parameters.items():
        if ".experts.0." not in name:
            if ".experts." not in name:
                stored[name] = torch.from_numpy(values)
            continue
        base = name.replace(".experts.0.", ".switch_mlp.").removesuffix(".weight")
        shape = (config["num_experts"], *values.shape)
        codes = rng.integers(0, 1 << 32, (*shape[:-1], shape[-1] // 8), np.uint64)
        stored[f"{base}.weight"] = torch.from_numpy(codes.astype(np.uint32).view(np.int32))
        for part in ("scales", "biases"):
            each = rng.normal(0, 0.02, (*shape[:-1], shape[-1] // 32))
            stored[f"{base}.{part}"] = torch.from_numpy(each).to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    told = {**config, "quantization": {"group_size": 32, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(told))
    words = {n: t.view(torch.uint32) if t.dtype == torch.int32 else t for n, t in stored.items()}
    save_file(words, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder
