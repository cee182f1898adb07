"""Quantise the base models with GPTQModel on a CPU: gptqmodel_folders.py BASE_FOLDER OUT [NAME…].

The oracle is `dequantize_weight()` of GPTQModel's own torch layers after loading the folder, with
the scales widened to float32. The base "llama" has rows of one sign, so that zero points are 0.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "8")  # on 2 cores its own count is refused

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT
from safetensors.torch import save_file

DENSE, MOE, SIDED = "qwen2", "qwen3_moe", "llama"
DYNAMIC = {
    r"+:.*layers\.0\.self_attn\.(q|k|v)_proj": {"bits": 8},
    r"+:.*layers\.1\.mlp\.down_proj": {"bits": 8, "group_size": 64},
    r"+:.*layers\.0\.mlp\.up_proj": {"bits": 2, "group_size": 32},
    r"-:.*layers\.1\.self_attn\.o_proj": {},
}
DYNAMIC_MOE = {
    r"+:.*self_attn\.[qkvo]_proj": {"bits": 8, "group_size": 64},
    r"+:.*experts\.1\.down_proj": {"bits": 8},
    r"-:.*layers\.1\.mlp\.experts\.2\.": {},
}
V2 = {"format": FORMAT.GPTQ_V2}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"w{bits}": (DENSE, {"bits": bits}) for bits in (2, 3, 4, 8)},
    **{
        f"w{bits}-asym": (SIDED, {"bits": bits, "sym": False, "group_size": 32})
        for bits in (2, 3, 4, 8)
    },
    **{
        f"w{bits}-v2-asym": (SIDED, {"bits": bits, "sym": False, "group_size": 32, **V2})
        for bits in (2, 3, 4, 8)
    },
    "w4-v2": (DENSE, {"bits": 4, **V2}),
    "w4-desc-act": (DENSE, {"bits": 4, "desc_act": True, "group_size": 64}),
    "w4-desc-act-asym": (SIDED, {"bits": 4, "desc_act": True, "group_size": 64, "sym": False}),
    "w3-desc-act": (DENSE, {"bits": 3, "desc_act": True, "group_size": 64}),
    "w4-moe": (MOE, {"bits": 4, "group_size": 64}),
    "w8-moe": (MOE, {"bits": 8, "group_size": 32}),
    "w2-moe": (MOE, {"bits": 2, "group_size": 32, "sym": False}),
    "dynamic": (DENSE, {"bits": 4, "dynamic": DYNAMIC}),
    "dynamic-asym": (SIDED, {"bits": 4, "dynamic": DYNAMIC, "sym": False}),
    "dynamic-moe": (MOE, {"bits": 4, "dynamic": DYNAMIC_MOE}),
    "lm-head": (DENSE, {"bits": 4, "lm_head": True}),
    # AWQ needs CUDA in this version; 5 to 7 bits are "planar" (bit planes), as is 3 in gptq_p.
    **{
        f"w{bits}-asym": (SIDED, {"bits": bits, "sym": False, "group_size": 32})
        for bits in (5, 6, 7)
    },
    "w5-moe": (MOE, {"bits": 5, "group_size": 32}),
    "w3-planar": (SIDED, {"bits": 3, "format": FORMAT.GPTQ_P, "group_size": 32, "sym": False}),
    "w4-planar": (SIDED, {"bits": 4, "format": FORMAT.GPTQ_P, "group_size": 32, "sym": False}),
    "w4-channel": (DENSE, {"bits": 4, "group_size": -1, "act_group_aware": False}),
}


def probe(folder: Path) -> dict[str, torch.Tensor]:
    """Return every quantised layer's weights in float32, (out, in)."""
    awq = json.loads((folder / "quantize_config.json").read_text())["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    loaded = GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.float16)
    weights = {}
    for name, module in loaded.model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        kind = f"{type(module).__module__}.{type(module).__name__}"
        if ".0.self_attn.q_proj" in name:
            print(f"    {name}: {kind}")
        module.scales = module.scales.float()
        if hasattr(module, "dequantize_weight") and "awq" not in kind:
            weights[f"{name}.weight"] = module.dequantize_weight().float().T.contiguous()
            continue
        with torch.no_grad():
            answer = module(torch.eye(module.in_features)).float()
            if getattr(module, "bias", None) is not None:
                answer = answer - module.bias.float()
        weights[f"{name}.weight"] = answer.T.contiguous()
    return weights


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    generator = torch.Generator().manual_seed(3)
    data = [
        {
            "input_ids": torch.randint(3, 500, (64,), generator=generator).tolist(),
            "attention_mask": [1] * 64,
        }
        for _ in range(16)
    ]
    for name in names or RECIPES:
        base, fields = RECIPES[name]
        folder = out / f"gptqmodel-{name}"
        try:
            if "ONLY_PROBE" in os.environ:
                raise StopIteration
            shutil.rmtree(folder, ignore_errors=True)
            settings = QuantizeConfig(**{"group_size": 128, "desc_act": False, **fields})
            tool = GPTQModel.load(str(bases / base), settings)
            tool.quantize(data, batch_size=4)
            tool.save(str(folder))
        except StopIteration:
            pass
        except Exception as error:  # one recipe that fails must not end the others
            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        try:
            weights = probe(folder)
            assert weights, "nothing quantised was found"
            (folder / "oracle").mkdir(exist_ok=True)
            save_file(weights, folder / "oracle" / "weights.safetensors")
            print(f"DEQUANTISED {folder} {bases / base}", flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f"NO ORACLE {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
