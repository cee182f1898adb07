"""Quantise the base models with AutoRound on a CPU: autoround.py BASE_FOLDER OUT [NAME…].

The oracle is the loaded model itself: transformers loads the folder with AutoRound's own kernels in
torch, each quantised layer's scales are widened to float32, and it is fed the identity matrix.
"""

from __future__ import annotations

import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DENSE, MOE = "qwen2", "qwen3_moe"
OWN = "auto_round"
MIXED = {
    "model.layers.0.self_attn.q_proj": {"bits": 8},
    "model.layers.1.self_attn.k_proj": {"bits": 8, "group_size": 32},
    "model.layers.0.mlp.down_proj": {"bits": 2, "group_size": 64},
    "model.layers.1.self_attn.o_proj": {"bits": 16},
}
MIXED_MOE = {
    **{f"model.layers.0.self_attn.{k}_proj": {"bits": 8} for k in "qkvo"},
    **{
        f"model.layers.1.mlp.experts.{n}.down_proj": {"bits": 8, "group_size": 64} for n in range(4)
    },
}
RECIPES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "w4": (DENSE, OWN, "W4A16", {}),
    "w4-moe": (MOE, OWN, "W4A16", {}),
    "w4-asym": (DENSE, OWN, "W4A16", {"sym": False}),
    "w4-awq": (DENSE, "auto_round:auto_awq", "W4A16", {}),
    "w4-awq-asym": (DENSE, "auto_round:auto_awq", "W4A16", {"sym": False, "group_size": 32}),
    "w4-awq-moe": (MOE, "auto_round:auto_awq", "W4A16", {"sym": False}),
    "w4-gptq": (DENSE, "auto_round:auto_gptq", "W4A16", {}),
    "w4-gptq-asym": (DENSE, "auto_round:auto_gptq", "W4A16", {"sym": False, "group_size": 32}),
    "w4-gptqmodel-asym": (DENSE, "auto_round:gptqmodel", "W4A16", {"sym": False, "group_size": 32}),
    "w2": (DENSE, OWN, "W2A16G64", {}),
    "w2-asym": (DENSE, OWN, "W2A16G32", {"sym": False}),
    "w2-gptq-asym": (DENSE, "auto_round:auto_gptq", "W2A16G32", {"sym": False}),
    # The base "llama" has rows of one sign: zero points of 0, which "auto_gptq" stores as -1.
    "w2-gptq-sided": ("llama", "auto_round:auto_gptq", "W2A16G32", {"sym": False}),
    "w3-gptq-sided": ("llama", "auto_round:auto_gptq", "W3A16G32", {"sym": False}),
    "w4-gptq-sided": ("llama", "auto_round:auto_gptq", "W4A16G32", {"sym": False}),
    "w4-sided": ("llama", OWN, "W4A16G32", {"sym": False}),
    "w2-sided": ("llama", OWN, "W2A16G32", {"sym": False}),
    "gptq-plain-sided": ("llama", "auto_gptq", "W4A16G32", {"sym": False}),
    "w3": (DENSE, OWN, "W3A16", {}),
    "w3-asym": (DENSE, OWN, "W3A16", {"sym": False}),
    "w3-gptq-asym": (DENSE, "auto_round:auto_gptq", "W3A16", {"sym": False, "group_size": 32}),
    "w5": (DENSE, OWN, "W5A16", {}),
    "w6-asym": (DENSE, OWN, "W6A16", {"sym": False}),
    "w7": (DENSE, OWN, "W7A16", {}),
    "w8": (DENSE, OWN, "W8A16", {}),
    "w8-asym": (DENSE, OWN, "W8A16", {"sym": False, "group_size": 64}),
    "w8-moe": (MOE, OWN, "W8A16", {}),
    "w4-channel": (DENSE, OWN, "W4A16", {"group_size": -1}),
    "mixed": (DENSE, OWN, "W4A16", {"layer_config": MIXED}),
    "mixed-asym": (DENSE, OWN, "W4A16", {"layer_config": MIXED, "sym": False}),
    "mixed-moe": (MOE, OWN, "W4A16", {"layer_config": MIXED_MOE}),
    "mixed-regex": (DENSE, OWN, "W4A16", {"layer_config": {"v_proj": {"bits": 8}}}),
    "lm-head": (DENSE, OWN, "W4A16", {"quant_lm_head": True}),
    "nvfp4": (DENSE, OWN, "NVFP4", {}),
    "nvfp4-moe": (MOE, OWN, "NVFP4", {}),
    "nvfp4-llmc": (DENSE, "llm_compressor", "NVFP4", {}),
    "mxfp4": (DENSE, OWN, "MXFP4", {}),
    "mxfp4-moe": (MOE, OWN, "MXFP4", {}),
    "mxfp4-llmc": (DENSE, "llm_compressor", "MXFP4", {}),
    "mxfp8": (DENSE, OWN, "MXFP8", {}),
    "mxfp8-moe": (MOE, OWN, "MXFP8", {}),
    "fp8-static": (DENSE, OWN, "FP8_STATIC", {}),
    "fp8-block": (DENSE, "fp8", "FP8_BLOCK", {}),
    "int8-llmc": (DENSE, "llm_compressor", "INT8", {}),
    "mxint4": (DENSE, OWN, "MXINT4", {}),
    "mlx": (DENSE, "auto_round:mlx", "W4A16", {}),
    "mlx-plain": (DENSE, "mlx", "W4A16", {"sym": False}),
    "gptq-plain": (DENSE, "auto_gptq", "W4A16", {}),
    "gptq-plain-asym": (DENSE, "auto_gptq", "W4A16", {"sym": False}),
    "awq-plain": (DENSE, "auto_awq", "W4A16", {"sym": False}),
    "nvfp4-e5m3": (DENSE, OWN, "NVFP4_E5M3", {}),
}


