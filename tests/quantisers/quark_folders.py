"""Quantise the base models with AMD Quark on a CPU: quark_folders.py BASE OUT [NAME…].

`export_safetensors` writes the folder. The oracle is what Quark's own layers multiply by:
`import_model_from_safetensors` loads the folder as float32, so that scales are widened, and each
`QParamsLinear` dequantises its weight. transformers' own loader (5.24) gives the same for formats
of one stage; of those with a `weight_scale_2` it leaves the scales as they are in memory.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from quark.torch import (
    LLMTemplate,
    ModelQuantizer,
    export_safetensors,
    import_model_from_safetensors,
)
from quark.torch.quantization.config import config as quark
from quark.torch.utils.llm.model_preparation import preprocess_for_quantization
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

DENSE, MOE, SIDED = "qwen2", "qwen3_moe", "llama"
QUARK_NAMES = {".qweight": ".weight", ".scales": ".weight_scale", ".qzeros": ".weight_zero_point"}
GROUP = {"ch_axis": -1, "is_dynamic": False, "scale_type": "float"}
ROW = {"ch_axis": 0, "is_dynamic": False}
# Weights only; what Quark's templates have no scheme for.
SPECS: dict[str, Any] = {
    "int8_row": lambda: quark.Int8PerChannelSpec(symmetric=True, **ROW),
    "int8_row_asym": lambda: quark.Int8PerChannelSpec(symmetric=False, **ROW),
    "int8_group": lambda: quark.Int8PerGroupSpec(group_size=64, **GROUP),
    "uint8": lambda: quark.Uint8PerTensorSpec(is_dynamic=False),
    "uint8_row": lambda: quark.Uint8PerChannelSpec(symmetric=False, **ROW),
    "uint8_group": lambda: quark.Uint8PerGroupSpec(group_size=64, **GROUP),
    "int4_tensor": lambda: quark.Int4PerTensorSpec(is_dynamic=False),
    "uint4_tensor": lambda: quark.Uint4PerTensorSpec(is_dynamic=False),
    "int3_group": lambda: quark.Int3PerGroupSpec(group_size=64, **GROUP),
    "int3_row": lambda: quark.Int3PerChannelSpec(symmetric=True, **ROW),
    "int2_group": lambda: quark.Int2PerGroupSpec(group_size=64, **GROUP),
    "fp8_group": lambda: quark.FP8E4M3PerGroupSpec(ch_axis=-1, group_size=64, is_dynamic=False),
    "fp8_e5m2": lambda: quark.FP8E5M2PerTensorSpec(is_dynamic=False),
    "mxfp8": lambda: quark.OCP_MXFP8E4M3Spec(ch_axis=-1, is_dynamic=False),
    "mxint8": lambda: quark.OCP_MXINT8Spec(ch_axis=-1, is_dynamic=False),
}
# name -> (base, scheme, arguments of get_config, arguments of export_safetensors)
RECIPES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "fp8": (DENSE, "fp8", {}, {}),
    "fp8-moe": (MOE, "fp8", {}, {}),
    "fp8-kv": (DENSE, "fp8", {"kv_cache_scheme": "fp8"}, {}),
    "fp8-attention": (DENSE, "fp8", {"kv_cache_scheme": "fp8", "attention_scheme": "fp8"}, {}),
    "fp8-custom": (DENSE, "fp8", {}, {"custom_mode": "fp8"}),
    "fp8-lm-head": (DENSE, "fp8", {"exclude_layers": []}, {}),
    "fp8-fake": (DENSE, "fp8", {}, {"weight_format": "fake_quantized"}),
    "ptpc_fp8": (DENSE, "ptpc_fp8", {}, {}),
    "ptpc_fp8-moe": (MOE, "ptpc_fp8", {}, {}),
    "fp8_group": (DENSE, "fp8_group", {}, {}),
    "fp8_e5m2": (DENSE, "fp8_e5m2", {}, {}),
    "int8": (DENSE, "int8", {}, {}),
    "int8-moe": (MOE, "int8", {}, {}),
    "int8_row": (DENSE, "int8_row", {}, {}),
    "int8_row_asym": (SIDED, "int8_row_asym", {}, {}),
    "int8_group": (DENSE, "int8_group", {}, {}),
    "uint8": (SIDED, "uint8", {}, {}),
    "uint8_row": (SIDED, "uint8_row", {}, {}),
    "uint8_group": (SIDED, "uint8_group", {}, {}),
    "int4_tensor": (DENSE, "int4_tensor", {}, {}),
    "uint4_tensor": (SIDED, "uint4_tensor", {}, {}),
    "int4_wo_32": (DENSE, "int4_wo_32", {}, {}),
    "int4_wo_128": (DENSE, "int4_wo_128", {}, {}),
    "int4_wo_128-order": (DENSE, "int4_wo_128", {}, {"pack_method": "order"}),
    "int4_wo_128-moe": (MOE, "int4_wo_128", {}, {}),
    "int4_wo_per_channel": (DENSE, "int4_wo_per_channel", {}, {}),
    "int4_wa_64": (DENSE, "int4_wa_64", {}, {}),
    "int4_fp8": (DENSE, "int4_fp8", {}, {}),
    "int4_fp8-moe": (MOE, "int4_fp8", {}, {}),
    "uint4_wo_32": (SIDED, "uint4_wo_32", {}, {}),
    "uint4_wo_128": (DENSE, "uint4_wo_128", {}, {}),
    "uint4_wo_128-order": (SIDED, "uint4_wo_128", {}, {"pack_method": "order"}),
    "uint4_wo_128-moe": (MOE, "uint4_wo_128", {}, {}),
    "uint4_wo_128-awq": (SIDED, "uint4_wo_128", {"algorithm": "awq"}, {}),
    "uint4_wo_128-awq-custom": (
        SIDED,
        "uint4_wo_128",
        {"algorithm": "awq"},
        {"custom_mode": "awq"},
    ),
    "int4_wo_128-awq-custom": (
        SIDED,
        "int4_wo_128",
        {"algorithm": "awq"},
        {"custom_mode": "awq", "pack_method": "order"},
    ),
    "uint4_wo_per_channel": (SIDED, "uint4_wo_per_channel", {}, {}),
    "int3_group": (DENSE, "int3_group", {}, {}),
    "int3_row": (DENSE, "int3_row", {}, {}),
    "int2_group": (DENSE, "int2_group", {}, {}),
    "mxfp4": (DENSE, "mxfp4", {}, {}),
    "mxfp4-moe": (MOE, "mxfp4", {}, {}),
    "mxfp4_weight_only": (DENSE, "mxfp4_weight_only", {}, {}),
    "mxfp4_fp8": (DENSE, "mxfp4_fp8", {}, {}),
    "mxfp4_mxfp6_e2m3": (DENSE, "mxfp4_mxfp6_e2m3", {}, {}),
    "mxfp6_e3m2": (DENSE, "mxfp6_e3m2", {}, {}),
    "mxfp6_e2m3": (DENSE, "mxfp6_e2m3", {}, {}),
    "mxfp8": (DENSE, "mxfp8", {}, {}),
    "mxint8": (DENSE, "mxint8", {}, {}),
    "nvfp4": (DENSE, "nvfp4", {}, {}),
    "nvfp4-moe": (MOE, "nvfp4", {}, {}),
    "amdfp4": (DENSE, "amdfp4", {}, {}),
    "amdfp4_g32": (DENSE, "amdfp4_g32", {}, {}),
    "amdfp4_global16": (DENSE, "amdfp4_global16", {}, {}),
    "amdfp4_global32": (DENSE, "amdfp4_global32", {}, {}),
    "mx6": (DENSE, "mx6", {}, {}),
    "mx9": (DENSE, "mx9", {}, {}),
    "bfp16": (DENSE, "bfp16", {}, {}),
    "mixed": (
        DENSE,
        "mxfp4",
        {"layer_config": {"*self_attn*": "fp8", "*down_proj": "uint4_wo_128"}},
        {},
    ),
    "mixed-moe": (
        MOE,
        "uint4_wo_128",
        {"layer_config": {"*self_attn*": "ptpc_fp8", "*experts.*.down_proj": "mxfp4"}},
        {},
    ),
}


def build(
    base: Path, folder: Path, scheme: str, how: dict[str, Any], way: dict[str, Any]
) -> dict[str, Any]:
    """Quantise one model and export it; return Quark's settings."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    if base.name == MOE:
        preprocess_for_quantization(model)  # experts become Linear modules, which are quantised
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 500, (4, 64), generator=generator)
    settings = LLMTemplate.get(model.config.model_type).get_config(scheme=scheme, **how)
    tool = ModelQuantizer(settings)
    model = tool.freeze(tool.quantize_model(model, torch.utils.data.DataLoader(ids, batch_size=1)))
    with torch.no_grad():
        export_safetensors(model, folder, **way)
    return settings.to_dict()


