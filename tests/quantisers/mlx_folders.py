"""Quantise the base models with mlx-lm (on a CPU): mlx_folders.py BASE_FOLDER OUT [NAME…].

The oracle is `mlx.core.dequantize` of what was written, with affine scales and biases widened to
float32 (the tool's own values in the scales' type are compared). `switch_mlp` stacks the experts.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finish
import mlx.core as mx
import numpy as np
from mlx_lm import convert
from safetensors.numpy import save_file


def two_kinds(path: str, module: Any) -> bool | dict[str, Any]:
    """Give each kind of layer its own bits, groups and mode; leave one as floats."""
    if not hasattr(module, "to_quantized") or path.endswith("k_proj") or path.endswith("mlp.gate"):
        return False
    if "down_proj" in path:
        return {"group_size": 32, "bits": 8, "mode": "affine"}
    if "o_proj" in path:
        return {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    if "v_proj" in path:
        return {"group_size": 16, "bits": 4, "mode": "nvfp4"}
    return True


DENSE, MOE = "qwen2", "qwen3_moe"
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "4bit": (DENSE, {"q_bits": 4, "q_group_size": 64}),
    "4bit-moe": (MOE, {"q_bits": 4, "q_group_size": 64}),
    "8bit": (DENSE, {"q_bits": 8, "q_group_size": 64}),
    "8bit-moe": (MOE, {"q_bits": 8, "q_group_size": 32}),
    "2bit": (DENSE, {"q_bits": 2, "q_group_size": 128}),
    "3bit": (DENSE, {"q_bits": 3, "q_group_size": 64}),
    "3bit-moe": (MOE, {"q_bits": 3, "q_group_size": 32}),
    "5bit": (DENSE, {"q_bits": 5, "q_group_size": 32}),
    "6bit": (DENSE, {"q_bits": 6, "q_group_size": 128}),
    "6bit-moe": (MOE, {"q_bits": 6, "q_group_size": 64}),
    "4bit-group32": ("llama", {"q_bits": 4, "q_group_size": 32}),
    "4bit-float16": ("qwen3", {"q_bits": 4, "q_group_size": 64, "dtype": "float16"}),
    "4bit-float32": (DENSE, {"q_bits": 4, "q_group_size": 64, "dtype": "float32"}),
    "mixed_2_6": (DENSE, {"quant_predicate": "mixed_2_6"}),
    "mixed_3_4": ("llama", {"quant_predicate": "mixed_3_4"}),
    "mixed_3_6-moe": (MOE, {"quant_predicate": "mixed_3_6"}),
    "mixed_4_6": (DENSE, {"quant_predicate": "mixed_4_6"}),
    "mxfp4": (DENSE, {"q_mode": "mxfp4"}),
    "mxfp4-moe": (MOE, {"q_mode": "mxfp4"}),
    "mxfp8": (DENSE, {"q_mode": "mxfp8"}),
    "mxfp8-moe": (MOE, {"q_mode": "mxfp8"}),
    "nvfp4": (DENSE, {"q_mode": "nvfp4"}),
    "nvfp4-moe": (MOE, {"q_mode": "nvfp4"}),
    "kinds": (DENSE, {"q_bits": 4, "q_group_size": 64, "quant_predicate": two_kinds}),
    "kinds-moe": (MOE, {"q_bits": 4, "q_group_size": 64, "quant_predicate": two_kinds}),
    "bf16": (DENSE, {"quantize": False}),
    "bf16-moe": (MOE, {"quantize": False}),
}


def settings(config: dict[str, Any], module: str) -> dict[str, Any]:
    """Return bits, group size and mode of one module, as mlx-lm's own loader finds them."""
    base = {k: v for k, v in config.items() if not isinstance(v, dict | bool)}
    own = config.get(module)
    return {**({} if isinstance(own, dict) else base), **(own if isinstance(own, dict) else {})}


def dequantised(parts: dict[str, mx.array], how: dict[str, Any]) -> np.ndarray:
    """Return one module's weights in float32."""
    mode = how.get("mode", "affine")
    call: Callable[..., mx.array] = mx.dequantize
    same = {"group_size": how.get("group_size"), "bits": how.get("bits"), "mode": mode}
    scales, biases = parts["scales"], parts.get("biases")
    plain = call(parts["weight"], scales, biases, **same).astype(mx.float32)
    if mode == "affine":
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        exact = call(parts["weight"], scales, biases, **same)
    else:
        exact = call(parts["weight"], scales, biases, dtype=mx.float32, **same)
    assert exact.dtype == mx.float32
    worst = float(mx.abs(exact - plain).max())
    print(f"    {mode} {same['bits']} {same['group_size']}: the tool's own rounding {worst:.2g}")
    return np.array(exact)


def write_oracle(folder: Path) -> None:
    """Write the dequantised weights under transformers' names."""
    config = json.loads((folder / "config.json").read_text()).get("quantization", {})
    parts: dict[str, dict[str, mx.array]] = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in mx.load(str(path)).items():
            module, _, local = name.rpartition(".")
            parts.setdefault(module, {})[local] = tensor
    weights: dict[str, np.ndarray] = {}
    for module, tensors in sorted(parts.items()):
        if "scales" in tensors:
            values = dequantised(tensors, settings(config, module))
        elif "weight" in tensors and tensors["weight"].ndim > 1:
            values = np.array(tensors["weight"].astype(mx.float32))
        else:
            continue
        if values.ndim == 3:
            for number, expert in enumerate(values):
                name = re.sub(r"switch_mlp", f"experts.{number}", module)
                weights[f"{name}.weight"] = np.ascontiguousarray(expert)
        else:
            weights[f"{module}.weight"] = values
    (folder / "oracle").mkdir(exist_ok=True)
    save_file(weights, folder / "oracle" / "weights.safetensors")


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    for name in names or RECIPES:
        base, fields = RECIPES[name]
        folder = out / f"mlx-{name}"
        try:
            convert(str(bases / base), str(folder), **{"quantize": True, **fields})
            write_oracle(folder)
            finish.main(folder, bases / base)
        except Exception as error:  # one recipe that fails must not end the others
            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
