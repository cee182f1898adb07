"""Quantise the base models with llm-compressor: llmc.py BASE_FOLDER OUT [NAME…].

Each output folder is what `oneshot(output_dir=…)` writes. oracle/weights.safetensors has what
compressed-tensors' own decompressor makes of each module, with its scales widened to float32 first
(the tool itself multiplies in bfloat16; both are compared here).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import finish
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def ints(bits: int, **more: Any) -> dict[str, Any]:
    """Describe integer weights; groups of 128 unless told."""
    return {
        "num_bits": bits,
        "type": "int",
        "strategy": "group",
        "group_size": 128,
        "symmetric": True,
        "dynamic": False,
        **more,
    }


def channel(bits: int, **more: Any) -> dict[str, Any]:
    """Describe integer weights with one scale a row."""
    return {
        "num_bits": bits,
        "type": "int",
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
        **more,
    }


def scheme(weights: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> Any:
    """Describe one group of modules."""
    return {
        "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs, **more}
    }


STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True, "dynamic": False}
ROW = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
MIXED = {
    "attention": {"targets": ["re:.*self_attn.*"], "weights": channel(8), "input_activations": ROW},
    "mlp": {"targets": ["re:.*mlp.*(gate_proj|up_proj)$"], "weights": ints(4)},
    "down": {"targets": ["re:.*down_proj$"], "weights": ints(8, symmetric=False, group_size=64)},
}
DENSE = "qwen2"
MOE = "qwen3_moe"
GATE = ["lm_head", "re:.*mlp.gate$"]
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "w8a8": (DENSE, {"scheme": "W8A8"}),
    "w8a8-moe": (MOE, {"scheme": "W8A8", "ignore": GATE}),
    "w8a8-static": (DENSE, {"config_groups": scheme(channel(8), STATIC)}),
    "w8a8-static-asym": (
        DENSE,
        {"config_groups": scheme(channel(8), {**STATIC, "symmetric": False})},
    ),
    "w8a8-dynamic-asym": (
        DENSE,
        {"config_groups": scheme(channel(8), {**ROW, "symmetric": False})},
    ),
    "w8a8-tensor": (DENSE, {"config_groups": scheme({**channel(8), "strategy": "tensor"}, ROW)}),
    "w8a8-group": (DENSE, {"config_groups": scheme(ints(8), ROW)}),
    "w8a8-gptq": (DENSE, {"scheme": "W8A8", "gptq": True}),
    "w8a8-ignore": (
        DENSE,
        {"scheme": "W8A8", "ignore": ["lm_head", "re:.*layers.0.*", "re:.*o_proj"]},
    ),
    "w8a16": (DENSE, {"scheme": "W8A16"}),
    "w8a16-moe": (MOE, {"scheme": "W8A16", "ignore": GATE}),
    "w8a16-channel": (DENSE, {"config_groups": scheme(channel(8))}),
    "w8a16-asym": (DENSE, {"config_groups": scheme(ints(8, symmetric=False, group_size=32))}),
    "w8a16-channel-asym": (DENSE, {"config_groups": scheme(channel(8, symmetric=False))}),
    "nvfp4": (DENSE, {"scheme": "NVFP4"}),
    "nvfp4-moe": (MOE, {"scheme": "NVFP4", "ignore": GATE}),
    "nvfp4a16": (DENSE, {"scheme": "NVFP4A16"}),
    "mxfp8": (DENSE, {"scheme": "MXFP8"}),
    "mxfp8-moe": (MOE, {"scheme": "MXFP8", "ignore": GATE}),
    "mxfp8a16": (DENSE, {"scheme": "MXFP8A16"}),
    "mxfp4": (DENSE, {"scheme": "MXFP4"}),
    "mxfp4-moe": (MOE, {"scheme": "MXFP4A16", "ignore": GATE}),
    "w4afp8": (DENSE, {"scheme": "W4AFP8"}),
    "w4afp8-moe": (MOE, {"scheme": "W4AFP8", "ignore": GATE}),
    "w4a8": (DENSE, {"scheme": "W4A8"}),
    "w4a8-asym": (DENSE, {"config_groups": scheme(ints(4, symmetric=False), ROW)}),
    "w2a16": (DENSE, {"scheme": "W2A16"}),
    "w3a16": (DENSE, {"scheme": "W3A16"}),
    "w3a16-asym": (DENSE, {"config_groups": scheme(ints(3, symmetric=False, group_size=32))}),
    "w5a16": (DENSE, {"scheme": "W5A16"}),
    "w6a16-asym": (DENSE, {"config_groups": scheme(ints(6, symmetric=False, group_size=64))}),
    "w7a16": (DENSE, {"scheme": "W7A16"}),
    "w2a16-moe": (MOE, {"scheme": "W2A16", "ignore": GATE}),
    "w4a16-asym": (DENSE, {"scheme": "W4A16_ASYM"}),
    "w4a16-actorder": (DENSE, {"config_groups": scheme(ints(4, actorder="weight")), "gptq": True}),
    "w4a16-moe": (MOE, {"scheme": "W4A16", "ignore": GATE}),
    "mixed": (DENSE, {"config_groups": MIXED}),
    "mixed-moe": (MOE, {"config_groups": MIXED, "ignore": GATE}),
    "fp8-kv": (DENSE, {"scheme": "FP8", "kv_cache_scheme": KV}),
    "fp8-dynamic-moe": (MOE, {"scheme": "FP8_DYNAMIC", "ignore": GATE}),
    "w8a8-kv": (DENSE, {"scheme": "W8A8", "kv_cache_scheme": {**KV, "type": "int"}}),
    "fp8-block": (DENSE, {"scheme": "FP8_BLOCK"}),
    "w8a8-lm-head": (DENSE, {"scheme": "W8A8", "ignore": []}),
}


def scheme_of(config: dict[str, Any], local: set[str], name: str) -> QuantizationScheme:
    """Return the scheme whose target matches this module."""
    import re

    for group in QuantizationConfig.model_validate(config).config_groups.values():
        for target in group.targets:
            if target in ("Linear", name) or (
                target.startswith("re:") and re.match(target[3:], name)
            ):
                return group
    raise LookupError(name)


def widened(local: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the module's tensors with float scales as float32."""
    wide = (torch.bfloat16, torch.float16)
    return {
        k: v.float() if k.endswith("scale") and v.dtype in wide else v for k, v in local.items()
    }


