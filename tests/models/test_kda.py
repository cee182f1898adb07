"""Kimi-Linear and Ling-3.0 as their makers write them, and what of theirs is not run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import loaded, oracle, oracle_logits, prefill_logits

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.models import checked_model

FAMILIES = ("kimi_linear", "bailing_hybrid")


def changed(small: Any, folder: Path, **changes: Any) -> Path:
    """The tiny model with other keys in its config.json; None takes one out."""
    config, parameters = read_folder(small.folder)
    found = {key: value for key, value in {**config, **changes}.items() if value is not None}
    return write_folder(folder, found, parameters)


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_shapes_as_in_memory_are_the_same_model(
    tiny: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    """One convolution for q, k and v, forget_gate, fused experts."""
    small = tiny(name)
    oracle(name).save_pretrained(tmp_path, save_original_format=False)
    expected = prefill_logits(small.model, small.sequences[1])
    assert expected.tobytes() == prefill_logits(loaded(tmp_path), small.sequences[1]).tobytes()


def test_kimi_linear_as_published_is_the_same_model(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """The dense layer is called mlp; no keys of transformers' own; convolutions are matrices."""
    small = tiny("kimi_linear")
    config, parameters = read_folder(small.folder)
    own = ("layer_types", "mlp_layer_types", "qk_head_dim", "head_dim")
    config = {k: v for k, v in config.items() if not k.startswith("linear_") and k not in own}
    table = json.loads((small.folder / "config.json").read_text())["linear_attn_config"]
    config |= {"linear_attn_config": table, "first_k_dense_replace": 1, "mla_use_nope": True}
    config |= {"moe_router_activation_func": "sigmoid", "use_grouped_topk": True, "head_dim": 72}
    dense = "model.layers.0.block_sparse_moe."
    parameters = {
        key.replace(dense, "model.layers.0.mlp."): value[:, 0] if "_conv1d" in key else value
        for key, value in parameters.items()
    }
    expected = prefill_logits(small.model, small.sequences[1])
    actual = prefill_logits(loaded(write_folder(tmp_path, config, parameters)), small.sequences[1])
    assert expected.tobytes() == actual.tobytes()


