"""A folder becomes a GGUF that computes the same, here and in llama.cpp; or it is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import packings
import pytest
from tiny_configs import MODELS
from tiny_configs.families_2025 import LINEAR, LLAMA3, YARN
from tiny_configs.gemma import GEMMA3, ropes
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_gguf_recurrent import has_moved_heads
from tiny_models import (
    VOCAB_SIZE,
    furthest,
    loaded,
    oracle,
    prefill_logits,
    random_sequences,
    saved,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dure.convert.gguf import convert
from dure.convert.recipes import recipe_named
from dure.convert.requantize import requantize
from dure.errors import InvalidRequestError, ModelFileError, TokenizerError, UnsupportedModelError
from dure.formats import gguf_writer
from dure.formats.checkpoint import open_checkpoint
from dure.formats.imatrix import Importance, ImportanceMatrix
from dure.kernels.dequantize import dequantize
from dure.text import tokenizer as ours

# llama.cpp wants an end of text, and no more of a vocabulary than the model's.
END = "<|im_end|>"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
CARD = "---\nlicense: mit\nbase_model:\n- Maker/Base\n---\nA model.\n"
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "moe_intermediate_size": 256}
PACKED: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], packings.Packed]]] = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, packings.fp8),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, packings.gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, packings.awq),
}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
SLIDING = {"sliding_attention": YARN, "full_attention": YARN}
OTHER_BASE, SAME_BASE = (
    {"sliding_attention": {"rope_type": "default", "rope_theta": theta}, "full_attention": YARN}
    for theta in (3000.0, 10000.0)
)
TOKENS = random_sequences(40, seed=1)[0]
CONVERTED = [
    "llama",
    "llama-tied",
    "llama-bias-llama3",
    "llama-linear",
    "qwen2",
    "qwen2-tied",
    "qwen2-yarn",
    "qwen3",
    "qwen3_moe",
    "qwen2_moe",
    "ernie4_5",
    "hunyuan_v1_dense",
    "deepseek_v2-queries",
    "deepseek_v3",
    "ernie4_5_moe",
    "ernie4_5_moe-unshared",
    "hunyuan_v1_moe",
    "minimax_m2",
    "pangu_embedded",
    "qwen3_next",
    "qwen3_next-mixed",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5_text",
    "qwen3_5",
    "qwen3_5-odd",
    "qwen3_5-thirds",
    "qwen3_5_moe_text",
    "qwen3_5_moe-odd",
    "qwen3_5_moe-one",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "gemma4_unified_text",
    "glm4_moe",
    "glm4_moe-air",
    "glm4_moe_lite",
    "dots1",
    "solar_open",
    "kimi_linear",
    "bailing_hybrid",
    "bailing_moe_v2",
    "bailing_moe_v2-groups",
    "hy_v3",
    "mimo",
    "gpt_oss",
    "mimo_v2_flash",
    "mimo_v2_flash-wide",
    "mimo_v2_flash-equal",
    "mimo_v2_flash-dense",
    "deepseek_v32",
    "glm_moe_dsa",
    "mistral",
    "mixtral",
    "ministral3",
    "phi3",
    "phi3-long",
    "phi3-partial",
    "smollm3",
    "seed_oss",
    "glm4",
    "glm4-unbiased",
    "granite",
    "granite-tied-bias",
    "olmo2",
    "olmo3",
    "olmo3-full",
    "olmoe",
    "internlm3",
    "iquestcoder",
    "exaone",
    "exaone4-full",
    "lfm2",
    "lfm2-adjusted",
    "lfm2_moe",
    "minicpm3",
    "minicpm3-long",
]
# What llama.cpp does not compute of these, as it computes it.
AS_IN_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "dots1": {"num_key_value_heads": 4},
    "ernie4_5_moe": {"moe_layer_interval": 1, "num_hidden_layers": 3},
    "ernie4_5_moe-unshared": {"moe_layer_end_index": -1},
    "olmo3": {"rope_parameters": SAME_BASE},
    "olmo3-full": {"attention_bias": False},
    "olmoe": {"num_key_value_heads": 4},
    "qwen3_next-mixed": {"linear_value_head_dim": 20},
    "qwen3_5-odd": {"linear_value_head_dim": 20},
    "qwen3_5-thirds": {"linear_value_head_dim": 12},
}
_SIX = {"num_hidden_layers": 7, "layer_types": None}  # Gemma 3's order of windows
_SIX["rope_parameters"] = ropes({"rope_type": "linear", "factor": 8.0})
AS_IN_LLAMA_CPP |= {"gemma3": _SIX, "gemma3_text": {**_SIX, "rope_parameters": ropes()}}
# Where WIDE makes no model of the family, or none that llama.cpp takes: it turns indexers' heads by
# Hadamard matrices of 64, and rounds the bounds of YaRN's ramp, which gpt-oss does not: with this
# base they are integers.
_INTEGERS = {**MODELS["gpt_oss"][1]["rope_parameters"], "rope_theta": 5895.6}
_EIGHTS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 16}
WIDER: dict[str, dict[str, Any]] = {
    "deepseek_v32": {"index_head_dim": 64},
    "glm_moe_dsa": {"index_head_dim": 64},
    "gpt_oss": {"rope_parameters": _INTEGERS},
    "phi3-long": _EIGHTS,
    "phi3-partial": _EIGHTS,
    "gemma3": {"query_pre_attn_scalar": 64},
    "gemma3_text": {"query_pre_attn_scalar": 64},
    "hunyuan_v1_moe": {"moe_intermediate_size": None},
    "mimo_v2_flash": {"head_dim": 48},
    "mimo_v2_flash-dense": {"head_dim": 48},
    "minimax_m2": {"head_dim": 48},
    "qwen3_next": {"linear_key_head_dim": 64, "linear_value_head_dim": 64},
    "qwen3_next-mixed": {"linear_key_head_dim": 32, "linear_value_head_dim": 32},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder as the hub has it: weights, config, tokenizer, template and README; once."""
    found: dict[tuple[str, str], Path] = {}

    def make(name: str, **changes: Any) -> Path:
        path = found.get((name, repr(changes)))
        if path is None:
            path = found[name, repr(changes)] = tmp_path_factory.mktemp("model")
            saved(name, oracle(name, **AS_IN_LLAMA_CPP.get(name, {}) | changes), path)
            write_tokenizer(path)
            (path / "README.md").write_text(CARD)
        return path

    return make


