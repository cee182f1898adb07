"""Projections that a file has in one tensor are cut into those that a model asks for."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from folders import folder, values

from dure.errors import ModelFileError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.quantized_checkpoint import parameters
from dure.formats.tensors import TensorInfo

HEADS, KV_HEADS, SIZE, HIDDEN, WIDE = 4, 2, 8, 24, 40
ERNIE = {
    "model_type": "ernie4_5",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": SIZE,
}


@pytest.mark.parametrize("native", [False, True])
def test_ernie_of_paddleformers_is_that_of_transformers(tmp_path: Path, native: bool) -> None:
    layer = "model.layers.0"
    shapes = {
        "self_attn.q_proj": (HEADS * SIZE, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * SIZE, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * SIZE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * SIZE),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    plain = {f"{layer}.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    plain |= {
        f"{layer}.self_attn.{x}_proj.bias": torch.randn(rows)
        for x, rows in (("q", HEADS * SIZE), ("k", KV_HEADS * SIZE), ("v", KV_HEADS * SIZE))
    }

    def by_group(suffix: str) -> torch.Tensor:
        each = HEADS // KV_HEADS
        q, k, v = (plain[f"{layer}.self_attn.{x}_proj.{suffix}"] for x in "qkv")
        rows: list[torch.Tensor] = []
        for group in range(KV_HEADS):
            rows += [q[group * each * SIZE : (group + 1) * each * SIZE]]
            rows += [k[group * SIZE : (group + 1) * SIZE], v[group * SIZE : (group + 1) * SIZE]]
        return torch.cat(rows)

    gate, up = (plain[f"{layer}.mlp.{x}_proj.weight"] for x in ("gate", "up"))
    o, down = (plain[f"{layer}.{x}_proj.weight"] for x in ("self_attn.o", "mlp.down"))
    stored = {
        f"{layer}.self_attn.qkv_proj.weight": by_group("weight").T,
        f"{layer}.self_attn.qkv_proj.bias": by_group("bias"),
        f"{layer}.mlp.up_gate_proj.weight": torch.cat([gate, up]).T,
        f"{layer}.self_attn.o_proj.weight": o.T if native else o,
        f"{layer}.mlp.down_proj.weight": down.T if native else down,
    }
    opened = folder(tmp_path, stored, ERNIE)
    assert set(parameters(opened)) == set(plain)
    for name, tensor in plain.items():
        if tensor.ndim == 1:
            found = parameters(opened)[name].read().view(np.float32).reshape(-1)
        else:
            found = values(opened, name)
        np.testing.assert_array_equal(found, tensor.numpy())


def _gguf(path: Path, rows: int, *, recurrent: bool = False, raw: bool = False) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    weight = np.arange(rows * 64, dtype=np.float32).reshape(rows, 64)
    if raw:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(
            "blk.0.attn_qkv.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind
        )
    else:
        writer.add_tensor("blk.0.attn_qkv.weight", weight)
    writer.add_tensor("blk.0.attn_qkv.bias", np.arange(rows, dtype=np.float32))
    if recurrent:
        writer.add_tensor("blk.0.ssm_a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("raw", [False, True])
def test_a_fused_attn_qkv_of_a_gguf_is_cut_by_rows(tmp_path: Path, raw: bool) -> None:
    opened = open_checkpoint(_gguf(tmp_path / "a.gguf", 128, raw=raw))
    whole = opened.tensors["blk.0.attn_qkv.weight"].read()
    found = parameters(opened)
    assert {n: t.shape for n, t in found.items()} == {
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (32, 64),
        "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_q.bias": (64,),
        "blk.0.attn_k.bias": (32,),
        "blk.0.attn_v.bias": (32,),
    }
    parts = [found[f"blk.0.attn_{x}.weight"].read() for x in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    biases = [found[f"blk.0.attn_{x}.bias"].read().view(np.float32)[0] for x in "qkv"]
    np.testing.assert_array_equal(np.concatenate(biases), np.arange(128))


def test_a_recurrent_layer_keeps_its_attn_qkv(tmp_path: Path) -> None:
    found = parameters(open_checkpoint(_gguf(tmp_path / "a.gguf", 128, recurrent=True)))
    assert isinstance(found["blk.0.attn_qkv.weight"], TensorInfo)


@pytest.mark.parametrize(
    ("architecture", "keys", "others", "rows"),
    [
        # In Gemma 4's layers with a window heads are narrower.
        (
            "gemma4",
            {"key_length": 32, "value_length": 32, "key_length_swa": 16, "value_length_swa": 16},
            (),
            {"0": (64, 32, 32), "1": (128, 64, 64)},
        ),
        # Qwen's q has its gates; layers of Kimi Delta Attention have a head of k and v for each.
        ("qwen35", {"key_length": 24}, (), {"0": (192, 48, 48)}),
        ("kimi-linear", {}, ("ssm_conv1d_q.weight", "ssm_a"), {"0": (40, 40, 40)}),
    ],
)
def test_a_fused_tensor_is_cut_where_the_family_s_heads_end(
    tmp_path: Path,
    architecture: str,
    keys: dict[str, int],
    others: tuple[str, ...],
    rows: dict[str, tuple[int, int, int]],
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", architecture)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_sliding_window_pattern([True, False])
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.attention.{key}", value)
    for other in others:
        writer.add_tensor(f"blk.0.{other}", np.zeros(4, np.float32))
    for layer, sizes in rows.items():
        weight = np.arange(sum(sizes) * 64, dtype=np.float32).reshape(-1, 64)
        writer.add_tensor(f"blk.{layer}.attn_qkv.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = parameters(open_checkpoint(tmp_path / "a.gguf"))
    for layer, sizes in rows.items():
        cut = [found[f"blk.{layer}.attn_{part}.weight"].shape[0] for part in "qkv"]
        assert tuple(cut) == sizes


def test_a_fused_tensor_of_other_rows_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="120 rows, and the file's heads make 128"):
        parameters(open_checkpoint(_gguf(tmp_path / "a.gguf", 120)))


@pytest.mark.parametrize("columns", [0, 1])
def test_a_fused_projection_without_columns_for_its_parts_is_refused(
    tmp_path: Path, columns: int
) -> None:
    tensors = {"model.layers.0.mlp.up_gate_proj.weight": torch.zeros(64, columns)}
    opened = folder(tmp_path, tensors, {"model_type": "ernie4_5", "hidden_size": 64})
    with pytest.raises(ModelFileError, match="up_gate_proj"):
        parameters(opened)


@pytest.mark.parametrize("heads", [1, 3 << 40])
def test_heads_that_a_fused_projection_does_not_have_are_refused(
    tmp_path: Path, heads: int
) -> None:
    tensors = {"model.layers.0.self_attn.qkv_proj.weight": torch.zeros(8, 48)}
    config = {"model_type": "ernie4_5", "num_attention_heads": heads, "head_dim": 8}
    with pytest.raises(ModelFileError, match="heads"):
        parameters(folder(tmp_path, tensors, {**config, "hidden_size": 8}))


@pytest.mark.parametrize("name", ["mlp.up_gate_proj", "self_attn.qkv_proj", "self_attn.o_proj"])
def test_a_projection_that_is_one_number_is_refused(tmp_path: Path, name: str) -> None:
    tensors = {
        "model.layers.0.mlp.down_proj.weight": torch.zeros(4, 8),  # of Paddle's own format
        f"model.layers.0.{name}.weight": torch.tensor(1.0),
    }
    if name.endswith("o_proj"):
        tensors["model.layers.0.mlp.up_gate_proj.weight"] = torch.zeros(8, 8)
    config = {"model_type": "ernie4_5", "num_attention_heads": 1, "head_dim": 8, "hidden_size": 8}
    with pytest.raises(ModelFileError):
        parameters(folder(tmp_path, tensors, config))
