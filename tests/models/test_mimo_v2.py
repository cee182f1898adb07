"""MiMo-V2 under the makers' keys, and what of it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import packings
import pytest
import torch
from safetensors.torch import save_file
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import loaded, prefill_logits

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.models import checked_model

# What transformers writes -> what the makers' config.json has in its place.
MAKERS = {
    "layer_types": None,
    "mlp_layer_types": None,
    "sliding_window": None,
    "rope_parameters": None,
    "rms_norm_eps": None,
    "routed_scaling_factor": None,
    "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1, 1, 1],
    "sliding_window_size": 8,
    "rope_theta": 5000000,
    "swa_rope_theta": 10000,
    "partial_rotary_factor": 0.334,
    "layernorm_epsilon": 1e-5,
    "swa_num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_head_dim": 24,
    "swa_v_head_dim": 16,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_shared_experts": None,
}


def test_the_makers_keys_say_the_same(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """With the layers that draft, too, which are passed over."""
    small = tiny("mimo_v2_flash")
    config, parameters = read_folder(small.folder)
    parameters["model.mtp.layers.0.eh_proj.weight"] = np.full((64, 128), np.nan, np.float32)
    folder = write_folder(tmp_path, {**config, **MAKERS}, parameters)
    expected = prefill_logits(small.model, small.sequences[0])
    assert expected.tobytes() == prefill_logits(loaded(folder), small.sequences[0]).tobytes()


def test_a_layer_keeps_what_its_kind_needs(tiny: Callable[[str], Any]) -> None:
    specs = tiny("mimo_v2_flash").model.kv_cache_specs
    assert [spec.window for spec in specs] == [None, 9, 9, 9, 9, None]
    assert [spec.num_kv_heads for spec in specs] == [1, 2, 2, 2, 2, 1]
    assert {(spec.head_dim, spec.value_dim) for spec in specs} == {(24, 16)}
    assert specs[0].bytes_per_token("f16") == 2 * (24 + 16)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scoring_func": "softmax"}, UnsupportedModelError),
        ({"n_shared_experts": 1}, UnsupportedModelError),
        ({"swa_v_head_dim": 24}, UnsupportedModelError),
        ({"swa_num_key_value_heads": 3}, ModelFileError),
        ({"moe_layer_freq": [1, 1], "mlp_layer_types": None}, ModelFileError),
        ({"attention_value_scale": -1}, ModelFileError),
    ],
)
def test_what_it_does_not_compute_is_refused(
    tiny: Callable[[str], Any], tmp_path: Path, change: dict[str, Any], error: type[DureError]
) -> None:
    config, parameters = read_folder(tiny("mimo_v2_flash").folder)
    folder = write_folder(tmp_path, {**config, **change}, parameters)
    what = "KV heads" if "swa_num_key_value_heads" in change else next(iter(change))
    with pytest.raises(error, match=what):
        checked_model(open_checkpoint(folder))


def test_a_gguf_that_does_not_say_how_values_are_scaled_is_refused(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Older converters left it out, and no other key or tensor shows that it is missing."""
    write_gguf(tmp_path / "old.gguf", *read_folder(tiny("mimo_v2_flash").folder))
    found = open_checkpoint(tmp_path / "old.gguf")
    key = "mimo2.attention.value_scale"
    assert found.metadata[key] == pytest.approx(0.707)
    checked_model(found)
    metadata = {name: each for name, each in found.metadata.items() if name != key}
    with pytest.raises(ModelFileError, match=r"attention\.value_scale"):
        checked_model(replace(found, metadata=metadata))