def decoded(folder: Path, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return every quantised layer's weights as the model that Quark loads multiplies by them."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        path = Path(scratch) / "config.json"
        config = json.loads(path.read_text()) | {"dtype": "float32"}  # so that scales are widened
        if config["quantization_config"]["quant_method"] == "awq":  # the same by other names
            config["quantization_config"] = {
                **settings,
                "export": config["quantization_config"]["export"],
            }
            tensors = load_file(folder / "model.safetensors")
            for theirs, ours in QUARK_NAMES.items():
                tensors = {name.replace(theirs, ours): each for name, each in tensors.items()}
            save_file(tensors, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        path.write_text(json.dumps(config))
        model = import_model_from_safetensors(None, scratch, device="cpu")
    weights = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "QParamsLinear" and module.weight_quantizer is not None:
            with torch.no_grad():
                value = module._get_qweight(module.weight)
            assert value.dtype == torch.float32, value.dtype
            weights[f"{name}.weight"] = value.clone().contiguous()
    return weights


def plain(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a "fake_quantized" folder: floats, beside scales that nobody needs."""
    tensors = load_file(folder / "model.safetensors")
    return {name: each.float() for name, each in tensors.items() if f"{name}_scale" in tensors}


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    for name, make in SPECS.items():
        layer = quark.QLayerConfig(weight=make().to_quantization_spec())
        LLMTemplate.register_scheme(name, config=layer)
    for name in names or RECIPES:
        base, scheme, how, way = RECIPES[name]
        folder = out / f"quark-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            settings = build(bases / base, folder, scheme, how, way)
        except Exception as error:  # one recipe that fails must not end the others
            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        try:
            fake = way.get("weight_format") == "fake_quantized"
            weights = plain(folder) if fake else decoded(folder, settings)
            assert weights, "nothing quantised was found"
            (folder / "oracle").mkdir(exist_ok=True)
            save_file(weights, folder / "oracle" / "weights.safetensors")
            # By AWQ's names norms are called so, too, and finish.py would take the base model's.
            done = "WROTE" if way.get("custom_mode") == "awq" else "DEQUANTISED"
            print(f"{done} {folder} {bases / base}", flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f"NO ORACLE {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