def decompressed(
    local: dict[str, torch.Tensor], group: QuantizationScheme, form: str
) -> torch.Tensor:
    """Return one weight in float32, by the tool's decompressor; check its own bfloat16 one."""
    tool = BaseCompressor.get_value_from_registry(form)
    plain = tool.decompress(dict(local), group)["weight"].float()
    if form == "nvfp4-pack-quantized":
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

        rows, half = local["weight_packed"].shape
        codes = unpack_fp4_from_uint8(local["weight_packed"], rows, 2 * half, torch.float32)
        exact = dequantize(
            x_q=codes,
            scale=local["weight_scale"].float(),
            args=group.weights,
            global_scale=local["weight_global_scale"].float(),
            dtype=torch.float32,
        )
    else:
        exact = tool.decompress(widened(local), group)["weight"].float()
    assert ((exact - plain).abs() <= 0.02 * exact.abs() + 1e-6).all(), (exact - plain).abs().max()
    return exact


def write_oracle(folder: Path) -> None:
    """Write the dequantised weights of a compressed-tensors folder."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            module, _, local = name.rpartition(".")
            modules.setdefault(module, {})[local] = tensor
    weights = {}
    for module, local in modules.items():
        if not any(k in local for k in ("weight_scale", "weight_packed")):
            continue
        group = scheme_of(config, set(local), module)
        form = str(getattr(group.format, "value", group.format) or config["format"])
        weights[f"{module}.weight"] = decompressed(local, group, form).contiguous()
    (folder / "oracle").mkdir(exist_ok=True)
    save_file(weights, folder / "oracle" / "weights.safetensors")
    kinds = sorted({k for m in modules.values() for k in m})
    print(folder.name, config["format"], kinds)


def build(base: Path, out: Path, recipe: dict[str, Any]) -> None:
    """Quantise one base model into `out`."""
    fields = {"targets": ["Linear"], "ignore": ["lm_head"], **recipe}
    if "config_groups" in fields:
        fields.pop("targets")
    kind = GPTQModifier if fields.pop("gptq", False) else QuantizationModifier
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    linearize_moe(model)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 500, (16, 64), generator=generator)
    data = Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    )
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(base),
        dataset=data,
        recipe=kind(**fields),
        max_seq_length=64,
        num_calibration_samples=16,
        output_dir=str(out),
    )


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    for name in names or RECIPES:
        base, recipe = RECIPES[name]
        folder = out / f"llmcompressor-{name}"
        try:
            build(bases / base, folder, recipe)
            write_oracle(folder)
            finish.main(folder, bases / base)
        except Exception as error:  # one recipe that fails must not end the others
            import traceback

            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