def probe(folder: Path) -> dict[str, torch.Tensor]:
    """Return every quantised layer's weights as the loaded model multiplies by them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and type(module) is torch.nn.Linear:
            continue
        if not hasattr(module, "qweight") and not hasattr(module, "weight_scale"):
            continue
        if hasattr(module, "qdq_input"):
            module.dtype = torch.float32
            weights[f"{name}.weight"] = module.dequant_weight_online().float()
            continue
        module.scales = module.scales.float() if hasattr(module, "scales") else None
        width = getattr(module, "in_features", None) or module.infeatures
        with torch.no_grad():
            answer = module(torch.eye(width))
            if getattr(module, "bias", None) is not None:
                answer = answer - module.bias.float()
        weights[f"{name}.weight"] = answer.float().T.contiguous()
        print(
            f"    {name}: {type(module).__module__}.{type(module).__name__}"
        ) if ".0.self_attn.q" in name else 0
    return weights


def widen(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Replace what the tool's layers multiply in 16 bits (AWQ, static FP8) by float32 products."""
    tensors = load_file(folder / "model.safetensors")
    for name, rounded in weights.items():
        module = name.removesuffix(".weight")
        if tensors.get(name) is not None and f"{module}.weight_scale" in tensors:
            scale = tensors[f"{module}.weight_scale"]
            if scale.dtype == torch.float32 and scale.dim() == 1:
                exact = tensors[name].float() * scale[:, None]
                assert ((exact - rounded).abs() <= exact.abs() / 100 + 1e-6).all()
                weights[name] = exact
        if f"{module}.qzeros" not in tensors:
            continue
        scales = tensors[f"{module}.scales"].float()
        if tensors[f"{module}.qweight"].shape[1] * 8 != scales.shape[1]:
            continue  # GPTQ packing
        order = (0, 4, 1, 5, 2, 6, 3, 7)
        codes, zeros = (
            torch.stack([(tensors[f"{module}.{k}"] >> (4 * i)) & 15 for i in order], -1).flatten(1)
            for k in ("qweight", "qzeros")
        )
        size = codes.shape[0] // scales.shape[0]
        exact = (codes - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)
        step = scales.repeat_interleave(size, 0).T
        assert ((exact.T - rounded).abs() <= step.abs() / 8).all()  # the same codes, beyond doubt
        weights[name] = exact.T.contiguous()


def build(base: Path, folder: Path, form: str, scheme: str, more: dict[str, Any]) -> None:
    """Quantise by rounding to nearest (iters=0)."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    generator = torch.Generator().manual_seed(3)
    data = [torch.randint(3, 500, (1, 64), generator=generator) for _ in range(8)]
    tool = AutoRound(
        model,
        tokenizer,
        scheme=scheme,
        iters=0,
        nsamples=8,
        seqlen=64,
        dataset=data,
        device_map="cpu",
        disable_opt_rtn=True,
        **more,
    )
    tool.quantize_and_save(str(folder), format=form)
    for written in [path for path in folder.iterdir() if path.is_dir()]:  # MODEL-w4g128
        for path in written.iterdir():
            path.rename(folder / path.name)
        written.rmdir()


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    for name in names or RECIPES:
        base, form, scheme, more = RECIPES[name]
        folder = out / f"autoround-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            build(bases / base, folder, form, scheme, dict(more))
        except Exception as error:  # one recipe that fails must not end the others
            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        try:
            weights = probe(folder)
            assert weights, "nothing quantised was found"
            widen(folder, weights)
            (folder / "oracle").mkdir(exist_ok=True)
            save_file(weights, folder / "oracle" / "weights.safetensors")
            print(
                f"DEQUANTISED {folder} {bases / base}", flush=True
            )  # logits: finish.py, in its own process
        except Exception as error:
            traceback.print_exc()
            print(f"NO ORACLE {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