@pytest.fixture
def folder(tmp_path: Path, made: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a copy of such a folder."""
    return lambda name, **changes: shutil.copytree(made(name, **changes), tmp_path / "model")


@pytest.fixture(scope="module")
def converted(
    made: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Makes such a folder's file; once."""
    found: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in found:
            found[name] = tmp_path_factory.mktemp("converted") / "out.gguf"
            convert(made(name), found[name])
        return found[name]

    return make


def write_tokenizer(path: Path, cutter: pre_tokenizers.PreTokenizer | None = None) -> None:
    """255 letters of the byte alphabet, one merge, and an end of text: 257 less U+0000's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB_SIZE - 2]
    vocabulary = {text: index for index, text in enumerate([*alphabet, "he", END])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = cutter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"eos_token": END, "add_bos_token": False, "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_model_has_the_logits_of_its_folder(
    made: Callable[..., Path], converted: Callable[[str], Path], name: str
) -> None:
    model = loaded(made(name))
    expected = prefill_logits(model, TOKENS)
    limit = 1e-4 if has_moved_heads(model.config) else 1e-5
    assert furthest(expected, prefill_logits(loaded(converted(name)), TOKENS)) <= limit


@pytest.mark.parametrize("name", [name for name in CONVERTED if name != "mimo"])
def test_the_tensors_are_those_that_llama_cpps_converter_writes(
    made: Callable[..., Path], converted: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    write_gguf(tmp_path / "theirs.gguf", *read_folder(made(name)))
    ours, theirs = (
        gguf.GGUFReader(path).tensors for path in (converted(name), tmp_path / "theirs.gguf")
    )
    values = {tensor.name: tensor.data for tensor in ours}
    assert values.keys() == {tensor.name for tensor in theirs}
    for tensor in theirs:
        assert np.allclose(
            values[tensor.name].squeeze(), tensor.data.squeeze(), atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_the_gguf_package_reads_what_was_written(
    folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out.gguf"
    written = convert(folder(name), out)
    reader = gguf.GGUFReader(out)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    architecture = {"llama": "llama", "qwen3_moe": "qwen3moe"}[name]
    expected = {
        "general.architecture": architecture,
        "general.file_type": 0,
        "general.license": "mit",
        "general.base_model.0.name": "Base",
        "general.base_model.0.organization": "Maker",
        f"{architecture}.block_count": 2,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.vocab_size": VOCAB_SIZE,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": VOCAB_SIZE - 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: keys.get(key) for key in expected} == expected
    assert {"blk.0.ffn_norm.weight", "blk.0.attn_norm.weight"} <= {t.name for t in reader.tensors}
    assert keys["tokenizer.ggml.token_type"][-1] == gguf.TokenType.CONTROL
    assert written.size_bytes == out.stat().st_size
    assert sum(written.types.values()) == len(reader.tensors)


def test_a_quantised_file_holds_the_nearest_blocks(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("qwen3_moe", **WIDE), tmp_path / "out.gguf"
    convert(source, out, quantize="q4", threads=2)
    weights = open_checkpoint(source).tensors
    stored = open_checkpoint(out).tensors
    types = {name.split(".")[-2]: tensor.dtype for name, tensor in stored.items()}
    assert types["ffn_down_exps"] == "Q4_K"
    assert types["attn_q"] == types["token_embd"] == "Q6_K"
    assert types["ffn_gate_inp"] == types["attn_norm"] == "F32"
    expert = stored["blk.1.ffn_up_exps.weight"]
    assert expert.shape == (8, 256, 256)
    values = dequantize("Q4_K", expert.read_rows(3 * 256, 4 * 256))
    original = weights["model.layers.1.mlp.experts.3.up_proj.weight"].read().view(np.float32)
    assert np.square(values - original).mean() < 6e-3 * original.var()
    logits = [prefill_logits(loaded(path), TOKENS) for path in (source, out)]
    assert (
        np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.95
    )  # a router may choose otherwise


def test_a_mixtures_folder_with_importance_becomes_what_its_float_file_does(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, whole = folder("qwen3_moe", **WIDE), tmp_path / "whole.gguf"
    convert(source, whole, threads=2)
    draw = np.random.default_rng(0)
    matrix = ImportanceMatrix(
        {
            name: Importance(draw.lognormal(0, 2, (count, each.shape[-1])), np.ones(count))
            for name, each in open_checkpoint(whole).tensors.items()
            if name.startswith("blk.1.") and len(each.shape) > 1 and "gate_inp" not in name
            for count in [each.shape[0] if len(each.shape) == 3 else 1]
        },
        ("a.txt",),
    )
    paths = [tmp_path / f"{name}.gguf" for name in ("plain", "folder", "file")]
    convert(source, paths[0], quantize="Q4_K_M", threads=2)
    convert(source, paths[1], quantize="Q4_K_M", importance=matrix, threads=2)
    requantize(whole, paths[2], recipe_named("Q4_K_M"), importance=matrix, threads=2)
    plain, ours, theirs = (open_checkpoint(path).tensors for path in paths)
    assert ours.keys() == theirs.keys()
    changed = set()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.read().tobytes() == theirs[name].read().tobytes(), name
        if tensor.read().tobytes() != plain[name].read().tobytes():
            changed.add(name)
    assert changed == matrix.entries.keys()
    assert open_checkpoint(paths[1]).metadata["quantize.imatrix.dataset"] == "a.txt"


def test_the_heads_matrices_are_quantised_as_they_are_turned(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    latents = {"kv_lora_rank": 256, "q_lora_rank": 256, "qk_nope_head_dim": 64, "v_head_dim": 64}
    source, out = folder("deepseek_v3", **WIDE, **latents), tmp_path / "out.gguf"
    convert(source, out, quantize="q8")
    stored = open_checkpoint(out).tensors
    keys, values = (stored[f"blk.1.attn_{which}_b.weight"] for which in "kv")
    assert (keys.dtype, keys.shape) == ("Q8_0", (4, 256, 64))
    assert (values.dtype, values.shape) == ("Q8_0", (4, 64, 256))
    both = open_checkpoint(source).tensors["model.layers.1.self_attn.kv_b_proj.weight"]
    original = both.read().view(np.float32).reshape(4, 128, 256)
    for stack, part in ((keys, original[:, :64].swapaxes(1, 2)), (values, original[:, 64:])):
        got = dequantize("Q8_0", stack.read()).reshape(part.shape)
        assert np.abs(got - part).max() <= np.abs(part).max() / 254 * 1.01


def test_bfloat16_stays_as_it_is_but_in_vectors(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    import ml_dtypes  # noqa: PLC0415  # safetensors' own way to bfloat16
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source, out = folder("llama"), tmp_path / "out.gguf"
    arrays = load_file(source / "model.safetensors")
    save_file(
        {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()},
        source / "model.safetensors",
    )
    convert(source, out)
    before, after = open_checkpoint(source).tensors, open_checkpoint(out).tensors
    assert after["output.weight"].dtype == "BF16"
    np.testing.assert_array_equal(after["output.weight"].read(), before["lm_head.weight"].read())
    assert after["output_norm.weight"].dtype == "F32"


def test_experts_that_are_fused_become_the_same_stacks(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source = folder("qwen3_moe")
    convert(source, tmp_path / "hub.gguf")
    arrays = load_file(source / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: np.stack([arrays.pop(f"{prefix}.{i}.{part}_proj.weight") for i in range(8)])
            for part in ("gate", "up", "down")
        }
        arrays[f"{prefix}.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        arrays[f"{prefix}.down_proj"] = parts["down"]
    save_file(arrays, source / "model.safetensors")
    convert(source, tmp_path / "fused.gguf")
    hub, fused = (open_checkpoint(tmp_path / f"{name}.gguf").tensors for name in ("hub", "fused"))
    assert hub.keys() == fused.keys()
    for name, tensor in hub.items():
        assert tensor.shape == fused[name].shape
        np.testing.assert_array_equal(tensor.read(), fused[name].read())


def test_experts_in_mxfp4_stay_as_they_are_block_by_block(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("gpt_oss"), tmp_path / "out.gguf"
    config, parameters = read_folder(source)
    stored, _ = packings.gpt_oss_experts(parameters)
    write_folder(source, {**config, "quantization_config": {"quant_method": "mxfp4"}}, stored)
    convert(source, out)
    written = open_checkpoint(out)
    types = {name: tensor.dtype for name, tensor in written.tensors.items()}
    parts = ("gate", "up", "down")
    assert {types[f"blk.0.ffn_{part}_exps.weight"] for part in parts} == {"MXFP4"}
    assert {types[f"blk.0.ffn_{part}_exps.bias"] for part in parts} == {"F32"}
    assert written.metadata["general.file_type"] == 38
    expected = prefill_logits(loaded(source), TOKENS)
    assert furthest(expected, prefill_logits(loaded(out), TOKENS)) <= 1e-5
    convert(source, out, quantize="q8", force=True)
    assert open_checkpoint(out).tensors["blk.0.ffn_up_exps.weight"].dtype == "Q8_0"


def test_an_existing_file_is_replaced_only_by_force(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("llama"), tmp_path / "out.gguf"
    out.write_text("precious")
    with pytest.raises(InvalidRequestError, match="exists"):
        convert(source, out)
    assert out.read_text() == "precious"
    convert(source, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_what_ends_early_leaves_nothing_behind(
    folder: Callable[..., Path], tmp_path: Path, error: BaseException
) -> None:
    source, target = folder("llama"), tmp_path / "target"
    target.mkdir()

    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise error

    with pytest.raises(type(error)):
        convert(source, target / "out.gguf", progress=fail)
    assert list(target.iterdir()) == []


def test_a_disk_that_is_too_full_is_said_before_a_byte_is_written(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder("llama")
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(gguf_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InvalidRequestError, match=r"0\.00 GB of that disk is free"):
        convert(source, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf*")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "name, changes, named",
    [
        ("qwen3_moe-unnormalised", {}, "norm_topk_prob"),
        ("qwen3_moe-mixed", {}, "attention_bias"),
        ("qwen2-sliding", {}, "use_sliding_window"),
        ("gemma3", {**_SIX, "query_pre_attn_scalar": 24}, "query_pre_attn_scalar"),
        ("gemma3", {**_SIX, "rope_parameters": ropes(rope_theta=3000.0)}, "rope_local_base_freq"),
        ("gemma3", {**_SIX, "attention_bias": True}, "attention_bias"),
        ("gemma3", GEMMA3, "layer_types"),
        ("gemma4_text", {"rope_parameters": ropes(rope_type="linear", factor=4.0)}, "rope_param"),
        ("gemma4_text", {"rope_parameters": ropes(YARN)}, "yarn"),
        ("gemma4_text", {"attention_bias": True}, "attention_bias"),
        ("gemma4", {"vocab_size_per_layer_input": 300}, "vocab_size_per_layer_input"),
        ("bailing_moe_v2", {"attention_bias": True}, "use_qkv_bias"),
        ("kimi_linear-groups", {}, "linear_attn_config"),
        ("kimi_linear", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("kimi_linear", {"attention_bias": True}, "attention_bias"),
        ("bailing_hybrid-free", {}, "kda_safe_gate"),
        ("bailing_hybrid", {"rope_parameters": LINEAR}, "linear"),
        ("hy_v3", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
        ("hy_v3", {"attention_bias": True}, "attention_bias"),
        ("dots1", {"num_key_value_heads": 2}, "key-value heads"),
        ("deepseek_v2-grouped", {}, "topk_method"),
        ("deepseek_v2", {}, "q_lora_rank"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
        ("ernie4_5", {"use_bias": True}, "use_bias"),
        ("qwen2", {"rope_parameters": LLAMA3}, "llama3"),
        ("glm4_moe", {"head_dim": 18, "rope_parameters": HALF}, "partial_rotary_factor"),
        ("hunyuan_v1_moe", {"moe_topk": [2, 3]}, "moe_topk"),
        ("ernie4_5_moe", {"moe_layer_interval": 2, "num_hidden_layers": 5}, "moe_layer_interval"),
        ("ernie4_5_moe-unshared", {"moe_layer_end_index": 1}, "moe_layer_end_index"),
        ("hunyuan_v1_moe", {"attention_bias": True}, "attention_bias"),
        ("minimax_m2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("qwen3_next-mixed", {"linear_value_head_dim": 40}, "linear_value_head_dim"),
        ("qwen3_next", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3_next", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("pangu_pro_moe", {}, "pangu_pro_moe"),
        ("gpt_oss-tied", {"swiglu_limit": 7.0}, "tie_word_embeddings"),
        ("gpt_oss-unbiased", {}, "attention_bias"),
        ("gpt_oss", {"swiglu_limit": 0.3}, "swiglu_limit"),
        ("gpt_oss", {"rope_parameters": YARN}, "yarn"),
        ("gpt_oss", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("mimo_v2_flash-groups", {"tie_word_embeddings": False}, "groups"),
        ("mimo_v2_flash-unnormalised", {}, "norm_topk_prob"),
        ("deepseek_v32", {"rope_interleave": False}, "rope_interleave"),
        ("mistral-sliding", {}, "windows"),
        ("mixtral-sliding", {}, "windows"),
        ("ministral3", {"sliding_window": 8}, "windows"),
        ("ministral3-plain", {"sliding_window": None}, "yarn"),
        ("phi3-short", {}, "windows"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, "windows"),
        ("smollm3", {"attention_bias": True}, "attention_bias"),
        ("seed_oss-all-biased", {}, "attention_out_bias"),
        ("olmo3", {"rope_parameters": SLIDING}, "rope_parameters"),
        ("olmo3", {"rope_parameters": OTHER_BASE}, "rope_theta"),
        ("olmo3", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("phi3", {"head_dim": 24}, "head_dim"),
        ("exaone", {"attention_bias": True}, "attention_bias"),
        ("exaone4", {"head_dim": 16}, "sliding_window"),
        ("exaone4-full", {"head_dim": 24}, "head_dim"),
        ("lfm2-biased", {}, "conv_bias"),
        ("lfm2_moe", {"use_expert_bias": False}, "use_expert_bias"),
        ("lfm2_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("lfm2_moe", {"routed_scaling_factor": 1.7}, "routed_scaling_factor"),
        ("lfm2_moe-plain", {"use_expert_bias": True}, "norm_topk_prob"),
        ("minicpm3", {"attention_bias": True}, "attention_bias"),
        ("minicpm3", {"q_lora_rank": None}, "q_lora_rank"),
        ("minicpm3", {"scale_emb": 3}, "scale_emb"),
        ("minicpm3", {"scale_depth": 0.9}, "scale_depth"),
        ("minicpm3", {"dim_model_base": 32}, "dim_model_base"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(
    folder: Callable[..., Path], tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        convert(folder(name, **changes), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "name, drafting",
    [
        ("qwen3_next", "mtp.norm.weight"),
        ("ernie4_5_moe", "model.mtp_emb_norm.0.weight"),
        ("glm4_moe", "model.layers.2.input_layernorm.weight"),
        ("deepseek_v3", "model.layers.3.input_layernorm.weight"),
        ("bailing_hybrid", "model.layers.6.input_layernorm.weight"),
        ("bailing_moe_v2", "model.layers.3.input_layernorm.weight"),
        ("hy_v3", "model.layers.3.input_layernorm.weight"),
    ],
)
def test_a_layer_that_only_drafts_is_left_out(
    folder: Callable[..., Path], tmp_path: Path, name: str, drafting: str
) -> None:
    source = folder(name, num_nextn_predict_layers=1)
    convert(source, tmp_path / "without.gguf")
    config, arrays = read_folder(source)
    write_folder(source, config, {**arrays, drafting: np.ones(64, np.float32)})
    convert(source, tmp_path / "with.gguf")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()
    keys = open_checkpoint(tmp_path / "with.gguf").metadata
    assert not [key for key in keys if "nextn" in key]


def test_the_limits_of_lings_experts_are_written_for_each_layer(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("bailing_hybrid"), tmp_path / "out.gguf"
    limits = {"expert_swiglu_limit_list": [0, 0, 0.25, None, 0.5]}
    config, arrays = read_folder(source)
    write_folder(source, {**config, **limits}, arrays)
    convert(source, out)
    metadata = open_checkpoint(out).metadata
    assert metadata["bailingmoe3.swiglu_clamp_exp"].tolist() == [0, 0, 0.25, 0, 0.5, 0]
    assert "bailingmoe3.swiglu_clamp_shexp" not in metadata
    expected = prefill_logits(loaded(source), TOKENS)
    assert furthest(expected, prefill_logits(loaded(out), TOKENS)) <= 1e-5


@pytest.mark.parametrize(
    "name, small, large",
    [
        (
            "qwen3_next",
            ("ssm_conv1d.weight", "ssm_a", "ssm_dt.bias", "ssm_norm.weight"),
            ("attn_qkv", "ssm_ba"),
        ),
        (
            "bailing_hybrid",
            ("ssm_conv1d_q.weight", "ssm_a", "ssm_dt.bias", "ssm_norm.weight"),
            ("attn_q", "ssm_f_a", "ssm_g_a", "ssm_beta"),
        ),
    ],
)
def test_what_a_recurrent_layer_keeps_small_stays_float32(
    folder: Callable[..., Path],
    tmp_path: Path,
    name: str,
    small: tuple[str, ...],
    large: tuple[str, ...],
) -> None:
    import ml_dtypes  # noqa: PLC0415  # safetensors' own way to bfloat16
    from safetensors.numpy import save_file  # noqa: PLC0415

    source, out = folder(name, **WIDE), tmp_path / "out.gguf"
    _, arrays = read_folder(source)
    halved = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    save_file(halved, source / "model.safetensors")
    for scheme, matrices in ((None, "BF16"), ("q6", "Q6_K")):
        convert(source, out, quantize=scheme, force=True)  # type: ignore[arg-type]
        types = {key: tensor.dtype for key, tensor in open_checkpoint(out).tensors.items()}
        assert {types[f"blk.1.{part}"] for part in (*small, "ffn_gate_inp.weight")} == {"F32"}
        assert {types[f"blk.1.{part}.weight"] for part in large} == {matrices}
        loaded(out)


def test_keys_that_a_config_has_for_other_models_are_not_passed_on(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder("hunyuan_v1_moe")
    config, arrays = read_folder(source)
    others = {"n_group": False, "topk_group": False, "kv_lora_rank": None, "q_lora_rank": 1536}
    lists = {"num_experts": [6, 6], "moe_topk": [2, 2], "moe_intermediate_size": [48, 48]}
    write_folder(source, {**config, **others, **lists}, arrays)
    convert(source, tmp_path / "out.gguf")
    keys = open_checkpoint(tmp_path / "out.gguf").metadata
    assert not [key for key in keys if "group" in key or "lora" in key]
    assert keys["hunyuan-moe.expert_count"] == 6
    assert keys["hunyuan-moe.expert_feed_forward_length"] == 48


def test_an_openpangu_without_biases_is_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder("pangu_embedded")
    config, arrays = read_folder(source)
    plain = {name: array for name, array in arrays.items() if not name.endswith(".bias")}
    write_folder(source, {**config, "bias": False}, plain)
    loaded(source)
    with pytest.raises(UnsupportedModelError, match="bias = False"):
        convert(source, tmp_path / "out.gguf")


def test_a_missing_tensor_is_named(folder: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source = folder("llama")
    arrays = load_file(source / "model.safetensors")
    del arrays["model.layers.1.self_attn.k_proj.weight"]
    save_file(arrays, source / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"layers\.1\.self_attn\.k_proj"):
        convert(source, tmp_path / "out.gguf")


def test_weights_that_are_quantised_already_are_refused_by_type(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source = folder("llama")
    arrays = load_file(source / "model.safetensors")
    arrays["lm_head.weight"] = arrays["lm_head.weight"].astype(np.int8)
    save_file(arrays, source / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight as I8.*F32, F16, BF16"):
        convert(source, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "fp8") for name in ("llama", "qwen3_moe", "deepseek_v3", "qwen3_next")),
        *(("llama", "gptq"), ("qwen3_moe", "awq"), ("deepseek_v3", "gptq"), ("qwen3_next", "awq")),
    ],
)
def test_a_quantised_folder_is_quantised_anew_from_what_it_stands_for(
    folder: Callable[..., Path], tmp_path: Path, name: str, method: str
) -> None:
    source = folder(name, **WIDE)
    config, arrays = read_folder(source)
    settings, pack = PACKED[method]

    def packed(each: str, values: np.ndarray) -> packings.Packed | None:
        return pack(values) if each.endswith(("_proj.weight", "qkvz.weight")) else None

    values = packings.write_packed(tmp_path / "packed", config, arrays, settings, packed)
    write_folder(source, config, values)
    for each in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / each, tmp_path / "packed")
    with pytest.raises(UnsupportedModelError, match=r"\.weight as ") as caught:
        convert(tmp_path / "packed", tmp_path / "none.gguf")
    assert "--quantize" in caught.value.hint
    convert(tmp_path / "packed", tmp_path / "packed.gguf", quantize="q8")
    convert(source, tmp_path / "plain.gguf", quantize="q8")
    ours, plain = (open_checkpoint(tmp_path / f"{n}.gguf").tensors for n in ("packed", "plain"))
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in plain.items()}
    for each, tensor in ours.items():
        np.testing.assert_array_equal(tensor.read(), plain[each].read(), err_msg=each)


def test_a_gguf_and_a_folder_without_tokenizer_are_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("llama"), tmp_path / "out.gguf"
    convert(source, out)
    with pytest.raises(UnsupportedModelError, match="GGUF file already"):
        convert(out, tmp_path / "again.gguf")
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        convert(source, tmp_path / "again.gguf")


def test_words_that_no_rule_of_gguf_cuts_are_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder("llama")
    cutter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    write_tokenizer(source, cutter)
    with pytest.raises(TokenizerError, match="rule"):
        convert(source, tmp_path / "out.gguf")


def test_the_tokenizer_gives_the_same_ids(folder: Callable[..., Path], tmp_path: Path) -> None:
    source, out = folder("llama", vocab_size=VOCAB_SIZE + 8), tmp_path / "out.gguf"
    convert(source, out)
    text = f"she said: héllo, the end{END}"
    both = [ours.Tokenizer.from_checkpoint(open_checkpoint(path)) for path in (source, out)]
    assert both[0].encode(text) == both[1].encode(text)
    assert both[0].eos_id == both[1].eos_id == VOCAB_SIZE - 1
    assert both[1].vocab_size == VOCAB_SIZE + 8


@pytest.mark.parametrize("name", CONVERTED)
def test_llama_cpp_computes_what_we_do(
    folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    out = tmp_path / "out.gguf"
    convert(folder(name, **WIDE | WIDER.get(name, {})), out)
    floats = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    peer = llama_cpp.Llama(str(out), logits_all=True, n_ctx=64, verbose=False, **floats)
    peer.eval(TOKENS)
    expected = np.array(peer.scores[: len(TOKENS)])
    actual = prefill_logits(loaded(out), TOKENS)
    # ggml looks GELU up in a table of float16: with it alone left out, Gemma agrees to 1e-5.
    limit = 5e-3 if "gemma" in name else 1e-4
    assert np.abs(actual - expected).max() <= limit * np.abs(expected).max()


def test_hy3_s_choice_bias_has_the_name_that_llama_cpp_asks_for(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Without ".bias", which all other families' have; both are read."""
    convert(folder("hy_v3"), tmp_path / "out.gguf")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert "blk.1.exp_probs_b" in names
    assert "blk.1.exp_probs_b.bias" not in names


def test_ling_s_shared_experts_are_counted_one_by_one(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    """llama.cpp multiplies the width by their number."""
    convert(folder("bailing_moe_v2-groups"), tmp_path / "out.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    keys = ("expert_feed_forward_length", "expert_shared_feed_forward_length")
    one, shared = (fields[f"bailingmoe2.{key}"].contents() for key in keys)
    assert one == shared
