"""Save the base models as transformers itself quantises them: saves.py BASE_FOLDER OUT [NAME…].

bitsandbytes, torchao, HQQ and Quanto on a CPU, by `from_pretrained(quantization_config=…)` and
`save_pretrained`. The oracle is the loaded model's own layers: their dequantisation, or, where a
library has none, their answer to the identity matrix.
"""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finish
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    HqqConfig,
    QuantoConfig,
    TorchAoConfig,
)

DENSE, MOE = "qwen2", "qwen3_moe"


def nf4(kind: str, double: bool, **more: Any) -> BitsAndBytesConfig:
    """Describe bitsandbytes' four bits."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
        **more,
    )


def ao(name: str, **more: Any) -> Callable[[], TorchAoConfig]:
    """Describe one of torchao's configurations."""

    def make() -> TorchAoConfig:
        import torchao.quantization as q

        return TorchAoConfig(getattr(q, name)(**more))

    return make


def grouped(size: int) -> TorchAoConfig:
    """Describe int8 weights with a scale for each group."""
    import torchao.quantization as q

    return TorchAoConfig(q.Int8WeightOnlyConfig(granularity=q.PerGroup(size)))


RECIPES: dict[str, tuple[str, Callable[[], Any]]] = {
    "bnb-nf4": (DENSE, lambda: nf4("nf4", False)),
    "bnb-nf4-double": (DENSE, lambda: nf4("nf4", True)),
    "bnb-fp4": (DENSE, lambda: nf4("fp4", False)),
    "bnb-nf4-moe": (MOE, lambda: nf4("nf4", True)),
    "bnb-int8": (DENSE, lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bnb-int8-moe": (MOE, lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bnb-nf4-skip": (
        DENSE,
        lambda: nf4("nf4", False, llm_int8_skip_modules=["lm_head", "down_proj"]),
    ),
    "torchao-int8wo": (DENSE, ao("Int8WeightOnlyConfig")),
    "torchao-int8wo-group": (DENSE, lambda: grouped(64)),
    "torchao-int8dyn": (DENSE, ao("Int8DynamicActivationInt8WeightConfig")),
    "torchao-int4wo": (DENSE, ao("Int4WeightOnlyConfig", group_size=128)),
    "torchao-int4wo-plain": (
        DENSE,
        ao("Int4WeightOnlyConfig", group_size=128, int4_packing_format="plain_int32"),
    ),
    "torchao-int4wo-opaque": (
        DENSE,
        ao("Int4WeightOnlyConfig", group_size=128, int4_packing_format="opaque"),
    ),
    "torchao-int8dyn-int4": (DENSE, ao("Int8DynamicActivationIntxWeightConfig")),
    "torchao-float8wo": (DENSE, ao("Float8WeightOnlyConfig")),
    "torchao-float8dyn": (DENSE, ao("Float8DynamicActivationFloat8WeightConfig")),
    "torchao-intx4": (DENSE, ao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    "torchao-int8wo-moe": (MOE, ao("Int8WeightOnlyConfig")),
    "hqq-4bit": (DENSE, lambda: HqqConfig(nbits=4, group_size=64, axis=1)),
    "hqq-8bit": (DENSE, lambda: HqqConfig(nbits=8, group_size=64, axis=1)),
    "hqq-3bit": (DENSE, lambda: HqqConfig(nbits=3, group_size=64, axis=1)),
    "hqq-2bit": (DENSE, lambda: HqqConfig(nbits=2, group_size=32, axis=1)),
    "hqq-4bit-axis0": (DENSE, lambda: HqqConfig(nbits=4, group_size=64, axis=0)),
    "quanto-int8": (DENSE, lambda: QuantoConfig(weights="int8")),
    "quanto-int4": (DENSE, lambda: QuantoConfig(weights="int4")),
}


def values(name: str, module: torch.nn.Module) -> torch.Tensor | None:
    """Return one layer's weights in float32, or None where they are plain floats."""
    kind = type(module).__name__
    if kind == "Linear4bit":
        from bitsandbytes import functional

        state = module.weight.quant_state
        state.dtype = torch.float32
        return (
            functional.dequantize_4bit(module.weight.data, state)
            .float()
            .reshape(module.out_features, module.in_features)
        )
    if kind == "Linear8bitLt":
        scale = getattr(module.weight, "SCB", None)
        scale = module.state.SCB if scale is None else scale
        return module.weight.data.float() * scale.float()[:, None] / 127
    if kind == "HQQLinear":
        return module.dequantize().float()
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(weight, "qdata"):
        return None
    tool = weight.dequantize().float()
    codes, scale = weight.qdata.float(), weight.scale.float()
    columns = codes.shape[1] // scale.shape[1]
    zero = getattr(weight, "zero_point", None)
    if zero is not None:
        codes = codes - zero.float().repeat_interleave(columns, 1)
    exact = codes * scale.repeat_interleave(columns, 1)  # the tool rounds this to bfloat16
    assert ((exact - tool).abs() <= exact.abs() / 128 + 1e-7).all(), (exact - tool).abs().max()
    return exact


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    for name in names or RECIPES:
        base, make = RECIPES[name]
        folder = out / f"transformers-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                bases / base, quantization_config=make(), dtype=torch.bfloat16, device_map="cpu"
            )
            model.save_pretrained(folder)
            for extra in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(bases / base / extra, folder)
        except Exception as error:  # one recipe that fails must not end the others
            traceback.print_exc()
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        try:
            loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
            weights = {}
            for path, module in loaded.named_modules():
                got = values(path, module)
                if got is not None:
                    weights[f"{path}.weight"] = got.detach().contiguous()
            assert weights, "nothing quantised was found"
            (folder / "oracle").mkdir(exist_ok=True)
            save_file(weights, folder / "oracle" / "weights.safetensors")
            finish.main(folder, bases / base)
        except Exception as error:
            traceback.print_exc()
            print(f"NO ORACLE {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    print("transformers", transformers.__version__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
