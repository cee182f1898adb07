"""Quantise the base models with NVIDIA ModelOpt on a CPU: modelopt_folders.py BASE OUT [NAME…].

`export_hf_checkpoint` writes the folder. The oracle decodes the file as ModelOpt's packing code
(modelopt/torch/export/quant_utils.py) encodes it, and is compared with `weight_quantizer(weight)`
before the export where that runs on a CPU (AWQ and SmoothQuant fold scales in between).
"""

from __future__ import annotations

import copy
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DENSE, MOE = "qwen3", "qwen3_moe"


def with_kv(name: str, kv: str) -> dict[str, Any]:
    """Return a configuration with a quantised cache."""
    both = copy.deepcopy(getattr(mtq, name))
    more = copy.deepcopy(getattr(mtq, kv))["quant_cfg"]
    if isinstance(both["quant_cfg"], list):
        both["quant_cfg"] = [*both["quant_cfg"], *more]
    else:
        both["quant_cfg"].update(more)
    return both


RECIPES: dict[str, tuple[str, Any]] = {
    "fp8": (DENSE, lambda: mtq.FP8_DEFAULT_CFG),
    "fp8-kv": (DENSE, lambda: with_kv("FP8_DEFAULT_CFG", "FP8_KV_CFG")),
    "fp8-channel": (DENSE, lambda: mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG),
    "fp8-block": (DENSE, lambda: mtq.FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG),
    "fp8-moe": (MOE, lambda: mtq.FP8_DEFAULT_CFG),
    "nvfp4": (DENSE, lambda: mtq.NVFP4_DEFAULT_CFG),
    "nvfp4-kv": (DENSE, lambda: with_kv("NVFP4_DEFAULT_CFG", "FP8_KV_CFG")),
    "nvfp4-moe": (MOE, lambda: mtq.NVFP4_DEFAULT_CFG),
    "nvfp4-mlp": (DENSE, lambda: mtq.NVFP4_MLP_ONLY_CFG),
    "nvfp4-awq": (DENSE, lambda: mtq.NVFP4_AWQ_LITE_CFG),
    "w4a16-nvfp4": (DENSE, lambda: mtq.W4A16_NVFP4_CFG),
    "w4a8-nvfp4": (DENSE, lambda: mtq.W4A8_NVFP4_FP8_CFG),
    "int8-sq": (DENSE, lambda: mtq.INT8_SMOOTHQUANT_CFG),
    "int8": (DENSE, lambda: mtq.INT8_DEFAULT_CFG),
    "int8wo": (DENSE, lambda: mtq.INT8_WEIGHT_ONLY_CFG),
    "int4-awq": (DENSE, lambda: mtq.INT4_AWQ_CFG),
    "int4-awq-moe": (MOE, lambda: mtq.INT4_AWQ_CFG),
    "w4a8-awq": (DENSE, lambda: mtq.W4A8_AWQ_BETA_CFG),
    "mxfp4": (DENSE, lambda: mtq.MXFP4_DEFAULT_CFG),
    "mxfp8": (DENSE, lambda: mtq.MXFP8_DEFAULT_CFG),
}


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def spread(scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Widen a scale (scalar, rows, rows x groups or 4-D blocks) to one a weight."""
    scale = scale.float()
    if scale.dim() == 4:
        scale = scale[:, 0, :, 0]
    if scale.dim() == 1:
        scale = scale[:, None]
    if scale.dim() == 0:
        return scale.expand(rows, columns)
    high, wide = -(-rows // scale.shape[0]), -(-columns // scale.shape[1])
    return scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]


def decoded(local: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return one module's weights in float32, with `pre_quant_scale` folded in."""
    weight, scale = local["weight"], local["weight_scale"]
    if weight.dtype == torch.uint8 and scale.dtype in (torch.float8_e4m3fn, torch.uint8):
        codes = torch.stack([weight & 15, weight >> 4], -1).flatten(-2)
        values = E2M1[codes.long()]
        if scale.dtype == torch.uint8:
            scale = torch.exp2(scale.float() - 127)
    elif weight.dtype == torch.uint8:  # two rows in a byte
        codes = torch.stack([weight & 15, weight >> 4], 1).flatten(0, 1).float()
        values = codes - 16 * (codes > 7)
    else:
        values = weight.float()
        if scale.dtype == torch.uint8:
            scale = torch.exp2(scale.float() - 127)
    result = values * spread(scale, *values.shape)
    if (
        "weight_scale_2" in local and scale.dtype == torch.float8_e4m3fn
    ):  # not W4A8_AWQ: FP8 of codes x scale
        result = result * local["weight_scale_2"].float()
    if "pre_quant_scale" in local:
        result = result * local["pre_quant_scale"].float()
    return result.contiguous()


def quantised(folder: Path) -> dict[str, torch.Tensor]:
    """Return what the exported folder stands for."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            module, _, local = name.rpartition(".")
            modules.setdefault(module, {})[local] = tensor
    return {f"{n}.weight": decoded(m) for n, m in modules.items() if "weight_scale" in m}


def faked(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the fake-quantised weights before the export, where that runs on a CPU."""
    weights = {}
    for name, module in model.named_modules():
        quantiser = getattr(module, "weight_quantizer", None)
        if isinstance(module, torch.nn.Linear) and quantiser is not None and quantiser.is_enabled:
            with torch.no_grad():
                weights[f"{name}.weight"] = quantiser(module.weight.float()).float().contiguous()
    return weights


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    for name in names or RECIPES:
        base, make = RECIPES[name]
        folder = out / f"modelopt-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            model = AutoModelForCausalLM.from_pretrained(bases / base, dtype=torch.bfloat16)
            generator = torch.Generator().manual_seed(3)
            ids = torch.randint(3, 500, (8, 64), generator=generator)

            def calibrate(net: torch.nn.Module, ids: torch.Tensor = ids) -> None:
                with torch.no_grad():
                    net(ids)

            mtq.quantize(model, copy.deepcopy(make()), calibrate)
            try:
                fake = faked(model)
            except Exception as error:
                fake = {}
                print("   no fake quantisation on a CPU:", str(error)[:100])
            export_hf_checkpoint(model, export_dir=folder)
            AutoTokenizer.from_pretrained(bases / base).save_pretrained(folder)
        except Exception as error:  # one recipe that fails must not end the others
            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        try:
            weights = quantised(folder)
            for key in fake.keys() & weights.keys():
                if ".layers.0." in key:
                    gap = float((fake[key] - weights[key]).abs().max() / fake[key].abs().max())
                    print(f"    {key}: {gap:.2g} from the fake-quantised weight before the export")
            assert weights, "nothing quantised was found"
            (folder / "oracle").mkdir(exist_ok=True)
            save_file(weights, folder / "oracle" / "weights.safetensors")
            print(f"DEQUANTISED {folder} {bases / base}", flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f"NO ORACLE {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
