"""Quantise the base models with Ascend's msModelSlim on a CPU.

msmodelslim_folders.py BASE OUT [NAME…]

`msmodelslim quant --config_path` is given a recipe of its own; the folder is what it saves. The
oracle decodes the file by the description beside it (int8 x scale, two int4 in a byte).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DENSE, MOE = ("qwen3", "Qwen3-14B"), ("qwen3_moe", "Qwen3-30B")
SMOOTH = """
    - type: "flex_smooth_quant"
      enable_subgraph_type: ["norm-linear", "ov"]
      include: ["*"]"""


def act(scope: str, symmetric: bool) -> str:
    """Describe the activations."""
    return f'{{scope: "{scope}", dtype: "int8", symmetric: {symmetric}, method: "minmax"}}'


def weight(dtype: str, more: str = "") -> str:
    """Describe the weights."""
    return f'{{scope: "per_channel", dtype: "{dtype}", symmetric: True, method: "minmax"{more}}}'


def linear(acts: str, weights: str, include: str, exclude: str = '"*mlp.gate", "lm_head"') -> str:
    """Describe one kind of layer."""
    return f"""
    - type: "linear_quant"
      qconfig: {{act: {acts}, weight: {weights}}}
      include: [{include}]
      exclude: [{exclude}]"""


RECIPES: dict[str, tuple[tuple[str, str], str]] = {
    "w8a8-dynamic": (DENSE, linear(act("per_token", True), weight("int8"), '"*"')),
    "w8a8": (DENSE, linear(act("per_tensor", False), weight("int8"), '"*"')),
    "w8a8-smooth": (DENSE, SMOOTH + linear(act("per_tensor", False), weight("int8"), '"*"')),
    "w8a8-mixed-moe": (
        MOE,
        linear(act("per_tensor", False), weight("int8"), '"*self_attn*"')
        + linear(act("per_token", True), weight("int8"), '"*mlp*"'),
    ),
    "w4a8-moe": (
        MOE,
        linear(act("per_token", True), weight("int8"), '"*self_attn*"')
        + linear(act("per_token", True), weight("int4"), '"*mlp.experts*"'),
    ),
    "w4a8-group-moe": (
        MOE,
        linear(act("per_token", True), weight("int8"), '"*self_attn*"')
        + linear(
            act("per_token", True),
            weight("int4", ", ext: {group_size: 64}").replace("per_channel", "per_group"),
            '"*mlp.experts*"',
        ),
    ),
    "w4a8": (DENSE, linear(act("per_token", True), weight("int4"), '"*"')),
}


def recipe(name: str, kind: str, process: str) -> str:
    """Return the YAML of one recipe."""
    return f"""apiversion: modelslim_v1
metadata:
  config_id: tiny-{name}
  score: 90
  verified_model_types: ["{kind}"]
  label: {{w_bit: 8, a_bit: 8, is_sparse: False, kv_cache: False}}
spec:
  dataset: tiny_calib.jsonl
  process:{process}
  save:
    - type: "ascendv1_saver"
      part_file_size: 4
"""


def write_calibration() -> None:
    """Put four short texts beside the tool's own calibration texts (128 long ones take minutes)."""
    import msmodelslim

    folder = Path(msmodelslim.__file__).parent / "lab_calib"
    rows = [json.loads(line) for line in (folder / "mix_calib.jsonl").read_text().splitlines()[:4]]
    short = [{k: v[:200] if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    (folder / "tiny_calib.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))


INT4 = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1], dtype=torch.float32)


def scale_of(number: torch.Tensor) -> torch.Tensor:
    """Return deq_scale as float32; an int64 holds the bits of one."""
    return (
        number.to(torch.int32).view(torch.float32)
        if number.dtype == torch.int64
        else number.float()
    )


def write_oracle(folder: Path) -> None:
    """Write the float32 weights that the folder stands for."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    kinds = json.loads((folder / "quant_model_description.json").read_text())
    weights = {}
    for name, kind in kinds.items():
        if not name.endswith(".weight") or kind == "FLOAT":
            continue
        module, codes = name.removesuffix(".weight"), tensors[name]
        if kind.startswith("W4A8"):  # two rows in a byte, the even one low
            pairs = torch.stack([codes & 15, (codes >> 4) & 15], 1).flatten(0, 1)
            values = INT4[pairs.long()]
        else:
            values = codes.float()
        if f"{module}.weight_scale" in tensors:
            scale = tensors[f"{module}.weight_scale"].float()
        else:
            scale = (
                scale_of(tensors[f"{module}.deq_scale"]) / tensors[f"{module}.input_scale"].float()
            )[:, None]
        groups = values.shape[1] // scale.shape[1]
        weights[name] = (values * scale.repeat_interleave(groups, 1)).contiguous()
    (folder / "oracle").mkdir(exist_ok=True)
    save_file(weights, folder / "oracle" / "weights.safetensors")


def main(bases: Path, out: Path, names: list[str]) -> None:
    """Build every recipe, or those named."""
    write_calibration()
    for name in names or RECIPES:
        (base, kind), process = RECIPES[name]
        folder = out / f"msmodelslim-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        config = out / f"msmodelslim-{name}.yaml"
        config.write_text(recipe(name, kind, process))
        config.chmod(0o600)
        done = subprocess.run(
            [
                Path(sys.executable).parent / "msmodelslim",
                "quant",
                "--model_type",
                kind,
                "--model_path",
                (bases / base).resolve(),
                "--save_path",
                folder.resolve(),
                "--device",
                "cpu",
                "--config_path",
                config,
                "--trust_remote_code",
                "False",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        print(name, done.returncode, done.stdout[-1500:], done.stderr[-2500:])
        if done.returncode == 0:
            write_oracle(folder)
            print(f"DEQUANTISED {folder} {bases / base}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