def test_a_gguf_is_refused_for_what_is_not_computed_and_may_turn_windows_less(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf", *read_folder(tiny("mimo_v2_flash").folder))
    found = open_checkpoint(tmp_path / "tiny.gguf")
    scaled = {**found.metadata, "mimo2.attention.scale": 0.5}
    with pytest.raises(UnsupportedModelError, match=r"mimo2\.attention\.scale = 0\.5"):
        checked_model(replace(found, metadata=scaled))
    turned = {**found.metadata, "mimo2.rope.dimension_count_swa": 4}
    kinds = checked_model(replace(found, metadata=turned)).config.kinds
    assert {kind.rope.dim for kind in kinds if kind.window} == {4}
    assert {kind.rope.dim for kind in kinds if not kind.window} == {kinds[0].rope.dim} != {4}


def sliced(
    config: dict[str, Any], parameters: dict[str, np.ndarray], *, fp8: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """q, k and v as MiMo-V2.5 has them, and what they stand for apart: a slice a KV head."""
    fused: dict[str, Any] = dict(parameters)
    apart = dict(parameters)
    count = config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn"
        parts = [fused.pop(f"{prefix}.{part}_proj.weight") for part in "qkv"]
        pieces = [np.split(part, count) for part in parts]
        slices = [np.concatenate([piece[index] for piece in pieces]) for index in range(count)]
        packed = [packings.fp8(each) for each in slices] if fp8 else []
        if packed:
            for name in ("weight", "weight_scale_inv"):
                each = [tensors[name] for tensors, _ in packed]
                fused[f"{prefix}.qkv_proj.{name}"] = torch.cat(each)
            slices = [values for _, values in packed]
        else:
            fused[f"{prefix}.qkv_proj.weight"] = np.concatenate(slices)
        ends = np.cumsum([part.shape[0] // count for part in parts])[:-1]
        columns = zip(*(np.split(each, ends) for each in slices), strict=True)
        for part, rows in zip("qkv", columns, strict=True):
            apart[f"{prefix}.{part}_proj.weight"] = np.concatenate(rows)
    return fused, apart


@pytest.mark.parametrize("fp8", [False, True])
def test_queries_keys_and_values_in_slices_of_devices_are_read(
    tiny: Callable[[str], Any], tmp_path: Path, fp8: bool
) -> None:
    """As MiMo-V2.5 is published; each slice has blocks of scales of its own."""
    small = tiny("mimo_v2_flash-equal")
    config, parameters = read_folder(small.folder)
    config = {**config, "model_type": "mimo_v2", "attention_projection_layout": "fused_qkv"}
    fused, apart = sliced(config, parameters, fp8=fp8)
    plain = write_folder(tmp_path / "plain", config, apart)
    if fp8:
        settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        config = {**config, "quantization_config": settings}
    folder = tmp_path / "fused"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.as_tensor(each) for name, each in fused.items()}
    save_file(tensors, folder / "model.safetensors")
    scales = [each.shape[0] for name, each in tensors.items() if name.endswith("_scale_inv")]
    assert not fp8 or max(scales) == 4  # 144 rows of each of two slices
    expected = prefill_logits(loaded(plain), small.sequences[0])
    got = prefill_logits(loaded(folder), small.sequences[0])
    assert np.array_equal(expected, got)


def test_slices_that_the_heads_do_not_make_are_refused(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    config, parameters = read_folder(tiny("mimo_v2_flash-equal").folder)
    config = {**config, "model_type": "mimo_v2"}
    fused, _ = sliced(config, parameters, fp8=False)
    for change in ({"num_attention_heads": 2}, {"num_key_value_heads": 1}, {"head_dim": "24"}):
        folder = write_folder(tmp_path, {**config, **change}, fused)
        with pytest.raises(ModelFileError, match=r"q, k and v|the config's heads"):
            checked_model(open_checkpoint(folder))


def test_experts_in_mxfp4_are_the_values_they_stand_for(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """As V2.6 has them beside matrices in FP8; none of these is here."""
    config, parameters = read_folder(tiny("mimo_v2_flash").folder)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "store_dtype": "mxfp4"}

    def packed(name: str, values: np.ndarray) -> packings.Packed | None:
        names = ("weight", "weight_scale")
        return packings.mxfp4(values, names=names, split=False) if ".experts." in name else None

    values = packings.write_packed(tmp_path / "packed", config, parameters, settings, packed)
    plain = loaded(write_folder(tmp_path / "plain", config, values))
    model = loaded(tmp_path / "packed")
    np.testing.assert_allclose(
        prefill_logits(model, range(40)), prefill_logits(plain, range(40)), atol=1e-5
    )
    other = {**config, "quantization_config": {**settings, "mxfp4_block_size": 16}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(other))
    with pytest.raises(UnsupportedModelError, match="mxfp4_block_size = 16"):
        loaded(tmp_path / "packed")
