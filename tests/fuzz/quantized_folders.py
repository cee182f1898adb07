"""Sound folders of every quantised layout that dure reads, from the tests of those layouts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import packings
import test_mlx
import test_saved_layouts as saved
import torch
from folders import folder
from packed_folders import NAME, weights
from test_quantized_checkpoint import CASES

Files = dict[str, bytes]


def build(scratch: Path, *, small: bool) -> dict[str, Files]:
    """Each layout's files, by its name; small: not all variants of those with many."""
    made: dict[str, Files] = {}

    @contextmanager
    def named(name: str) -> Iterator[Path]:
        path = scratch / "layout"
        yield path
        made[name] = {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}
        shutil.rmtree(path)

    cases = list(CASES.items())
    for name, (settings, pack, shape, _) in cases[:: 6 if small else 1]:
        with named(name) as path:
            weight = weights(*shape)
            packings.write_packed(
                path, {}, {NAME: weight}, settings, lambda _, w, pack=pack: pack(w)
            )
    for name, (config, tensors) in _saved().items():
        with named(name) as path:
            folder(path, tensors, config)
    _torchao(named)
    _ascend(named)
    with named("modelopt's own file") as path:
        tensors = {saved.W: saved.int8(4, 64), f"{saved.P}.weight_scale": saved.scales(4)}
        folder(path, tensors, {})
        (path / "hf_quant_config.json").write_text(
            '{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W8A16"}}'
        )
    _paddle(named)
    return made


def _saved() -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    P, W = saved.P, saved.W  # noqa: N806
    found: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {}
    for double in (False, True):
        config = saved.method("bitsandbytes", load_in_4bit=True)
        found[f"bitsandbytes nf4 {double}"] = (config, saved.table(double=double)[0])
    flag = torch.tensor(0, dtype=torch.uint8)
    found["bitsandbytes int8"] = (
        saved.method("bitsandbytes", load_in_8bit=True),
        {W: saved.int8(5, 96), f"{P}.SCB": saved.scales(5), f"{P}.weight_format": flag},
    )
    for bits, axis in ((8, 1), (4, 1), (3, 1), (2, 1), (1, 1), (4, 0)):
        found[f"hqq {bits} {axis}"] = (saved.method("hqq"), saved.hqq(bits, axis)[0])
    codes = saved.rng().integers(0, 255, (4, 32)).astype("uint8")
    found["modelopt nvfp4"] = (
        saved.MODELOPT,
        {
            W: torch.from_numpy(codes),
            f"{P}.weight_scale": torch.rand(4, 4).to(torch.float8_e4m3fn),
            f"{P}.weight_scale_2": torch.tensor(0.3),
        },
    )
    floats = torch.randn(256, 128).to(torch.float8_e4m3fn)
    found["modelopt fp8"] = (
        saved.MODELOPT,
        {W: floats, f"{P}.weight_scale": saved.scales(2, 1, 1, 1)},
    )
    found["modelopt int4"] = (
        saved.MODELOPT,
        {
            W: torch.from_numpy(saved.rng().integers(0, 255, (3, 128)).astype("uint8")),
            f"{P}.weight_scale": saved.scales(6, 1),
            f"{P}.pre_quant_scale": torch.linspace(0.5, 2, 128).bfloat16(),
        },
    )
    for bits in (2, 3, 4, 5, 6, 8):
        tensors, _ = test_mlx.affine(test_mlx.Q, (7, 256), bits, 64)
        found[f"mlx {bits}"] = ({"quantization": {"group_size": 64, "bits": bits}}, tensors)
    stacked, _ = test_mlx.affine("model.layers.0.mlp.switch_mlp.up_proj", (3, 8, 64), 4, 64)
    note = {"model.layers.0.mlp.gate": {"group_size": 64, "bits": 8}}
    found["mlx experts"] = (
        {"quantization": {"group_size": 64, "bits": 4, "mode": "affine", **note}},
        stacked,
    )
    powers = torch.randint(110, 140, (4, 4), dtype=torch.uint8)
    words = torch.randint(0, 2**31 - 1, (4, 16), dtype=torch.int32).view(torch.uint32)
    found["mlx mxfp4"] = (
        {"quantization": {"mode": "mxfp4"}},
        {f"{test_mlx.Q}.weight": words, f"{test_mlx.Q}.scales": powers},
    )
    return found


def _torchao(named: Any) -> None:
    parts = {"qdata": saved.int8(4, 96), "scale": saved.scales(4, 3)}
    parts["zero_point"] = torch.zeros(4, 3, dtype=torch.int8)
    with named("torchao int8") as path:
        saved.torchao(path, "Int8Tensor", {"block_size": [1, 32]}, parts)
    four = torch.from_numpy(saved.rng().integers(-8, 8, (4, 64)).astype("int8"))
    target = {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}}
    with named("torchao int4") as path:
        given = {"qdata": four, "scale": saved.scales(4, 2).bfloat16()}
        saved.torchao(path, "IntxUnpackedToInt8Tensor", target, given)


def _ascend(named: Any) -> None:
    P, W = saved.P, saved.W  # noqa: N806
    tensors = {
        W: saved.int8(4, 64),
        f"{P}.deq_scale": saved.scales(4),
        f"{P}.input_scale": torch.tensor([0.03]),
        f"{P}.input_offset": torch.tensor([3.0]),
        f"{P}.quant_bias": torch.arange(4, dtype=torch.int32),
        f"{P}.bias": torch.arange(4.0),
    }
    with named("ascend static") as path:
        saved.ascend(path, tensors, dict.fromkeys(tensors, "W8A8") | {f"{P}.bias": "FLOAT"})
    for kind in ("W8A8_DYNAMIC", "W8A16", "W4A8_DYNAMIC"):
        tensors = {W: saved.int8(4, 64), f"{P}.weight_scale": saved.scales(4, 1)}
        tensors[f"{P}.weight_offset"] = torch.ones(4, 1)
        if kind == "W4A8_DYNAMIC":
            tensors = {name: part.repeat(2, 1) for name, part in tensors.items()}
            tensors[W] = saved.int8(4, 64)
        with named(f"ascend {kind}") as path:
            saved.ascend(path, tensors, dict.fromkeys(tensors, kind))


def _paddle(named: Any) -> None:
    layer = "model.layers.0"
    tensors = {
        f"{layer}.self_attn.qkv_proj.weight": torch.randn(64, 128),
        f"{layer}.self_attn.o_proj.weight": torch.randn(64, 64),
        f"{layer}.mlp.up_gate_proj.weight": torch.randn(64, 192),
        f"{layer}.mlp.down_proj.weight": torch.randn(64, 96),
    }
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    with named("paddle") as path:
        folder(path, tensors, {"model_type": "ernie4_5", **sizes})
