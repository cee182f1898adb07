"""Quantised checkpoints compute what transformers computes from the weights they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import packings
import pytest
import torch
from tiny_gguf import (
    config_of,
    fused_again,
    one_by_one,
    parameters_of,
    read_folder,
    write_folder,
)
from tiny_models import (
    MODELS,
    NUMPY,
    RECURRENT,
    PagedRun,
    furthest,
    loaded,
    oracle,
    oracle_logits,
    prefill_logits,
    random_sequences,
    reopened,
    saved,
)

from dure.errors import InvalidRequestError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.quantized_checkpoint import parameters
from dure.models import load_model

TOLERANCE = 1e-4
RECURRENT_TOLERANCE = 5e-4
TOKENS = random_sequences(40, seed=1)[0]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [32, 64]},
    "gptq": {**GPTQ, "desc_act": False},
    "gptq_v2": {**GPTQ, "desc_act": False, "checkpoint_format": "gptq_v2"},
    "gptq desc_act": {**GPTQ, "desc_act": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
    "compressed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": False}}
        },
    },
    "mxfp4": {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
    },
    "gptq of 8 bits": {**GPTQ, "bits": 8},
    "auto-round": {"quant_method": "auto-round", "bits": 2, "group_size": 32},
    "w8a8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "strategy": "channel"}}},
    },
    "w8a16 with zero points": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {"weights": {"num_bits": 8, "group_size": 32, "symmetric": False}}
        },
    },
    "nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group"}}
        },
    },
    "mxfp8": {
        "quant_method": "compressed-tensors",
        "format": "mxfp8-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    },
}


def order_of(name: str, cols: int) -> np.ndarray:
    """The order in which GPTQ took the columns: alike in what is fed the same."""
    fed = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 2, "gate_proj": 3, "up_proj": 3}
    of_expert = 7 * int(name.split(".")[-3]) if ".experts." in name and "down_proj" in name else 0
    return np.random.default_rng(fed.get(name.split(".")[-2], 4) + of_expert).permutation(cols)


PACK: dict[str, Callable[[str, np.ndarray], packings.Packed]] = {
    "fp8": lambda _, w: packings.fp8(w, block=(32, 64)),
    "gptq": lambda _, w: packings.gptq(w),
    "gptq_v2": lambda _, w: packings.gptq(w, version=2),
    "gptq desc_act": lambda n, w: packings.gptq(w, order=order_of(n, w.shape[1])),
    "awq": lambda _, w: packings.awq(w),
    "compressed": lambda _, w: packings.pack_quantized(w, symmetric=False),
    "mxfp4": lambda _, w: packings.mxfp4(w, names=("weight_packed", "weight_scale"), split=False),
    "gptq of 8 bits": lambda _, w: packings.gptq(w, bits=8),
    "auto-round": lambda _, w: packings.gptq(w, bits=2, with_indices=False),
    "w8a8": lambda _, w: packings.int_quantized(w),
    "w8a16 with zero points": lambda _, w: packings.pack_quantized(w, bits=8, symmetric=False),
    "nvfp4": lambda _, w: packings.nvfp4(w),
    "mxfp8": lambda _, w: packings.mxfp8(w),
}


def is_packed(name: str) -> bool:
    """Whether tools quantise it: the projections of the layers."""
    ends = ("_proj", "_with_mqa", ".w1", ".w2", ".w3")
    # Nobody quantises the heads' weights of an indexer; AWQ needs eight rows, and gates and betas
    # of Kimi Delta Attention's few heads have one a head.
    others = ("weights_proj", ".b_proj.", ".g_proj.")
    return name.endswith(tuple(f"{end}.weight" for end in ends)) and not any(
        other in name for other in others
    )


@lru_cache(maxsize=1)  # the methods of one model come after each other
def published(name: str) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """A tiny model, its config as transformers writes it and as its makers do, and its weights."""
    model = oracle(name)
    with TemporaryDirectory() as plain, TemporaryDirectory() as own:
        model.save_pretrained(Path(plain))
        known, arrays = read_folder(Path(plain))
        return model, known, read_folder(saved(name, model, Path(own)))[0], arrays


def filled(model: Any, values: Mapping[str, np.ndarray]) -> bool:
    """Whether the model has taken all `values`: if it calls its weights as its file does."""
    state = model.state_dict()
    given = {state[key].data_ptr() for key in values if key in state}
    if not (set(values) <= set(state) and {each.data_ptr() for each in state.values()} == given):
        return False
    with torch.no_grad():
        for key, each in values.items():
            state[key].copy_(torch.from_numpy(each).reshape(state[key].shape))
    return True


def quantised(folder: Path, name: str, method: str) -> tuple[Path, Any]:
    """A tiny model as that method's tools publish it, and transformers' with the same weights."""
    model, known, config, whole = published(name)
    fused = {each for each in whole if each.endswith(".experts.gate_up_proj")}
    arrays = one_by_one(whole)  # as tools publish experts that they quantise
    values = packings.write_packed(
        folder / "packed",
        config,
        arrays,
        SETTINGS[method],
        lambda n, w: PACK[method](n, w) if is_packed(n) else None,
    )
    if name in NUMPY:
        return folder / "packed", NUMPY[name](config, lambda n, _: values[n])
    if not fused and filled(model, values):
        return folder / "packed", model
    (folder / "plain").mkdir()
    write_folder(folder / "plain", known, fused_again(values) if fused else values)
    return folder / "packed", reopened(folder / "plain")


# Not those that also see: their text is a family's that is here. gpt-oss's experts are tensors of
# three dimensions, which these tools leave as floats: its own MXFP4 is tested in test_gpt_oss.py.
FAMILIES = sorted(
    {kind for kind, values in MODELS.values() if "vision_config" not in values}
    - {"qwen2", "qwen3_moe", "gpt_oss"}
)
# FP8 has scales of blocks, which a family that cuts or joins tensors must cut and join, too; GPTQ
# and AWQ have groups of columns, so every second family has the one, and the next the other; two
# of four among the long tests.
CASES = [
    *((name, method) for name in ("qwen2", "qwen3_moe") for method in SETTINGS),
    *((name, "fp8") for name in FAMILIES),
    *(
        pytest.param(name, ("gptq", "awq")[at % 2], marks=[pytest.mark.long] if at % 4 > 1 else [])
        for at, name in enumerate(FAMILIES)
    ),
    *((name, "gptq desc_act") for name in ("llama", "deepseek_v2")),
]


@pytest.mark.parametrize("name, method", CASES)
def test_logits_are_those_of_the_weights_that_are_stored(
    tmp_path: Path, name: str, method: str
) -> None:
    folder, model = quantised(tmp_path, name, method)
    kinds = {t.stored for n, t in parameters(open_checkpoint(folder)).items() if is_packed(n)}
    assert len(kinds) == 1
    assert kinds.isdisjoint({"F32", "F16", "BF16"})
    distance = furthest(oracle_logits(model, TOKENS), prefill_logits(loaded(folder), TOKENS))
    assert distance < (RECURRENT_TOLERANCE if name in RECURRENT else TOLERANCE)


@pytest.mark.parametrize("name, method", [("qwen3_moe", "fp8"), ("qwen2", "gptq desc_act")])
def test_pieces_and_company_change_no_bit(tmp_path: Path, name: str, method: str) -> None:
    folder, _ = quantised(tmp_path, name, method)
    sequences = random_sequences(35, 20, 5)
    models = [loaded(folder, threads=threads, exact=False) for threads in (1, 2)]
    together = PagedRun(models[0], sequences, seed=1).finish(
        [(0, 7, 5), (32, 1, 0), (1, 1, 0), (1, 11, 0), (1, 0, 0)]
    )
    for tokens, actual in zip(sequences, together, strict=True):
        for model in models:
            assert prefill_logits(model, tokens).tobytes() == actual.tobytes()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_bias_that_the_tool_added_is_left_out_if_it_is_zero(tmp_path: Path, value: float) -> None:
    config = config_of("qwen2")
    name = "model.layers.1.mlp.down_proj.bias"

    def folder(where: str, extra: dict[str, np.ndarray]) -> Path:
        arrays = parameters_of(config) | extra
        packings.write_packed(
            tmp_path / where,
            config,
            arrays,
            SETTINGS["gptq"],
            lambda n, w: packings.gptq(w) if is_packed(n) else None,
        )
        return tmp_path / where

    biased = folder("biased", {name: np.full(64, value, np.float32)})
    if value:
        with pytest.raises(UnsupportedModelError, match=r"down_proj\.bias"):
            loaded(biased)
        return
    expected = prefill_logits(loaded(folder("plain", {})), TOKENS)
    assert prefill_logits(loaded(biased), TOKENS).tobytes() == expected.tobytes()


def test_experts_whose_columns_lie_in_orders_of_their_own_need_quantising(tmp_path: Path) -> None:
    config = config_of("qwen3_moe", hidden_size=256, moe_intermediate_size=256)

    def pack(name: str, weight: np.ndarray) -> packings.Packed | None:
        if ".experts." not in name:
            return None
        order = np.random.default_rng(len(name) + int(name.split(".")[-3])).permutation(256)
        return packings.gptq(weight, order=order)

    settings = SETTINGS["gptq desc_act"]
    values = packings.write_packed(
        tmp_path / "packed", config, parameters_of(config), settings, pack
    )
    with pytest.raises(UnsupportedModelError, match="desc_act") as caught:
        loaded(tmp_path / "packed")
    assert "--quantize" in caught.value.hint
    anew = load_model(open_checkpoint(tmp_path / "packed"), quantize="q8", exact=True)
    plain = load_model(
        open_checkpoint(write_folder(tmp_path / "plain", config, values)),
        quantize="q8",
        exact=True,
    )
    assert prefill_logits(anew, TOKENS).tobytes() == prefill_logits(plain, TOKENS).tobytes()


@pytest.mark.parametrize("floats", [False, True])
def test_experts_of_several_bits_are_one_mixture_of_their_own_values(
    tmp_path: Path, floats: bool
) -> None:
    """As GPTQModel's `dynamic` and AutoRound's mixed bits have it; some may be plain floats."""
    config = config_of("qwen3_moe")

    def pack(name: str, weight: np.ndarray) -> packings.Packed | None:
        if ".experts." not in name or (floats and ".experts.2." in name):
            return None
        return packings.gptq(weight, bits=8 if ".experts.0." in name else 4)

    settings = {**GPTQ, "dynamic": {"+:.*experts.0.*": {"bits": 8}}}
    values = packings.write_packed(
        tmp_path / "packed", config, parameters_of(config), settings, pack
    )
    write_folder(tmp_path / "plain", config, values)
    packed, plain = (
        prefill_logits(loaded(tmp_path / name), TOKENS) for name in ("packed", "plain")
    )
    assert packed.tobytes() == plain.tobytes()


def test_fp8_is_quantised_from_the_values_it_stands_for(tmp_path: Path) -> None:
    config = config_of("qwen3_moe", hidden_size=256, moe_intermediate_size=256)
    values = packings.write_packed(
        tmp_path / "packed",
        config,
        parameters_of(config),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda n, w: packings.fp8(w) if is_packed(n) else None,
    )
    write_folder(tmp_path / "plain", config, values)
    both = [
        load_model(open_checkpoint(tmp_path / name), quantize="q4", exact=True)
        for name in ("packed", "plain")
    ]
    logits = [prefill_logits(model, TOKENS) for model in both]
    assert logits[0].tobytes() == logits[1].tobytes()


def test_what_is_all_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    config = config_of("qwen2")
    packings.write_packed(
        tmp_path,
        config,
        parameters_of(config),
        SETTINGS["gptq"],
        lambda _, w: packings.gptq(w) if w.ndim == 2 else None,
    )
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(InvalidRequestError, match="no matrix of floats"):
        load_model(checkpoint, quantize="q4")


def test_the_description_says_how_each_part_is_stored(tmp_path: Path) -> None:
    from dure.hub.facts import read_facts  # noqa: PLC0415
    from dure.loading.describe import describe  # noqa: PLC0415

    folder, _ = quantised(tmp_path, "qwen3_moe", "gptq")
    found = describe(open_checkpoint(folder))
    assert found.problem == ""
    assert {part: list(types) for part, types in found.parts.items()} == {
        "attention": ["GPTQ-4"],
        "embedding": ["F32"],
        "experts": ["GPTQ-4"],
        "head": ["F32"],
        "router": ["F32"],
    }
    plain, facts = read_facts(tmp_path / "plain"), read_facts(folder)
    assert (facts.parameters, facts.active_parameters) == (
        plain.parameters,
        plain.active_parameters,
    )
    assert facts.quantisation["GPTQ-4"] > 0.5
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "hqq"
    (folder / "config.json").write_text(json.dumps(config))
    assert "hqq" in describe(open_checkpoint(folder)).problem