def test_ling_as_published_is_the_same_model(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    small = tiny("bailing_hybrid")
    config, _ = read_folder(small.folder)
    renamed = {
        "num_experts_per_token": "num_experts_per_tok",
        "num_expert_group": "n_group",
        "moe_renormalize": "norm_topk_prob",
        "model_max_length": "max_position_embeddings",
    }
    changes: dict[str, Any] = {new: config[old] for old, new in renamed.items()}
    changes |= dict.fromkeys(renamed) | {"layer_types": None, "mlp_layer_types": None}
    changes |= {"linear_head_dim": None, "linear_num_heads": None, "linear_conv_kernel_dim": None}
    changes |= {"head_dim": 24, "architectures": ["BailingMoeV3ForCausalLM"]}
    changes |= {"expert_swiglu_limit_list": None, "share_expert_swiglu_limit_list": [0] * 6}
    changes |= {"no_kda_lora": True, "partial_rotary_factor": 0.5, "score_function": "sigmoid"}
    changes |= {"rope_interleave": True, "topk_method": "noaux_tc", "use_bias": False}
    expected = prefill_logits(small.model, small.sequences[1])
    actual = prefill_logits(loaded(changed(small, tmp_path, **changes)), small.sequences[1])
    assert expected.tobytes() == actual.tobytes()


def test_the_layers_after_the_last_whole_group_attend(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """As in the makers' code: seven layers in groups of three, so that the seventh attends."""
    small = tiny("bailing_hybrid")
    config, parameters = read_folder(small.folder)
    seventh = {
        key.replace("layers.5.", "layers.6."): value
        for key, value in parameters.items()
        if "layers.5." in key
    }
    config |= {"num_hidden_layers": 7}
    del config["layer_types"], config["mlp_layer_types"]
    model: Any = loaded(write_folder(tmp_path, config, parameters | seventh))
    assert list(model.config.recurrent) == [True, True, False] * 2 + [False]


def test_a_gguf_of_lings_is_refused_for_what_is_not_computed(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf", *read_folder(tiny("bailing_hybrid").folder))
    found = open_checkpoint(tmp_path / "tiny.gguf")
    checked_model(found)
    scaled = {**found.metadata, "bailingmoe3.attention.scale": 0.5}
    with pytest.raises(UnsupportedModelError, match=r"attention\.scale = 0\.5"):
        checked_model(replace(found, metadata=scaled))


@pytest.mark.parametrize("gguf", [False, True], ids=["safetensors", "gguf"])
def test_lings_layer_for_drafting_is_passed_over(
    tiny: Callable[[str], Any], tmp_path: Path, gguf: bool
) -> None:
    small = tiny("bailing_hybrid")
    config, parameters = read_folder(small.folder)
    assert config["num_nextn_predict_layers"] == 1
    extra = {
        key.replace("layers.5.", "layers.6."): np.full_like(value, np.nan)
        for key, value in parameters.items()
        if "layers.5." in key and not (gguf and "experts" in key)
    }
    names = ["blk.6.nextn.eh_proj", "blk.6.nextn.enorm", "blk.6.layer_output_norm"]
    if not gguf:
        names = [f"model.layers.6.{part}" for part in ("eh_proj", "enorm", "final_layernorm")]
    extra |= {f"{name}.weight": np.full((64, 128), np.nan, np.float32) for name in names}
    expected = prefill_logits(small.model, small.sequences[1])
    path = tmp_path / "model"
    if gguf:
        for key in ("layer_types", "mlp_layer_types"):
            config[key] = [*config[key], config[key][-1]]
        config["num_hidden_layers"] = 7
        write_gguf(path, config, parameters | extra)
        assert abs(expected - prefill_logits(loaded(path), small.sequences[1])).max() < 1e-5
        return
    actual = prefill_logits(
        loaded(write_folder(path, config, parameters | extra)), small.sequences[1]
    )
    assert expected.tobytes() == actual.tobytes()


def test_ling_2_5_is_refused_by_its_name(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    named = changed(tiny("bailing_hybrid"), tmp_path, architectures=["BailingMoeV2_5ForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="BailingMoeV2_5ForCausalLM"):
        loaded(named)


@pytest.mark.parametrize(
    ("table", "refused"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, True),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, False),
        ({"rope_type": "linear", "factor": 4.0}, False),
        ({"rope_type": "default"}, False),
    ],
)
def test_lings_scaled_rotation_must_name_its_first_context(
    tiny: Callable[[str], Any], tmp_path: Path, table: dict[str, Any], refused: bool
) -> None:
    """Without it, transformers takes its class's, and not the file's model_max_length."""
    folder = changed(tiny("bailing_hybrid"), tmp_path, rope_parameters=table)
    with pytest.raises(UnsupportedModelError, match="yarn") if refused else nullcontext():
        loaded(folder)


def test_ling_rotates_neighbours(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="rope_interleave"):
        loaded(changed(tiny("bailing_hybrid"), tmp_path, rope_interleave=False))


# The first layer is dense, and has no limit whatever is listed; one more layer drafts.
LIMITS = {
    "expert_swiglu_limit_list": [0.1, 0, 0.2, None, 0.1, 0, 7.0],
    "share_expert_swiglu_limit_list": [0.1, 0.3, 0.0, 0, 0.2],
}


def limit_experts(model: Any) -> None:
    """Give a Ling-3.0 of transformers the limits, which its class passes over."""
    import torch  # noqa: PLC0415

    def inner(gate: Any, up: Any, most: float) -> Any:
        return torch.nn.functional.silu(gate).clamp(max=most) * up.clamp(-most, most)

    def routed(experts: Any, most: float) -> Callable[..., Any]:
        def forward(x: Any, ids: Any, shares: Any) -> Any:
            out = torch.zeros_like(x)
            for row, chosen in enumerate(ids.tolist()):
                for place, expert in enumerate(chosen):
                    gate, up = (experts.gate_up_proj[expert] @ x[row]).chunk(2)
                    made = experts.down_proj[expert] @ inner(gate, up, most)
                    out[row] += shares[row, place] * made
            return out

        return forward

    def shared(mlp: Any, most: float) -> Callable[[Any], Any]:
        return lambda x: mlp.down_proj(inner(mlp.gate_proj(x), mlp.up_proj(x), most))

    for layer, most in zip(model.model.layers, LIMITS["expert_swiglu_limit_list"], strict=False):
        if most and hasattr(layer.mlp, "experts"):
            layer.mlp.experts.forward = routed(layer.mlp.experts, most)
    listed = LIMITS["share_expert_swiglu_limit_list"]
    for layer, most in zip(model.model.layers, listed, strict=False):
        if most and hasattr(layer.mlp, "shared_experts"):
            layer.mlp.shared_experts.forward = shared(layer.mlp.shared_experts, most)


@pytest.mark.parametrize("gguf", [False, True], ids=["safetensors", "gguf"])
def test_what_lings_experts_compute_has_a_limit(
    tiny: Callable[[str], Any], tmp_path: Path, gguf: bool
) -> None:
    small, tokens = tiny("bailing_hybrid"), tiny("bailing_hybrid").sequences[1]
    path = changed(small, tmp_path / "folder", **LIMITS)
    model = oracle("bailing_hybrid")
    free = oracle_logits(model, tokens)
    limit_experts(model)
    expected = oracle_logits(model, tokens)
    assert abs(expected - free).max() > 0.1
    if gguf:
        config, parameters = read_folder(small.folder)
        write_gguf(tmp_path / "out.gguf", {**config, **LIMITS}, parameters)
        path = tmp_path / "out.gguf"
    assert abs(expected - prefill_logits(loaded(path), tokens)).max() < 1e-4


@pytest.mark.parametrize("limit", [-1, True, "7", float("inf")])
def test_a_limit_that_is_none_is_refused(
    tiny: Callable[[str], Any], tmp_path: Path, limit: Any
) -> None:
    key = "expert_swiglu_limit_list"
    with pytest.raises(ModelFileError, match=key):
        loaded(changed(tiny("bailing_hybrid"), tmp_path, **{key: [0, 0, limit]}))


@pytest.mark.parametrize(
    "table",
    [
        {"full_attn_layers": [4], "kda_layers": [1, 2, 3]},
        {"full_attn_layers": [4, 5], "kda_layers": [1, 2, 3, 5]},
        {"full_attn_layers": [0], "kda_layers": [1, 2, 3, 4]},
        {"full_attn_layers": [4], "kda_layers": "all"},
    ],
)
def test_lists_that_do_not_name_each_layer_once_are_refused(
    tiny: Callable[[str], Any], tmp_path: Path, table: dict[str, Any]
) -> None:
    small = tiny("kimi_linear")
    folder = changed(small, tmp_path, linear_attn_config=table, layer_types=None)
    with pytest.raises(ModelFileError, match="kda_layers"):
        loaded(folder)
